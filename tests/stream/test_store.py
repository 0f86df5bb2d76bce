"""States, positions and shared profiles on a real Redis-protocol server: fenced, exactly once, and of one layout."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.columns import columns_to_batch
from models.errors import StateError
from models.features.layout import RING_SLOTS, Layout
from models.features.memory import MemoryStore
from models.features.profiles import Increments, accumulate, collect
from models.pipeline.spec import Pipeline
from stream.local import LocalServices
from stream.redis import connect
from stream.settings import Settings
from stream.store.inspect import show_entity
from stream.store.keys import (
    PROFILE_SHARDS,
    Position,
    applied_key,
    event_tag,
    label_tag,
    outbox_key,
    position_key,
    profile_key,
    profile_shard,
    state_key,
)  # fmt: skip
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore, Write
from tests.conftest import MakeSettings
from tests.stream.batches import CARDS, DAY_MS, MERCHANTS, START_MS, TAG, process, random_columns

MERCHANT_RINGS = 2  # that count; those of the verdicts are empty here


def rings_of(store: RedisStore, profile: str, keys: list[str]) -> NDArray[np.void]:
    return store.load({}, {profile: keys}).rings[profile]


DEVICES = [f"d{i}" for i in range(1, 7)]


def assert_same_as_memory(store: RedisStore, memory: MemoryStore) -> None:
    states = store.load({TAG: CARDS}, {}).states_N
    for card, state in zip(CARDS, states, strict=True):
        assert state.tobytes() == memory.state(card)[0].tobytes(), card
    for profile, keys in (("merchant", MERCHANTS), ("device", DEVICES)):
        for key, rings in zip(keys, rings_of(store, profile, keys), strict=True):
            np.testing.assert_array_equal(rings, memory.profile(profile, key)[0])


def run_batches(store: RedisStore) -> None:
    """Four batches through a store, and the same four through memory."""
    memory, held = MemoryStore(store.layout.pipeline), None
    for number, count in enumerate((7, 1, 60, 23)):
        columns = random_columns(number, count, first_id=100 * number)
        clock = held.clock_ms if held else 0
        result, held, _ = process(store, columns, held)
        batch = columns_to_batch(store.layout, columns)
        expected = memory.step(batch, np.maximum.accumulate(np.maximum(batch.time_M, clock)))
        for part in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
            np.testing.assert_array_equal(getattr(result.encoded, part), getattr(expected.encoded, part))
    assert_same_as_memory(store, memory)
    assert held is not None
    assert store.load({TAG: []}, {}).positions == {TAG: held}
    assert store.recover(TAG) == held
    assert_same_as_memory(store, memory)


def test_a_store_is_to_redis_what_it_is_to_memory(store: RedisStore) -> None:
    """Windows, states and profiles that went through Redis are the ones that stayed in memory, to the bit."""
    run_batches(store)


def test_everything_works_on_a_cluster(tmp_path: Path, pipeline: Pipeline, make_settings: MakeSettings) -> None:
    """The same on Redis Cluster, where a command that touched keys of two slots would fail; so does `state show`."""
    with LocalServices(tmp_path / "cluster", cluster=True) as services:
        settings = make_settings(redis_port=services.redis_port, redis_cluster=True)
        client = connect(settings)
        store = RedisStore(client, Layout(pipeline))
        run_batches(store)
        shards = {profile_shard("merchant", key) for key in MERCHANTS}
        assert len(shards) > 3, "several slots are touched"
        assert json.loads(show_entity(settings, pipeline, "c1"))["partition"] == 3
        client.close()


def test_nothing_is_loaded_of_what_nobody_stored(store: RedisStore) -> None:
    """An unknown source has no position, and unknown entities and profiles are empty ones."""
    loaded = store.load({"0": ["a", "b"], "1": []}, {"merchant": ["m"], "device": []})
    assert loaded.positions == {"0": None, "1": None}
    assert loaded.states_N.tobytes() == store.layout.empty_states(2).tobytes()
    assert loaded.rings["merchant"].shape == (1, MERCHANT_RINGS + 2, RING_SLOTS)
    assert loaded.rings["device"].shape == (0, 1 + 1, RING_SLOTS)
    assert not any(loaded.rings["merchant"][name].any() for name in loaded.rings["merchant"].dtype.names)
    assert store.recover("0") is None


@pytest.mark.parametrize("expected", [None, Position(8, 5, 1), Position(9, 6, 1), Position(9, 5, 2), Position(0, 0, 0)])
def test_a_writer_that_was_overtaken_writes_nothing(
    store: RedisStore, client: Any, pipeline_name: str, expected: Position | None
) -> None:
    """With any other position than the one held, neither state nor outbox nor position changes."""
    held = Position(9, 5, 1)
    states = store.layout.empty_states(2)
    states["count"] = [1, 2]
    assert store.store([Write(TAG, None, held, Outbox(1, []), ["a", "b"], states)])[0]
    before = {key: client.get(key) for key in client.scan_iter(match=f"{pipeline_name}:*")}
    assert len(before) == 4
    states["count"] = 77
    late = Outbox(2, [("merchant", "m", b"x" * 28)])
    assert not store.store([Write(TAG, expected, Position(20, 20, 2), late, ["a", "new"], states)])[0]
    assert {key: client.get(key) for key in client.scan_iter(match=f"{pipeline_name}:*")} == before


def test_an_outbox_entry_that_is_none_is_named(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """What somebody else wrote there stops whoever takes the source over, with the reason."""
    client.set(outbox_key(pipeline_name, TAG), b"\xc1 no entry")
    with pytest.raises(StateError, match="outbox entry has 10 bytes"):
        store.recover(TAG)


def test_a_first_writer_must_be_first(store: RedisStore) -> None:
    """Of two that both found nothing, one writes; positions of other sources are no hindrance."""
    assert store.store([Write(TAG, None, Position(1, 1, 1), Outbox(1, []))])[0]
    assert not store.store([Write(TAG, None, Position(2, 2, 1), Outbox(1, []))])[0]
    assert store.store([Write(label_tag(3), None, Position(2, 2, 1), Outbox(1, []))])[0]
    zeros = Write("7", Position(), Position(2, 2, 1), Outbox(1, []))
    assert not store.store([zeros])[0], "nothing is not a position of zeros"


def test_of_many_writers_one_wins(settings: Settings, pipeline: Pipeline) -> None:
    """Of writers that hold the same position at the same moment exactly one is let through, every time."""
    clients = [connect(settings) for _ in range(4)]
    stores = [RedisStore(c, Layout(pipeline)) for c in clients]
    barrier = threading.Barrier(len(stores))
    won: list[tuple[int, int]] = []

    def compete(writer: int) -> None:
        for turn in range(20):
            barrier.wait()
            held = None if turn == 0 else Position(turn, 0, turn)
            write = Write(TAG, held, Position(turn + 1, 0, turn + 1), Outbox(turn + 1, []))
            if stores[writer].store([write])[0]:
                won.append((turn, writer))

    threads = [threading.Thread(target=compete, args=(w,)) for w in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [turn for turn, _ in sorted(won)] == list(range(20))
    for client in clients:
        client.close()


def test_an_outbox_counts_once(store: RedisStore) -> None:
    """Applied again, recovered, or older than one that was applied: the profiles stay as they are."""
    _, held, first = process(store, random_columns(1, 30), None)
    after_first = rings_of(store, "merchant", MERCHANTS)
    assert after_first["count"].sum() == MERCHANT_RINGS * 30, "each event is in the ring of each half-life"
    for _ in range(2):
        store.apply([(TAG, first)])
        assert store.recover(TAG) == held
    np.testing.assert_array_equal(rings_of(store, "merchant", MERCHANTS), after_first)
    _, _, second = process(store, random_columns(2, 20, first_id=50), held)
    after_second = rings_of(store, "merchant", MERCHANTS)
    assert after_second["count"].sum() == MERCHANT_RINGS * 50
    for outbox in (first, second, first):
        store.apply([(TAG, outbox)])
    np.testing.assert_array_equal(rings_of(store, "merchant", MERCHANTS), after_second)


def test_what_the_last_owner_left_is_applied(store: RedisStore) -> None:
    """A worker that dies between storing and applying leaves an entry that whoever takes over applies, once."""
    _, held, _ = process(store, random_columns(1, 30), None, apply=False)
    assert not rings_of(store, "merchant", MERCHANTS)["count"].any()
    assert store.recover(TAG) == held
    assert rings_of(store, "merchant", MERCHANTS)["count"].sum() == MERCHANT_RINGS * 30
    assert rings_of(store, "device", DEVICES)["count"].sum() > 0
    store.recover(TAG)
    assert rings_of(store, "merchant", MERCHANTS)["count"].sum() == MERCHANT_RINGS * 30


def test_what_was_half_applied_is_completed(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """An entry is applied shard by shard; one that stopped between two shards is completed without repeating any."""
    _, _, outbox = process(store, random_columns(1, 30), None, apply=False)
    shards: dict[int, list[tuple[str, str, bytes]]] = {}
    for item in outbox.items:
        shards.setdefault(profile_shard(item[0], item[1]), []).append(item)
    assert len(shards) > 4
    some = {shard for shard in shards if shard % 2}
    store.apply([(TAG, Outbox(outbox.number, [item for shard in some for item in shards[shard]]))])
    done = {s for s in range(PROFILE_SHARDS) if client.hget(applied_key(pipeline_name, s), TAG) == b"1"}
    assert done == some
    store.recover(TAG)
    assert rings_of(store, "merchant", MERCHANTS)["count"].sum() == MERCHANT_RINGS * 30


def test_sources_do_not_hide_each_others_entries(store: RedisStore) -> None:
    """Entry 1 of another partition, or of the labels, is another entry."""
    _, _, outbox = process(store, random_columns(1, 30), None)
    for number, tag in enumerate((event_tag(0), label_tag(3)), start=2):
        store.apply([(tag, outbox)])
        assert rings_of(store, "merchant", MERCHANTS)["count"].sum() == MERCHANT_RINGS * 30 * number


# (ring, bucket, events, labels, frauds, amount in thousandths) of one of two profiles
additions = st.tuples(
    st.integers(0, 1), st.integers(0, 1), st.integers(0, 130), st.integers(0, 2**20), st.integers(0, 1000),
    st.integers(0, 1000), st.integers(-(2**40), 2**40),
)  # fmt: skip


@given(entries=st.lists(st.lists(additions, max_size=12), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_adds_as_accumulate_does(
    store: RedisStore, client: Any, pipeline_name: str, entries: list[list[tuple[int, ...]]]
) -> None:
    """Whatever is added in whatever order of time, Redis ends with the rings that numpy computes."""
    for key in client.scan_iter(match=f"{pipeline_name}:*"):
        client.delete(key)
    profile = store.layout.pipeline.profiles["merchant"]
    rings = store.layout.empty_profiles(profile, 2)
    for number, rows in enumerate(entries, start=1):
        unique = {row[:3]: row for row in sorted(rows)}  # increments name each bucket once
        added = Increments(*np.array(list(unique.values()), dtype=np.int64).reshape(-1, 7).T)
        accumulate(profile, rings, added)
        store.apply([("0", make_outbox(number, store.formats, {"merchant": ["a", "b"]}, {"merchant": added}))])
    np.testing.assert_array_equal(rings_of(store, "merchant", ["a", "b"]), rings)


def test_amounts_at_their_limits_are_exact(store: RedisStore) -> None:
    """The largest amount an event may add goes through the script's doubles unharmed."""
    profile = store.layout.pipeline.profiles["merchant"]
    rings = store.layout.empty_profiles(profile, 1)
    amounts = np.array([3.4e38, -3.4e38, 0.001, np.nan, 1e12, 1e12, 123456.789])
    for number, amount in enumerate(amounts, start=1):
        added = collect(profile, np.zeros(1, np.int64), np.array([START_MS]), amount_M=np.array([amount]))
        accumulate(profile, rings, added)
        store.apply([("0", make_outbox(number, store.formats, {"merchant": ["a"]}, {"merchant": added}))])
    found = rings_of(store, "merchant", ["a"])
    np.testing.assert_array_equal(found, rings)
    slot = found[0, 0][found[0, 0]["count"] > 0]
    assert (slot["count"].tolist(), slot["amount"].tolist()) == ([7], [2 * 10**15 + 123_456_790])


def test_what_nobody_hears_of_expires(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """States and profiles live for the pipeline's time-to-live; positions and the record of entries for ever."""
    ttl_ms = store.ttl_ms
    assert ttl_ms == 90 * DAY_MS
    process(store, random_columns(1, 30), None)
    for card in CARDS:
        assert ttl_ms - 60_000 < client.pttl(state_key(pipeline_name, TAG, card)) <= ttl_ms
    profiles = [profile_key(pipeline_name, "merchant", m) for m in MERCHANTS]
    for key in profiles:
        assert 200 * DAY_MS - 60_000 < client.pttl(key) <= 200 * DAY_MS, "40 buckets of a sixth of 30 days"
    kept = [position_key(pipeline_name, TAG), outbox_key(pipeline_name, TAG)]
    kept += [applied_key(pipeline_name, profile_shard("merchant", m)) for m in MERCHANTS]
    assert {client.pttl(key) for key in kept} == {-1}
    client.pexpire(profiles[0], 5000)
    client.pexpire(state_key(pipeline_name, TAG, "c0"), 5000)
    process(store, random_columns(1, 30, first_id=50), store.recover(TAG))
    assert client.pttl(profiles[0]) > 6000, "being heard of starts it again"
    assert client.pttl(state_key(pipeline_name, TAG, "c0")) > 6000
