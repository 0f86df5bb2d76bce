"""Verdicts one by one: which of them a shared profile keeps, and which an event sees of these.

A verdict is a label that named the profile: when it arrived (the clock of its partition), the hash of the event's
id, whether it was fraud, and how the amount compared with what was usual. Beside its counts a profile keeps the
newest ones. What it keeps is a function of the set of its verdicts, whatever the order in which they came, and one
that comes again changes nothing:

- Time is cut into stretches as long as the profile's `delay`, a minute at least. Of one stretch PER_STRETCH verdicts
  are kept: frauds before others, then those with the lower hash, which is a fair draw. A merchant with many verdicts
  at once would otherwise push out everything that may be seen already.
- A stretch is kept, whole, while there is room for PER_STRETCH more beside what is kept of the newer ones.

More verdicts never bring back one that was dropped, so a part of them may be cut down first and the rest added later.

An event of the partition's clock c sees the newest verdicts of the stretches that ended by c − delay: no later label
can push one of those out of its stretch. Verdicts are at most `delay` ahead of events (labels wait for them), which is
three stretches that are not seen yet: the room for these is spare. (So is that for three, which a stretch of four may
not have found.)

Bytes of a place (a slot's): i64 clock, u64 id (0: empty), u32 fraud, i32 ratio in thousandths. Places are filled from
the first on, in the order of clock, id, fraud, ratio.

Legend: P profiles, W words of a profile's rings, M reading events, J, S and G as in `models.features.encoded`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, HOUR_MS
from models.compiled import compiled, inlined, plain
from models.features.encoded import VERDICT_FEATURES
from models.features.layout import PER_STRETCH, RING_SLOTS, Layout, verdict_rings
from models.features.numerics import log1p
from models.pipeline.spec import Profile

__all__ = ["RATIO_SCALE", "UNKNOWN_RATIO", "capacity", "insert", "read_verdicts", "span_ms", "stretch_ms"]

SHORTEST_STRETCH_MS = 60_000
RATIO_SCALE = 1000  # ratios are kept in thousandths, as integers
UNKNOWN_RATIO = -(2**31)
# a place in words of eight bytes, and of four
LONGS, CLOCK, ID = 3, 0, 1
WORDS, FRAUD, RATIO = 6, 4, 5


def stretch_ms(profile: Profile) -> int:
    """Length of the stretches of time of which PER_STRETCH verdicts are kept each."""
    return max(profile.delay_ms, SHORTEST_STRETCH_MS)


def capacity(profile: Profile) -> int:
    """Verdicts a profile has room for."""
    return verdict_rings(profile) * RING_SLOTS


def span_ms(profile: Profile) -> int:
    """How far verdicts may be ahead of an event before they push out what it still has to see."""
    spare = (capacity(profile) - profile.verdicts - PER_STRETCH + 1) // PER_STRETCH
    return (spare - 1) * stretch_ms(profile) - profile.delay_ms


def read_verdicts(
    layout: Layout,
    rings: dict[str, NDArray[np.void]],
    ring_owner: dict[str, NDArray[np.int64]],
    clock_M: NDArray[np.int64],
    applied_M: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """What M events see of the verdicts of their shared profiles: float32 (M, J, S, G); see VERDICT_FEATURES.

    rings, ring_owner: as in `Loaded`. All 0 for an event that was not applied, or has no such key.
    """
    out_MJSG = np.zeros((len(clock_M), *layout.inputs.verdict_shape), np.float32)
    for j, name in enumerate(layout.inputs.verdicts):
        profile = layout.pipeline.profiles[name]
        _read(
            *flat_words(rings[name]), len(profile.half_lives) * RING_SLOTS, capacity(profile), profile.verdicts,
            profile.delay_ms, stretch_ms(profile),
            plain(ring_owner[name], np.int64), clock_M, applied_M, out_MJSG, j,
        )  # fmt: skip
    return out_MJSG


def flat_words(rings_PRS: NDArray[np.void]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The memory of the slots as words of four and of eight bytes, all rings of a profile in a row: (P, W)."""
    slots = rings_PRS.shape[1] * rings_PRS.shape[2]
    words, longs = plain(rings_PRS.view(np.int32), np.int32), plain(rings_PRS.view(np.int64), np.int64)
    return words.reshape(len(rings_PRS), slots * WORDS), longs.reshape(len(rings_PRS), slots * LONGS)


@compiled
def insert(
    words_W: NDArray[np.int32],
    longs_W: NDArray[np.int64],
    first: int,
    room: int,
    stretch: int,
    verdict: tuple[int, int, int, int],
) -> None:
    """Add one verdict to a profile: clock, the id's bits, fraud, ratio. first: the slot at which its `room` begins."""
    held = _held(longs_W, first, room)
    place = held  # places below it stay before the new one
    while place > 0 and _order(words_W, longs_W, first + place - 1, verdict) > 0:
        place -= 1
    if place > 0 and _order(words_W, longs_W, first + place - 1, verdict) == 0:
        return
    number = verdict[0] // stretch
    begin = end = place  # of its stretch
    while begin > 0 and longs_W[(first + begin - 1) * LONGS + CLOCK] // stretch == number:
        begin -= 1
    while end < held and longs_W[(first + end) * LONGS + CLOCK] // stretch == number:
        end += 1
    if end - begin >= PER_STRETCH:
        _replace_worst(words_W, longs_W, first, place, begin, end, verdict)
        return
    gone = _in_the_way(longs_W, first, held, room, stretch, number)
    if gone < 0:
        return
    for p in range(gone, place):
        _move(words_W, longs_W, first + p, first + p - gone)
    if gone == 0:
        for p in range(held, place, -1):
            _move(words_W, longs_W, first + p - 1, first + p)
    else:  # by one place less, since the new one comes in between
        for p in range(place, held):
            _move(words_W, longs_W, first + p, first + p - gone + 1)
        for p in range(held - gone + 1, held):
            _write(words_W, longs_W, first + p, (0, 0, 0, 0))
    _write(words_W, longs_W, first + place - gone, verdict)


@inlined
def _in_the_way(longs_W: NDArray[np.int64], first: int, held: int, room: int, stretch: int, number: int) -> int:
    """How many verdicts must go, all of the oldest stretch, before one of stretch `number` comes; -1: it is not kept.

    A stretch is kept while there is room for PER_STRETCH beside the newer ones.
    """
    if held == 0:
        return 0
    oldest = longs_W[first * LONGS + CLOCK] // stretch
    if number <= oldest:
        return -1 if number < oldest and held > room - PER_STRETCH else 0
    size = 1
    while size < held and longs_W[(first + size) * LONGS + CLOCK] // stretch == oldest:
        size += 1
    return size if held + 1 - size > room - PER_STRETCH else 0


@inlined
def _replace_worst(
    words_W: NDArray[np.int32],
    longs_W: NDArray[np.int64],
    first: int,
    place: int,
    begin: int,
    end: int,
    verdict: tuple[int, int, int, int],
) -> None:
    """Put a verdict that belongs before `place` into its stretch, instead of the worst there; not if it is that."""
    worst = begin
    for p in range(begin + 1, end):
        f, g = words_W[(first + p) * WORDS + FRAUD], words_W[(first + worst) * WORDS + FRAUD]
        i, j = np.uint64(longs_W[(first + p) * LONGS + ID]), np.uint64(longs_W[(first + worst) * LONGS + ID])
        if f < g or (f == g and i >= j):  # of one id, the one that stands behind
            worst = p
    f = words_W[(first + worst) * WORDS + FRAUD]
    i, mine = np.uint64(longs_W[(first + worst) * LONGS + ID]), np.uint64(verdict[1])
    if verdict[2] < f or (verdict[2] == f and (mine > i or (mine == i and place > worst))):
        return
    for p in range(worst, place - 1):
        _move(words_W, longs_W, first + p + 1, first + p)
    for p in range(worst, place, -1):
        _move(words_W, longs_W, first + p - 1, first + p)
    _write(words_W, longs_W, first + (place - 1 if worst < place else place), verdict)


@inlined
def _held(longs_W: NDArray[np.int64], first: int, room: int) -> int:
    """How many places are filled."""
    low, high = 0, room
    while low < high:
        middle = (low + high) // 2
        if longs_W[(first + middle) * LONGS + ID] != 0:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def _order(
    words_W: NDArray[np.int32], longs_W: NDArray[np.int64], slot: int, verdict: tuple[int, int, int, int]
) -> int:
    """-1, 0 or 1 when what stands in this slot comes before the verdict, is it, or comes after."""
    clock, i, mine = longs_W[slot * LONGS + CLOCK], np.uint64(longs_W[slot * LONGS + ID]), np.uint64(verdict[1])
    if clock != verdict[0]:
        return -1 if clock < verdict[0] else 1
    if i != mine:
        return -1 if i < mine else 1
    fraud, ratio = words_W[slot * WORDS + FRAUD], words_W[slot * WORDS + RATIO]
    if fraud != verdict[2]:
        return -1 if fraud < verdict[2] else 1
    return 0 if ratio == verdict[3] else -1 if ratio < verdict[3] else 1


@inlined
def _move(words_W: NDArray[np.int32], longs_W: NDArray[np.int64], source: int, target: int) -> None:
    longs_W[target * LONGS + CLOCK] = longs_W[source * LONGS + CLOCK]
    longs_W[target * LONGS + ID] = longs_W[source * LONGS + ID]
    words_W[target * WORDS + FRAUD] = words_W[source * WORDS + FRAUD]
    words_W[target * WORDS + RATIO] = words_W[source * WORDS + RATIO]


@inlined
def _write(
    words_W: NDArray[np.int32], longs_W: NDArray[np.int64], slot: int, verdict: tuple[int, int, int, int]
) -> None:
    longs_W[slot * LONGS + CLOCK], longs_W[slot * LONGS + ID] = verdict[0], verdict[1]
    words_W[slot * WORDS + FRAUD], words_W[slot * WORDS + RATIO] = verdict[2], verdict[3]


@compiled
def _read(
    words_PW: NDArray[np.int32],
    longs_PW: NDArray[np.int64],
    first: int,
    room: int,
    shown: int,
    delay: int,
    stretch: int,
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    applied_M: NDArray[np.bool_],
    out_MJSG: NDArray[np.float32],
    j: int,
) -> None:
    """shown: of the S places of the output, how many this profile fills at most."""
    for m in range(len(owner_M)):
        if owner_M[m] < 0 or not applied_M[m]:
            continue
        words_W, longs_W = words_PW[owner_M[m]], longs_PW[owner_M[m]]
        before = (clock_M[m] - delay) // stretch * stretch  # stretches that ended by clock - delay
        seen = _held(longs_W, first, room)
        while seen > 0 and longs_W[(first + seen - 1) * LONGS + CLOCK] >= before:
            seen -= 1
        begin = max(seen - shown, 0)
        place = out_MJSG.shape[2] - (seen - begin)
        for slot in range(first + begin, first + seen):
            arrived, fraud = longs_W[slot * LONGS + CLOCK], words_W[slot * WORDS + FRAUD]
            since = np.float64(clock_M[m] - arrived)
            gap = 0.0
            if slot > first + begin:
                gap = np.float64(arrived - longs_W[(slot - 1) * LONGS + CLOCK])
            known = words_W[slot * WORDS + RATIO]
            ratio = 0.0 if known == UNKNOWN_RATIO else np.float64(known) / RATIO_SCALE
            out_MJSG[m, j, place, 0] = 1.0
            out_MJSG[m, j, place, 1] = np.float64(fraud)
            out_MJSG[m, j, place, 2] = log1p(since / HOUR_MS)
            out_MJSG[m, j, place, 3] = since / DAY_MS
            out_MJSG[m, j, place, 4] = log1p(gap / HOUR_MS)
            out_MJSG[m, j, place, 5] = ratio
            out_MJSG[m, j, place, 6] = ratio if fraud else 0.0
            place += 1


assert VERDICT_FEATURES == ("present", "fraud", "age", "days", "gap", "ratio", "fraud_ratio"), "as `_read` writes them"
