"""What stands in Redis: refused when another layout wrote it, named by keys of one slot, and shown in words."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import StateError
from models.features.layout import RING_SLOTS, SLOT, Layout
from models.features.profiles import COUNTERS, Increments, accumulate
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline, Window
from stream.kafka import partition_for
from stream.settings import Settings
from stream.store.inspect import describe_state, find_entity, memory_by_kind, show_entity
from stream.store.keys import (
    PROFILE_SHARDS,
    Position,
    applied_key,
    event_tag,
    outbox_key,
    position_key,
    profile_key,
    profile_shard,
    state_key,
)
from stream.store.outbox import Outbox
from stream.store.records import HEADER
from stream.store.redis_store import RedisStore
from stream.store.values import state_rows
from tests.stream.batches import CARDS, MERCHANTS, TAG, process, random_columns

RECORD = np.dtype([
    ("offset", "<u4"), ("bucket", "<i4"), ("count", "<u4"), ("labels", "<u4"), ("frauds", "<u4"), ("amount", "<i8"),
])  # fmt: skip


def _far(value: bytes) -> bytes:
    """The last record's slot is one that no ring has."""
    return value[:-28] + (8 + 24 * 80).to_bytes(4, "little") + value[-24:]


def test_a_state_of_another_layout_is_refused(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """A pipeline file that was changed under the same name meets an error that says so, not numbers of other fields."""
    process(store, random_columns(1, 30), None)
    shorter = msgspec.structs.replace(pipeline, window=Window(length=31, horizons=pipeline.window.horizons))
    other = msgspec.structs.replace(pipeline, window=Window(length=32, horizons=["11m", "1h", "1d", "7d", "30d"]))
    with pytest.raises(StateError, match=r"bytes: expected .* for pipeline"):
        RedisStore(client, Layout(shorter)).load({TAG: ["c0", "nobody", "c1"]}, {})
    with pytest.raises(StateError, match=r"layout .*give the pipeline a new name"):
        RedisStore(client, Layout(other)).load({TAG: ["nobody", "c1"]}, {})
    assert len(RedisStore(client, Layout(other)).load({TAG: ["nobody"]}, {}).states_N) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: b"\x09\x00" + value[2:], "version 9"),
        (lambda value: value[:2] + b"\x00\x00\x00\x00" + value[6:], "layout 00000000"),
        (lambda value: value[:-1], "bytes: expected"),
        (lambda value: value + b"\x00", "bytes: expected"),
        (lambda value: value[:0], "0 bytes: expected"),
    ],
)
def test_a_damaged_state_is_refused(
    store: RedisStore, client: Any, pipeline_name: str, change: Any, message: str
) -> None:
    """One value of another version, layout or size among good ones stops the load."""
    process(store, random_columns(1, 30), None)
    key = state_key(pipeline_name, TAG, "c2")
    client.set(key, change(client.get(key)))
    with pytest.raises(StateError, match=message):
        store.load({TAG: CARDS}, {})


def test_two_damaged_states_cannot_make_up_for_each_other(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """One byte too many and one too few are two wrong sizes, though their sum is right."""
    process(store, random_columns(1, 30), None)
    first, second = (state_key(pipeline_name, TAG, card) for card in ("c1", "c2"))
    client.set(first, client.get(first) + b"\x00")
    client.set(second, client.get(second)[:-1])
    with pytest.raises(StateError):
        store.load({TAG: CARDS}, {})


def test_a_profile_of_other_half_lives_is_refused(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """Rings with other buckets cannot be read as ours, whether or not their size differs."""
    process(store, random_columns(1, 30), None)
    for half_lives in (["7d", "31d"], ["7d"]):
        merchant = msgspec.structs.replace(pipeline.profiles["merchant"], half_lives=half_lives)
        changed = msgspec.structs.replace(pipeline, profiles=pipeline.profiles | {"merchant": merchant})
        with pytest.raises(StateError, match="half_lives have changed"):
            RedisStore(client, Layout(changed)).load({}, {"merchant": MERCHANTS})


def test_a_profile_of_version_1_is_read_and_rewritten(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """Values of all slots in a row, as they were once stored, are the same rings, before and after additions."""
    _, held, _ = process(store, random_columns(1, 60), None)
    stored = store.load({}, {"merchant": MERCHANTS}).rings["merchant"]
    stored["amount"][2, 1, 5] = -(2**40)  # a slot that is not empty, of a bucket that is 0
    header = HEADER.pack(1, store.layout.profile_id(pipeline.profiles["merchant"]))
    keys = [profile_key(pipeline.name, "merchant", merchant) for merchant in MERCHANTS]
    for key, rings in zip(keys[:6], stored, strict=False):
        client.set(key, header + rings[:2].tobytes())  # without the rings of verdicts, which it did not know
        assert client.strlen(key) == store.formats["merchant"].dense_size == 1928
    np.testing.assert_array_equal(store.load({}, {"merchant": MERCHANTS}).rings["merchant"], stored)
    _, _, outbox = process(store, random_columns(2, 60, first_id=100), held, apply=False)
    for name, merchant, packed in outbox.items:
        if name == "merchant":
            added = np.frombuffer(packed, RECORD)
            ring, _ = np.divmod((added["offset"].astype(np.int64) - HEADER.size) // SLOT.itemsize, RING_SLOTS)
            owner = np.full(len(added), MERCHANTS.index(merchant))
            columns = (added[column].astype(np.int64) for column in ("bucket", *COUNTERS))
            accumulate(pipeline.profiles["merchant"], stored, Increments(owner, ring, *columns))
    store.apply([(TAG, outbox)])
    np.testing.assert_array_equal(store.load({}, {"merchant": MERCHANTS}).rings["merchant"], stored)
    assert {client.get(key)[0] for key in keys} == {2}


@pytest.mark.parametrize("change", [lambda v: v[:-1], lambda v: v[:7], lambda v: v + bytes(4), lambda v: v[:0], _far])
def test_a_damaged_profile_is_refused(store: RedisStore, client: Any, pipeline_name: str, change: Any) -> None:
    """Half a record, half a header or a slot that no ring has stops load and apply; nothing was added before."""
    _, _, outbox = process(store, random_columns(1, 30), None)
    key = profile_key(pipeline_name, "merchant", "m1")
    damaged = change(client.get(key))
    client.set(key, damaged)
    with pytest.raises(StateError, match="half_lives have changed"):
        store.load({}, {"merchant": MERCHANTS})
    if change is not _far:  # the script adds to slots without a look at the others
        with pytest.raises(StateError, match="half_lives have changed"):
            store.apply([(TAG, Outbox(outbox.number + 1, outbox.items))])
        assert client.get(key) == damaged


@pytest.mark.parametrize("record", [b"", b"x", Position().pack() + b"\0", b"\x02\x00" + Position().pack()[2:]])
def test_a_damaged_position_is_refused(store: RedisStore, client: Any, pipeline_name: str, record: bytes) -> None:
    """A position of another version or size is an error, not the beginning of the topic."""
    client.set(position_key(pipeline_name, TAG), record)
    with pytest.raises(StateError, match="position record has"):
        store.load({TAG: []}, {})
    with pytest.raises(StateError, match="position record has"):
        store.recover(TAG)


@given(st.builds(Position, st.integers(0, 2**62), st.integers(-(2**62), 2**62), st.integers(0, 2**63)))
def test_a_position_survives(position: Position) -> None:
    """Packed and unpacked it is the same, and its size is fixed."""
    assert Position.unpack(position.pack()) == position
    assert len(position.pack()) == 26


def test_keys_of_one_partition_share_a_slot_tag() -> None:
    """What one transaction or script touches has one hash tag, whatever braces stand in names."""

    def tag(key: str) -> str:
        return key[key.index("{") + 1 : key.index("}")]

    keys = [position_key("p", "3"), outbox_key("p", "3"), *(state_key("p", "3", e) for e in ("a", "{b}", "}{"))]
    assert {tag(key) for key in keys} == {"3"}
    for value in ("m", "{x}", "}"):
        shard = profile_shard("merchant", value)
        assert tag(profile_key("p", "merchant", value)) == tag(applied_key("p", shard)) == f"p{shard}"
    assert {profile_shard("merchant", str(i)) for i in range(500)} == set(range(PROFILE_SHARDS))


def test_state_show_tells_what_the_state_holds(store: RedisStore, settings: Settings, pipeline: Pipeline) -> None:
    """The printed state is the packed one in words, and it says where it was found."""
    columns = random_columns(1, 30)
    process(store, columns, None)
    shown = json.loads(show_entity(settings, pipeline, "c1"))
    own = [i for i, card in enumerate(columns["card_id"]) if card == "c1"]
    assert (shown["events"], shown["partition"], shown["version"]) == (len(own), 3, 2)
    assert shown["key"] == state_key(pipeline.name, TAG, "c1")
    assert shown["bytes"] == store.layout.state_dtype.itemsize
    assert 0 < shown["expires_in_ms"] <= store.ttl_ms
    assert [row["amount"] for row in shown["window"]] == pytest.approx([columns["amount"][i] for i in own], rel=1e-6)
    assert all(row["card_present"] is None and row["merchant_category"] is None for row in shown["window"])
    newest = columns["timestamp"][own[-1]]
    assert shown["clock"] == shown["window"][-1]["time"]
    assert shown["clock"].startswith("2023-11-1")
    assert shown["clock"].endswith(f".{newest % 1000:03d}Z")
    assert set(shown["decayed"]) == set(pipeline.window.horizons)
    assert len(own) - 1 < shown["decayed"]["30d"]["events"] <= len(own)
    assert shown["decayed"]["10m"]["events"] < shown["decayed"]["30d"]["events"]
    assert set(shown["habits"]) == {"amount", "gap", "merchant_id", "device_id", "location"}
    assert shown["habits"]["amount"]["known"] == len(own)
    assert int(shown["habits"]["merchant_id"]["younger"], 16) > 0


def test_state_show_knows_no_stranger(settings: Settings, pipeline: Pipeline) -> None:
    """An entity without a state is an error that names it."""
    with pytest.raises(StateError, match=r"'nobody'.*no state in Redis"):
        show_entity(settings, pipeline, "nobody")


def test_an_entity_is_found_in_any_partition(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """Where the default partitioner puts it, and where another producer's did."""
    states = store.layout.empty_states(1)
    for partition in range(4):
        entity = f"e-{partition}"
        store.client.set(state_key(pipeline.name, event_tag(partition), entity), state_rows(states)[0].tobytes())
        found = find_entity(client, pipeline, entity, 4)
        assert found is not None
        assert found["partition"] == partition
    assert {partition_for(f"e-{p}".encode(), 4) == p for p in range(4)} == {True, False}
    assert find_entity(client, pipeline, "e-3", 3) is None


def test_an_empty_state_can_be_described() -> None:
    """A state that no event ever reached has no clock and no window."""
    layout = Layout(load_pipeline("payments"))
    shown = describe_state(layout, state_rows(layout.empty_states(1))[0].tobytes())
    assert (shown["events"], shown["clock"], shown["window"]) == (0, None, [])


def test_memory_is_told_by_kind(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """Every state and profile is counted once, and costs Redis its value and less than 200 bytes more."""
    columns = random_columns(1, 60)
    process(store, columns, None)
    found = memory_by_kind(client, pipeline, sample=3)
    devices = {device for device in columns["device_id"] if device is not None}
    assert {kind: facts["keys"] for kind, facts in found.items()} == {
        "state": len(CARDS), "card": len(CARDS), "merchant": len(MERCHANTS), "device": len(devices),
    }  # fmt: skip
    assert found["state"]["value_bytes"] == store.layout.state_dtype.itemsize
    assert 8 + 28 * 2 <= found["merchant"]["value_bytes"] < 1000, "only slots that hold something are stored"
    assert all(0 < facts["memory_bytes"] - facts["value_bytes"] < 200 for facts in found.values())
