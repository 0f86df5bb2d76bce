"""Runs of strange events as one alert that opens, updates and closes, by what `[episodes]` of the pipeline says.

An event that reaches the threshold opens an episode, unless one has just ended or the entity has had its share of the
day. Within it a message comes when the score has risen by much, and once in a while; it ends after enough events in a
row far enough below the threshold, so that a score that wavers around the threshold is one episode. What is remembered
is part of the entity's state, and depends on its own events in their order only.

Legend: N entities, A events.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS
from models.compiled import compiled, plain
from models.pipeline.spec import Episodes

__all__ = ["CLOSE", "EPISODE", "KINDS", "NONE", "OPEN", "UPDATE", "Turns", "advance_episodes", "empty_episodes"]

NONE, OPEN, UPDATE, CLOSE = 0, 1, 2, 3
KINDS = ("", "open", "update", "close")
RISEN = 0.5  # an update comes when so much of what the score had left to 1 is gone

# times: of the opening (0: none is open), of the last message, of the last end, of the last look at the budget; epoch
# ms. counts: events at the threshold, calm events in a row, events kept quiet. levels: greatest score, that of the last
# message, what is left of the budget. id: of the alert that opened it.
EPISODE = np.dtype([("times", "<i8", (4,)), ("id", "<u8", (2,)), ("counts", "<u4", (3,)), ("levels", "<f4", (3,))])
OPENED, SAID, ENDED, FILLED = 0, 1, 2, 3
EVENTS, CALM, QUIET = 0, 1, 2
PEAK, SAID_PEAK, LEFT = 0, 1, 2


class Turns(NamedTuple):
    """What each of A events does to the episode of its entity, and the episode with it.

    kind_A: NONE, OPEN, UPDATE or CLOSE. id_A2: of the alert that opened it. opened_A: epoch ms. events_A: that reached
    the threshold. peak_A: the greatest score. quiet_A: of an opening, how many events were kept quiet before it.
    """

    kind_A: NDArray[np.int8]
    id_A2: NDArray[np.uint64]
    opened_A: NDArray[np.int64]
    events_A: NDArray[np.int64]
    peak_A: NDArray[np.float32]
    quiet_A: NDArray[np.int64]


class _Rules(NamedTuple):
    calm: int
    release: float
    update_ms: float
    cooldown_ms: float
    per_day: float


class _Held(NamedTuple):
    times_NT: NDArray[np.int64]
    id_N2: NDArray[np.uint64]
    counts_NC: NDArray[np.uint32]
    levels_NL: NDArray[np.float32]


def empty_episodes(entities: int) -> NDArray[np.void]:
    """Of entities that were never strange."""
    return np.zeros(entities, EPISODE)


def advance_episodes(
    rules: Episodes,
    held_N: NDArray[np.void],
    owner_A: NDArray[np.int64],
    time_A: NDArray[np.int64],
    score_A: NDArray[np.float32],
    threshold: float,
    id_A2: NDArray[np.uint64],
) -> Turns:
    """Apply A events in their order; changes `held_N` (EPISODE). owner_A: places in it. time_A: epoch ms. id_A2: what
    the alert of each would be called."""
    events = len(owner_A)
    held = _Held(*(np.ascontiguousarray(held_N[name]) for name in ("times", "id", "counts", "levels")))
    turns = Turns(
        np.zeros(events, np.int8), np.zeros((events, 2), np.uint64), np.zeros(events, np.int64),
        np.zeros(events, np.int64), np.zeros(events, np.float32), np.zeros(events, np.int64),
    )  # fmt: skip
    plain_rules = _Rules(
        rules.calm, float(rules.release), float(rules.update_ms), float(rules.cooldown_ms), float(rules.per_day)
    )
    _advance(
        plain_rules, held, plain(owner_A, np.int64), plain(time_A, np.int64), plain(score_A, np.float32),
        np.float32(threshold), plain(id_A2, np.uint64), turns,
    )  # fmt: skip
    for name, array in zip(("times", "id", "counts", "levels"), held, strict=True):
        held_N[name] = array
    return turns


@compiled
def _advance(
    rules: _Rules,
    held: _Held,
    owner_A: NDArray[np.int64],
    time_A: NDArray[np.int64],
    score_A: NDArray[np.float32],
    threshold: np.float32,
    id_A2: NDArray[np.uint64],
    turns: Turns,
) -> None:
    for a in range(len(owner_A)):
        n, now, score = owner_A[a], time_A[a], score_A[a]
        times_T, counts_C, levels_L = held.times_NT[n], held.counts_NC[n], held.levels_NL[n]
        kind = NONE
        if times_T[OPENED] == 0:
            if score < threshold:
                continue
            _refill(rules, times_T, levels_L, now)
            if levels_L[LEFT] < 1.0 or (times_T[ENDED] > 0 and now - times_T[ENDED] < rules.cooldown_ms):
                counts_C[QUIET] += 1
                continue
            kind = OPEN
            levels_L[LEFT] -= np.float32(1.0)
            levels_L[PEAK] = levels_L[SAID_PEAK] = score
            times_T[OPENED] = max(now, 1)
            times_T[SAID] = now
            counts_C[EVENTS], counts_C[CALM] = 1, 0
            held.id_N2[n] = id_A2[a]
            turns.quiet_A[a] = counts_C[QUIET]
            counts_C[QUIET] = 0
        else:
            kind = _go_on(rules, times_T, counts_C, levels_L, now, score, threshold)
        turns.kind_A[a] = kind
        if kind != NONE:
            turns.id_A2[a] = held.id_N2[n]
            turns.opened_A[a], turns.events_A[a], turns.peak_A[a] = times_T[OPENED], counts_C[EVENTS], levels_L[PEAK]
        if kind == CLOSE:
            times_T[OPENED], times_T[ENDED] = 0, now


@compiled
def _refill(rules: _Rules, times_T: NDArray[np.int64], levels_L: NDArray[np.float32], now: int) -> None:
    """A bucket that holds a day's episodes, one at least, and fills up in a day."""
    passed = max(now - times_T[FILLED], 0)
    levels_L[LEFT] = min(levels_L[LEFT] + rules.per_day * passed / DAY_MS, max(rules.per_day, 1.0))
    times_T[FILLED] = max(now, times_T[FILLED])


@compiled
def _go_on(
    rules: _Rules,
    times_T: NDArray[np.int64],
    counts_C: NDArray[np.uint32],
    levels_L: NDArray[np.float32],
    now: int,
    score: np.float32,
    threshold: np.float32,
) -> int:
    """An event within an episode."""
    counts_C[EVENTS] += score >= threshold
    counts_C[CALM] = counts_C[CALM] + 1 if score < rules.release * threshold else 0
    levels_L[PEAK] = max(levels_L[PEAK], score)
    if counts_C[CALM] >= rules.calm:
        return CLOSE
    risen = 1.0 - levels_L[PEAK] < (1.0 - RISEN) * (1.0 - levels_L[SAID_PEAK])
    if score >= threshold and (risen or now - times_T[SAID] >= rules.update_ms):
        times_T[SAID], levels_L[SAID_PEAK] = now, levels_L[PEAK]
        return UPDATE
    return NONE
