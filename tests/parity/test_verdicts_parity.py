"""Verdicts of shared profiles against the naive definition: busy merchants, many partitions, any order."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.columns import columns_to_batch
from models.events import LabelBatch
from models.features.encoded import VERDICT_FEATURES
from models.features.layout import RING_SLOTS
from models.features.memory import MemoryStore
from models.features.profiles import accumulate, collect, safe_end_ms
from models.features.verdicts import capacity, stretch_ms
from models.hashing import hash_ids
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline
from tests.parity.naive import Naive
from tests.parity.test_features_parity import PHASES, START_MS, assert_close

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000

SHOPS = """
[pipeline]
name = "shops"
entity = "card"
event_id = "id"
time = "at"

[fields]
id = { type = "id" }
at = { type = "time", unit = "ms" }
card = { type = "entity" }
shop = { type = "entity", required = false }
till = { type = "entity", required = false }
amount = { type = "number", min = 0, transform = "log1p", required = false }

[window]
length = 2
horizons = ["1h"]

[profiles.card]
key = "card"
amount = "amount"
half_lives = ["1h", "12h"]
delay = "10m"

[profiles.shop]
key = "shop"
amount = "amount"
half_lives = ["1h", "12h"]
delay = "10m"
verdicts = 25
compare = "card"

[profiles.till]
key = "till"
amount = "amount"
half_lives = ["2h"]
delay = "15m"
verdicts = 5
"""
PIPELINE = parse_pipeline(SHOPS, "shops.toml")
DELAY_MS = 10 * MINUTE  # the shortest: labels are at most this far ahead of events


def random_stream(seed: int, minutes: int = 600) -> list[tuple[int, bool | None, dict[str, Any]]]:
    """(clock, verdict or None for an event, row) in order of arrival.

    Of four label partitions and two of events, each by itself up to 5 minutes from the time: one is at most `delay`
    ahead of another. One shop has far more verdicts than there is room for, often several in a millisecond.
    """
    rng = random.Random(seed)
    ahead = [rng.randrange(-5 * MINUTE, 5 * MINUTE) for _ in range(6)]
    clocks, rows, out = [0] * 6, [], []
    now = START_MS
    for number in range(minutes):
        now += rng.choice((0, 0, MINUTE, 2 * MINUTE, 20 * MINUTE if rng.random() < 0.05 else 0))
        for _ in range(rng.randrange(4)):
            p = 4 + rng.randrange(2)
            clocks[p] = max(clocks[p], now + ahead[p])
            row = {
                "id": f"e{number}-{rng.randrange(9)}", "at": clocks[p], "card": f"card-{rng.randrange(3)}",
                "shop": rng.choice(["busy", "busy", "quiet", None]), "till": rng.choice(["1", None]),
                "amount": rng.choice([None, round(rng.uniform(0, 900), 2)]),
            }  # fmt: skip
            rows.append(row)
            out.append((clocks[p], None, row))
        for _ in range(rng.randrange(9) if rng.random() < 0.4 else 0):
            p = rng.randrange(4)
            clocks[p] = max(clocks[p], now + ahead[p])
            if rows:
                out.append((clocks[p], rng.random() < 0.3, rng.choice(rows[-50:])))
    return out


def label_batch(pipeline: Pipeline, rows: list[dict[str, Any]], fraud: list[bool], clock_M: np.ndarray) -> LabelBatch:
    ids = [row["id"] for row in rows]
    return LabelBatch(
        ids, clock_M, hash_ids(ids), np.array(fraud, dtype=bool),
        {name: [row[profile.key] for row in rows] for name, profile in pipeline.profiles.items()},
        {"amount": np.array([row["amount"] for row in rows], dtype=float)},
    )  # fmt: skip


def feed(items: list[tuple[int, bool | None, dict[str, Any]]], most: int) -> tuple[np.ndarray, MemoryStore]:
    """Verdicts that the applied events see: (A, J, S, G). most: items of one kind that share a batch."""
    store, parts, first = MemoryStore(PIPELINE), [], 0
    while first < len(items):
        last = first + 1
        while last < min(len(items), first + most) and (items[last][1] is None) == (items[first][1] is None):
            last += 1
        clock_M = np.array([clock for clock, _, _ in items[first:last]])
        rows = [row for _, _, row in items[first:last]]
        if items[first][1] is None:
            columns = {name: [row[name] for row in rows] for name in PIPELINE.fields}
            parts.append(store.step(columns_to_batch(store.layout, columns), clock_M).encoded.verdicts_BJSG)
        else:
            store.learn(label_batch(PIPELINE, rows, [bool(f) for _, f, _ in items[first:last]], clock_M), clock_M)
        first = last
    return np.concatenate(parts), store


@pytest.mark.parametrize("seed", range(2))
def test_an_event_sees_the_verdicts_of_the_naive_loop(seed: int) -> None:
    """However many verdicts a shop has, the newest that may be seen are there, in order and to the thousandth."""
    items = random_stream(seed)
    naive = Naive(PIPELINE)
    found, _ = feed(items, 7)
    expected = []
    for clock, fraud, row in items:
        if fraud is not None:
            naive.label(row, fraud, clock)
        elif (result := naive.event(row, clock)) is not None:
            expected.append(result.verdicts)
    assert len(found) == len(expected)
    nothing = dict.fromkeys(VERDICT_FEATURES, 0.0)
    full = 0
    for b, shown in enumerate(expected):
        for j, name in enumerate(("shop", "till")):
            wanted = [nothing] * (25 - len(shown[name])) + shown[name]
            full += len(shown[name]) == PIPELINE.profiles[name].verdicts
            for place in range(25):
                assert_close(VERDICT_FEATURES, found[b, j, place], wanted[place])
    assert full > len(expected) // 2
    assert max(map(len, naive.verdicts.values())) > 4 * capacity(PIPELINE.profiles["shop"])
    assert (found[:, 0, :, 5] != 0).any()
    assert ((found[:, 0, :, 0] == 1) & (found[:, 0, :, 5] == 0)).any(), "some ratios are unknown"


@pytest.mark.parametrize("seed", range(2))
def test_progress_within_the_delay_changes_nothing(seed: int) -> None:
    """Labels that come earlier or later, by no more than the delay, and other batches give the same bits."""
    items = random_stream(seed, minutes=300)
    rng = random.Random(seed)
    # Each label source runs up to 10 minutes ahead of or behind what it did, in steps; each keeps its own order.
    shift: dict[int, int] = {}
    order = []
    for place, (clock, fraud, _) in enumerate(items):
        key = clock // (7 * MINUTE)
        moved = shift.setdefault(key, rng.randrange(-4 * MINUTE, 5 * MINUTE)) if fraud is not None else 0
        order.append((clock + moved, place))
    again = [items[place] for _, place in sorted(order)]
    straight = [items[place] for _, place in sorted((item[0], place) for place, item in enumerate(items))]
    assert again != straight
    events = [item for item in again if item[1] is None]
    assert events == [item for item in straight if item[1] is None]
    one, other = feed(straight, 1)[0], feed(again, 50)[0]
    assert one.tobytes() == other.tobytes()


verdicts = st.lists(
    st.tuples(
        st.integers(0, 25).map(lambda n: START_MS + n * 3 * MINUTE),  # clock: eight stretches of ten minutes
        st.sampled_from([1, 2, 3, 2**63 - 1, 2**63, 2**64 - 1]),
        st.booleans(),
        st.sampled_from([-(2**31), -1, 0, 5, 2**31 - 1]),
    ),
    max_size=90,
)  # fmt: skip


@given(every=verdicts, rng=st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None, phases=PHASES)
def test_what_is_kept_is_a_function_of_the_set(every: list[tuple[int, int, bool, int]], rng: random.Random) -> None:
    """In any order, in any parts, with any repeats, a profile keeps the same bytes; and those of the definition."""
    store = MemoryStore(PIPELINE)
    for name in ("shop", "till"):
        profile = PIPELINE.profiles[name]

        def added(some: list[tuple[int, int, bool, int]], profile: Any = profile, parts: int = 3) -> np.ndarray:
            rings = store.layout.empty_profiles(profile, 1)
            for part in np.array_split(np.arange(len(some)), parts):
                clock, ids, fraud, ratio = zip(*(some[i] for i in part), strict=True) if len(part) else ((),) * 4
                accumulate(profile, rings, collect(
                    profile, np.zeros(len(part), np.int64), np.array(clock, np.int64), fraud_M=np.array(fraud, bool),
                    id_M=np.array(ids, np.uint64), ratio_M=np.array(ratio, np.int64),
                ))  # fmt: skip
            return rings[0, len(profile.half_lives) :].reshape(-1)

        shuffled = [*every, *(rng.choices(every, k=9) if every else [])]
        rng.shuffle(shuffled)
        kept = added(every)
        assert added(shuffled, parts=5).tobytes() == kept.tobytes()
        words, longs = kept.view(np.int32).reshape(-1, 6), kept.view(np.int64).reshape(-1, 3)
        found = [
            (int(lo[0]), int(np.uint64(lo[1])), bool(w[4]), int(w[5]))
            for lo, w in zip(longs, words, strict=True)
            if lo[1]
        ]
        stretch = stretch_ms(profile)
        best = sorted(set(every), key=lambda v: (-(v[0] // stretch), -v[2], v[1], v[0], v[3]))
        limited = [v for i, v in enumerate(best) if i < 4 or best[i - 4][0] // stretch != v[0] // stretch]
        stretches = [v[0] // stretch for v in limited]
        assert found == sorted(v for v in limited if sum(s > v[0] // stretch for s in stretches) <= len(kept) - 4)


def test_room_is_made_for_what_may_be_seen() -> None:
    """25 verdicts and what is spare fill a ring; a chunk of a replay may be as long as the spare room allows."""
    store, shop = MemoryStore(PIPELINE), PIPELINE.profiles["shop"]
    assert capacity(shop) == RING_SLOTS == 25 + 3 * 4 + 3
    start = START_MS // (2 * HOUR) * 2 * HOUR  # of a bucket of 12 hours' half-life
    assert safe_end_ms(store.layout, start) == start + 2 * 10 * MINUTE - 10 * MINUTE
    last = start + 2 * HOUR - 1  # of the bucket: amounts of the next one are read 10 minutes after it has ended
    assert safe_end_ms(store.layout, last) == last + 10 * MINUTE


def test_a_verdict_is_seen_when_its_stretch_has_ended() -> None:
    """Not a millisecond before `delay` after the end of its stretch of ten minutes, and never without the frauds."""
    store = MemoryStore(PIPELINE)
    start = START_MS // (10 * MINUTE) * 10 * MINUTE
    row = {"id": "e", "at": start, "card": "c", "shop": "s", "till": None, "amount": 3.0}
    rows = [row | {"id": f"e{i}"} for i in range(9)]
    fraud = [i in (2, 7) for i in range(9)]
    clock_M = start + np.arange(9) * MINUTE
    store.learn(label_batch(PIPELINE, rows, fraud, clock_M), clock_M)
    for clock, seen in ((start + 20 * MINUTE - 1, 0), (start + 20 * MINUTE, 4)):
        columns = {name: [(row | {"id": f"at-{clock}"})[name]] for name in PIPELINE.fields}
        shown = store.step(columns_to_batch(store.layout, columns), np.array([clock])).encoded.verdicts_BJSG[0, 0]
        assert shown[:, 0].sum() == seen
    assert shown[-4:, 1].sum() == 2, "both frauds"
    assert (np.diff(shown[-4:, 2]) <= 0).all(), "the newest is the last"
    assert not shown[:-4].any()
