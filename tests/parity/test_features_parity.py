"""The vectorised feature path against a naive loop, and against itself in other batches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models.columns import columns_to_batch
from models.events import LabelBatch
from models.features.encoded import VERDICT_FEATURES, Encoded
from models.features.layout import RING_SLOTS, Layout
from models.features.memory import MemoryStore
from models.hashing import hash_ids
from models.pipeline.load import load_pipeline, parse_pipeline
from models.pipeline.spec import (
    BooleanField,
    CategoryField,
    EntityField,
    GeoField,
    NumberField,
    Pipeline,
    Window,
)  # fmt: skip
from tests.parity.naive import Naive, Result
from tests.parity.pipelines import GREENHOUSE, METER
from tests.parity.same_habits import assert_same_habits, tolerance

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)  # to explain a failure takes minutes
START_MS = 1_700_000_000_000
SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
GAPS_MS = (0, 0, 1, 90 * SECOND, 7 * MINUTE + 1, 10 * MINUTE, 45 * MINUTE, HOUR, 5 * HOUR, DAY, 3 * DAY + 5, 40 * DAY)
BACK_MS = (0, 0, 0, 0, 1, 20 * SECOND, 11 * MINUTE, 3 * HOUR, 2 * DAY)  # how late an event is


def short_payments() -> Pipeline:
    """Payments with a window that a short stream fills."""
    return msgspec.structs.replace(
        load_pipeline("payments"), window=Window(length=5, horizons=["10m", "1h", "1d", "7d", "30d"])
    )


PIPELINES = {
    "payments": short_payments(),
    "greenhouse": parse_pipeline(GREENHOUSE, "greenhouse.toml"),
    "meter": parse_pipeline(METER, "meter.toml"),
}


@dataclass(frozen=True)
class Item:
    """An event (a row by field name) or a label of a stream, with its partition's clock."""

    clock: int
    row: dict[str, Any]
    fraud: bool | None = None  # None: an event


# What hypothesis chooses for one step of a stream: entity, gap, lateness, kind, seed of the values.
choices = st.tuples(
    st.integers(0, 2),
    st.integers(0, len(GAPS_MS) - 1),
    st.integers(0, len(BACK_MS) - 1),
    st.sampled_from("eeeeeeeeedol"),  # event, repeat of a recent event, repeat of an old one, label
    st.integers(0, 40),
)
Step = tuple[int, int, int, str, int]
streams = st.lists(choices, min_size=1, max_size=60)


def build(pipeline: Pipeline, steps: list[Step]) -> list[Item]:
    """Steps as events and labels, in the order in which one worker sees them."""
    items: list[Item] = []
    rows: list[dict[str, Any]] = []
    now = clock = label_clock = START_MS
    for number, (entity, gap, back, kind, seed) in enumerate(steps):
        now += GAPS_MS[gap]
        if kind == "l" and rows:
            label_clock = max(label_clock, now - BACK_MS[back])
            items.append(Item(label_clock, rows[seed % len(rows)], fraud=seed % 3 == 0))
            continue
        if kind in "do" and rows:
            old = rows[-1 - seed % min(len(rows), 3 if kind == "d" else 40)]
            row = old | {pipeline.pipeline.time: now}  # sent again, under the same id
        else:
            row = random_row(pipeline, random.Random(seed)) | {
                pipeline.entity: f"entity-{entity}", pipeline.pipeline.event_id: f"id-{number}",
                pipeline.pipeline.time: now - BACK_MS[back],
            }  # fmt: skip
        rows.append(row)
        clock = max(clock, row[pipeline.pipeline.time])
        items.append(Item(clock, row))
    return items


def random_row(pipeline: Pipeline, rng: random.Random) -> dict[str, Any]:
    """Values of few kinds, so that they repeat; a third of what is optional is missing."""
    row: dict[str, Any] = {}
    for name, field in pipeline.fields.items():
        if not field.required and rng.random() < 0.35:
            continue
        if isinstance(field, NumberField):
            low, high = (field.min, 500.0) if field.min is not None else (-50.0, 50.0)
            row[name] = rng.choice([low, high, rng.uniform(low, high), round(rng.uniform(low, high), 2)])
        elif isinstance(field, BooleanField):
            row[name] = rng.random() < 0.5
        elif isinstance(field, GeoField):
            row |= {f"{name}.latitude": rng.uniform(-89, 89), f"{name}.longitude": rng.uniform(-180, 180)}
        elif isinstance(field, CategoryField):
            row[name] = rng.choice(["", "a", "b", "c", 7, True])
        elif isinstance(field, EntityField):
            row[name] = rng.choice([f"{name}-1", f"{name}-2", 3])
    return row


@dataclass
class Outcome:
    """What a store made of a stream: windows of the applied events, their positions, and which were late."""

    encoded: Encoded
    applied: list[int]
    late: list[bool]
    store: MemoryStore


def run(pipeline: Pipeline, items: list[Item], cuts: set[int]) -> Outcome:
    """Feed a stream in batches; a label always ends one, and `cuts` are the positions where another does."""
    store = MemoryStore(pipeline)
    parts, applied, late = [], [], []
    first = 0
    while first < len(items):
        last = first + 1
        while last < len(items) and last not in cuts and (items[last].fraud is None) == (items[first].fraud is None):
            last += 1
        batch = items[first:last]
        clock_M = np.array([item.clock for item in batch], dtype=np.int64)
        if batch[0].fraud is None:
            columns = {name: [item.row.get(name) for item in batch] for name in column_names(pipeline)}
            step = store.step(columns_to_batch(store.layout, columns), clock_M)
            parts.append(step.encoded)
            applied += (first + step.applied_A).tolist()
            late += step.late_A.tolist()
        else:
            store.learn(label_batch(pipeline, batch), clock_M)
        first = last
    return Outcome(Encoded.concatenate(parts), applied, late, store)


def label_batch(pipeline: Pipeline, items: list[Item]) -> LabelBatch:
    def key(row: dict[str, Any], name: str) -> str | None:
        return None if row.get(name) is None else str(row[name])

    ids = [item.row[pipeline.pipeline.event_id] for item in items]
    return LabelBatch(
        event_id=ids,
        id_hash_M=hash_ids(ids),
        time_M=np.array([item.clock for item in items], dtype=np.int64),
        fraud_M=np.array([bool(item.fraud) for item in items]),
        profile_keys={n: [key(item.row, p.key) for item in items] for n, p in pipeline.profiles.items()},
        amounts={n: np.array([item.row.get(n) for item in items], dtype=float) for n in pipeline.label_amounts},
    )


def column_names(pipeline: Pipeline) -> list[str]:
    names = [n for n in pipeline.fields if n not in pipeline.of_type(GeoField)]
    return names + [f"{n}.{part}" for n in pipeline.of_type(GeoField) for part in ("latitude", "longitude")]


def run_naive(pipeline: Pipeline, items: list[Item]) -> tuple[dict[int, Result], Naive]:
    naive = Naive(pipeline)
    results = {}
    for place, item in enumerate(items):
        if item.fraud is not None:
            naive.label(item.row, item.fraud, item.clock)
        elif (result := naive.event(item.row, item.clock)) is not None:
            results[place] = result
    return results, naive


def assert_same_features(pipeline: Pipeline, outcome: Outcome, results: dict[int, Result]) -> None:
    inputs = Layout(pipeline).inputs
    assert outcome.applied == list(results)
    assert outcome.late == [result.late for result in results.values()]
    assert outcome.encoded.x_BLF.shape == (len(results), pipeline.window.length, len(inputs.x))
    for b, result in enumerate(results.values()):
        assert outcome.encoded.mask_BL[b].tolist() == [x is not None for x in result.x]
        assert_close(inputs.context, outcome.encoded.context_BC[b], result.context)
        for j, (name, seen) in enumerate(result.verdicts.items()):
            assert inputs.verdicts[j] == name
            nothing = dict.fromkeys(VERDICT_FEATURES, 0.0)
            for found, expected in zip(
                outcome.encoded.verdicts_BJSG[b, j], [nothing] * (inputs.verdict_length - len(seen)) + seen, strict=True
            ):
                assert_close(VERDICT_FEATURES, found, expected)
        for place, (x, codes) in enumerate(zip(result.x, result.codes, strict=True)):
            expected_x = x or dict.fromkeys(inputs.x, 0.0)
            assert_close(inputs.x, outcome.encoded.x_BLF[b, place], expected_x)
            names = [name for name, _ in inputs.codes]
            found_codes = dict(zip(names, outcome.encoded.codes_BLK[b, place].tolist(), strict=True))
            assert found_codes == (codes or dict.fromkeys(names, 0))


def assert_close(names: tuple[str, ...], found: np.ndarray, expected: dict[str, float]) -> None:
    assert set(names) == set(expected)
    wrong = {
        name: (value, expected[name])
        for name, value in zip(names, found.tolist(), strict=True)
        if not np.isclose(value, expected[name], rtol=2e-6, atol=tolerance(name))
    }
    assert not wrong


def assert_same_states(pipeline: Pipeline, store: MemoryStore, naive: Naive) -> None:
    """Windows, clocks and decayed sums of every entity, and every profile ring, as the loop remembers them."""
    layout = store.layout
    for name, entity in naive.entities.items():
        state = store.state(name)[0]
        assert (int(state["count"]), int(state["clock"])) == (len(entity.past), entity.clock)
        kept = entity.past[-pipeline.window.length :]
        rows = state["rows"][len(state["rows"]) - len(kept) :]
        assert not state["rows"]["id"][: len(state["rows"]) - len(kept)].any()
        assert rows["time"].tolist() == [e.time for e in kept]
        for column, value in enumerate(layout.values):
            np.testing.assert_equal(rows["values"][:, column], np.array([e.values[value] for e in kept], np.float32))
        for column, value in enumerate(layout.hashes):
            assert rows["hashes"][:, column].tolist() == [e.hashes[value] or 0 for e in kept]
        for h, horizon in enumerate(pipeline.window.horizons_ms):
            weights = [np.exp(-(entity.clock - e.time) / horizon) for e in entity.past]
            assert np.isclose(state["decayed"][h, 0], sum(weights), rtol=1e-9)
            for v, number in enumerate(naive.numbers):
                x = [(w, e.values[number]) for w, e in zip(weights, entity.past, strict=True)]
                sums = [sum(w * value**power for w, value in x if value is not None) for power in (0, 1, 2)]
                assert np.allclose(state["decayed"][h, 1 + 3 * v : 4 + 3 * v], sums, rtol=1e-9, atol=1e-9)
        assert_same_habits(layout, state, entity)
    for (name, key), past in naive.profiles.items():
        rings = store.profile(name, key)[0]
        for r, half_life in enumerate(pipeline.profiles[name].half_lives_ms):
            buckets = [added.clock // (half_life // 6) for added in past]
            for bucket in range(max(buckets) - RING_SLOTS + 1, max(buckets) + 1):
                slot = rings[r, bucket % RING_SLOTS]
                own = [a for a, b in zip(past, buckets, strict=True) if b == bucket]
                if own:
                    totals = [sum(getattr(a, n) for a in own) for n in ("events", "labels", "frauds", "amount")]
                    assert slot.tolist() == (bucket, *totals)
                else:
                    assert slot["bucket"] != bucket


@pytest.mark.parametrize("name", PIPELINES)
@given(steps=streams, cuts=st.sets(st.integers(1, 60)))
@settings(max_examples=120, deadline=None, phases=PHASES)
def test_a_batch_is_the_naive_loop(name: str, steps: list[Step], cuts: set[int]) -> None:
    """Whatever the stream and its batches, every feature and every state is what the naive loop computes."""
    pipeline = PIPELINES[name]
    items = build(pipeline, steps)
    results, naive = run_naive(pipeline, items)
    if not results:
        return
    outcome = run(pipeline, items, cuts)
    assert_same_features(pipeline, outcome, results)
    assert_same_states(pipeline, outcome.store, naive)


@pytest.mark.parametrize("name", PIPELINES)
@given(steps=streams, cuts=st.sets(st.integers(1, 60)))
@settings(max_examples=80, deadline=None, phases=PHASES)
def test_how_a_stream_is_cut_changes_no_bit(name: str, steps: list[Step], cuts: set[int]) -> None:
    """Any split into batches gives the same windows, states and profiles as one event at a time, to the bit."""
    pipeline = PIPELINES[name]
    items = build(pipeline, steps)
    if any(item.fraud is None for item in items):
        assert_same_bits(run(pipeline, items, set(range(len(items)))), run(pipeline, items, cuts))


@pytest.mark.parametrize(
    ("name", "seed"), [("payments", 1), ("payments", 2), ("greenhouse", 3), ("greenhouse", 4), ("meter", 5)]
)
def test_a_long_stream_of_the_whole_window(name: str, seed: int) -> None:
    """Over hundreds of events, past the full window of the shipped payments file, nothing drifts apart."""
    pipeline = load_pipeline("payments") if name == "payments" else PIPELINES[name]
    rng = random.Random(seed)
    kinds = "e" * 20 + "dol"
    late = [0, 0, 0, 4, 6]
    steps = [
        (int(2.99 * rng.random() ** 2), rng.randrange(8), rng.choice(late), rng.choice(kinds), rng.randrange(999))
        for _ in range(350)
    ]
    items = build(pipeline, steps)
    results, naive = run_naive(pipeline, items)
    whole = run(pipeline, items, set())
    assert_same_features(pipeline, whole, results)
    assert_same_states(pipeline, whole.store, naive)
    assert_same_bits(run(pipeline, items, set(range(len(items)))), whole)
    assert_same_bits(run(pipeline, items, {rng.randrange(len(items)) for _ in range(25)}), whole)


def test_a_batch_that_covers_more_time_than_a_profile_ring() -> None:
    """What the first events of a batch still read is not pushed out of a ring by what the last ones add."""
    pipeline = PIPELINES["greenhouse"]
    base = random_row(pipeline, random.Random(8)) | {"pump": "pump-1", "tank": "tank-1", "heat": 2.5, "bed": "b"}
    # one event in each bucket of the shortest ring for twice the ring, so every slot is wanted by somebody
    items = [
        Item(START_MS + i * 17 * MINUTE, base | {"reading": f"r{i}", "at": START_MS + i * 17 * MINUTE})
        for i in range(2 * RING_SLOTS)
    ]
    results, _ = run_naive(pipeline, items)
    whole = run(pipeline, items, set())
    assert_same_features(pipeline, whole, results)
    assert_same_bits(run(pipeline, items, set(range(len(items)))), whole)


def test_what_the_streams_of_these_tests_contain() -> None:
    """The seeded stream has late events, duplicates, ties, missing values and labels: the rest would prove little."""
    pipeline = PIPELINES["payments"]
    rng = random.Random(0)
    steps = [(rng.randrange(3), rng.randrange(12), rng.randrange(9), rng.choice("eeeedol"), i) for i in range(400)]
    items = build(pipeline, steps)
    results, naive = run_naive(pipeline, items)
    events = [item for item in items if item.fraud is None]
    assert 20 < sum(result.late for result in results.values()) < len(results) - 20
    assert len(events) - len(results) > 20, "duplicates"
    assert sum(item.fraud is True for item in items) > 5
    assert sum(item.fraud is False for item in items) > 5
    assert {"device_id" in item.row for item in events} == {True, False}
    rates = [v for r in results.values() for n, v in r.context.items() if ".fraud_rate." in n]
    assert any(0 < rate < 1 for rate in rates), "labels were learnt"
    assert all(len(entity.past) > 20 for entity in naive.entities.values()), "windows overflow"


def assert_same_bits(a: Outcome, b: Outcome) -> None:
    assert (a.applied, a.late) == (b.applied, b.late)
    for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
        left, right = getattr(a.encoded, name), getattr(b.encoded, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name
    assert set(a.store._states.index) == set(b.store._states.index)
    for entity in a.store._states.index:
        assert a.store.state(entity).tobytes() == b.store.state(entity).tobytes(), entity
    for name, rows in a.store._profiles.items():
        assert set(rows.index) == set(b.store._profiles[name].index)
        for key in rows.index:
            assert np.array_equal(a.store.profile(name, key), b.store.profile(name, key)), (name, key)
