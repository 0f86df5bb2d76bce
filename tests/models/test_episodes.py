"""Episodes: when an alert opens, updates and closes, and that batches do not matter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from models.clock import DAY_MS
from models.episodes import CLOSE, KINDS, OPEN, UPDATE, Turns, advance_episodes, empty_episodes
from models.pipeline.spec import Episodes

MINUTE = 60_000
START = 1_700_000_000_000
THRESHOLD = 0.5


def rules(**changes: Any) -> Episodes:
    return Episodes(**{"calm": 3, "release": 0.8, "update": "30m", "cooldown": "10m", "per_day": 24.0, **changes})


def run(scores: list[float], every_ms: int = MINUTE, **changes: Any) -> Turns:
    """Events of one entity, a minute apart."""
    count = len(scores)
    ids = np.arange(1, 2 * count + 1, dtype=np.uint64).reshape(count, 2)
    time_A = START + every_ms * np.arange(count)
    owner_A = np.zeros(count, np.int64)
    return advance_episodes(
        rules(**changes), empty_episodes(1), owner_A, time_A, np.array(scores, np.float32), THRESHOLD, ids
    )


def told(turns: Turns) -> dict[int, str]:
    return {a: KINDS[kind] for a, kind in enumerate(turns.kind_A.tolist()) if kind}


def test_a_run_of_strange_events_is_one_episode() -> None:
    turns = run([0.1, 0.6, 0.7, 0.6, 0.1, 0.1, 0.1, 0.1])
    assert told(turns) == {1: "open", 6: "close"}
    assert turns.opened_A[6] == START + MINUTE
    assert turns.events_A[[1, 6]].tolist() == [1, 3]
    assert turns.peak_A[6] == np.float32(0.7)
    assert turns.id_A2[6].tolist() == turns.id_A2[1].tolist() == [3, 4]


def test_a_score_that_wavers_around_the_threshold_is_one_episode() -> None:
    """Above release · threshold = .4 nothing is calm, and what is calm has to be so three times in a row."""
    assert told(run([0.6, 0.45, 0.55, 0.45, 0.45, 0.45, 0.3, 0.3, 0.6, 0.3, 0.3])) == {0: "open"}


def test_within_it_a_rise_is_told_at_once_and_what_lasts_once_in_a_while() -> None:
    """.8 is more than half way from .6 to 1, .85 is not from .8; then an update each 30 minutes."""
    turns = run([0.6, 0.7, 0.81, 0.85, *[0.7] * 60])
    assert told(turns) == {0: "open", 2: "update", 32: "update", 62: "update"}
    assert turns.peak_A[62] == np.float32(0.85)


def test_after_an_end_nothing_opens_until_the_cooldown_is_over() -> None:
    scores = [0.6, 0.1, 0.1, 0.1, *[0.9] * 20]
    turns = run(scores)
    assert told(turns) == {0: "open", 3: "close", 13: "open"}
    assert turns.quiet_A[13] == 9


def test_an_entity_has_so_many_episodes_a_day() -> None:
    """Two at once, then one each half day; what was kept quiet is counted in the next opening."""
    turns = run([0.9, 0.1] * 60, every_ms=30 * MINUTE, calm=1, per_day=2.0)
    opened = np.flatnonzero(turns.kind_A == OPEN).tolist()
    assert opened[:2] == [0, 2]
    gaps = np.diff(opened[1:]) * 30 * MINUTE
    assert (gaps >= DAY_MS // 2 - 2 * 60 * MINUTE).all()
    assert len(opened) == 2 + 60 * 60 * MINUTE // DAY_MS * 2
    assert turns.quiet_A[opened[2]] == opened[2] // 2 - 2


def test_late_events_neither_close_nor_pay() -> None:
    """An event from before the opening belongs to the episode, and gives no budget back."""
    held = empty_episodes(1)
    times = np.array([START, START - DAY_MS, START - DAY_MS])
    turns = advance_episodes(
        rules(per_day=1.0), held, np.zeros(3, np.int64), times, np.array([0.9, 0.6, 0.1], np.float32), THRESHOLD,
        np.ones((3, 2), np.uint64),
    )  # fmt: skip
    assert told(turns) == {0: "open"}
    assert held["levels"][0, 2] == 0.0


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_batches_do_not_matter(size: int) -> None:
    random = np.random.default_rng(3)
    count, entities = 1000, 5
    owner_A = random.integers(0, entities, count)
    score_A = np.clip(np.abs(np.cumsum(random.normal(0, 0.1, count)) % 2 - 1), 0, 1).astype(np.float32)
    time_A = START + np.cumsum(random.integers(0, 5 * MINUTE, count))
    id_A2 = random.integers(1, 1 << 60, (count, 2)).astype(np.uint64)
    whole, part = empty_episodes(entities), empty_episodes(entities)
    expected = advance_episodes(rules(), whole, owner_A, time_A, score_A, THRESHOLD, id_A2)
    found = [
        advance_episodes(rules(), part, owner_A[at], time_A[at], score_A[at], THRESHOLD, id_A2[at])
        for at in (slice(first, first + size) for first in range(0, count, size))
    ]
    for name, array in expected._asdict().items():
        assert np.array_equal(np.concatenate([getattr(turns, name) for turns in found]), array)
    assert np.array_equal(whole, part)
    assert {OPEN, UPDATE, CLOSE} <= set(expected.kind_A.tolist())


def test_every_episode_opens_before_it_closes() -> None:
    random = np.random.default_rng(4)
    kinds = [kind for kind in run(random.random(5000).tolist(), calm=2, per_day=1000.0).kind_A.tolist() if kind]
    assert kinds[0] == OPEN
    assert all((after == OPEN) == (before == CLOSE) for before, after in pairwise(kinds))
