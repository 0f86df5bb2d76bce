"""Verdicts through a real server: the script keeps what numpy keeps, once, and labels come to what memory comes to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from faust.types import TP
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.codec import Codec
from models.columns import columns_to_batch
from models.errors import StateError
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.features.profiles import Increments, accumulate, collect
from models.features.verdicts import UNKNOWN_RATIO
from models.pipeline.spec import Pipeline
from stream.delivery import Delivery
from stream.labelling import LabelProcessor
from stream.publisher import Publisher
from stream.settings import Settings
from stream.store.keys import label_tag, profile_key
from stream.store.outbox import make_outbox
from stream.store.redis_store import RedisStore
from stream.transport import Chunk
from tests.stream.batches import CARDS, DAY_MS, MERCHANTS, START_MS, process, random_columns

HOUR, TP_LABELS = 3_600_000, TP("labels", 0)
IDS = (1, 2**32 - 1, 2**32, 2**53 + 1, 2**53 + 2, 2**63 - 1, 2**63, 2**64 - 1)

Verdict = tuple[int, int, int, bool, int]  # owner, clock, id, fraud, ratio
verdicts = st.tuples(
    st.integers(0, 1), st.integers(0, 60).map(lambda n: START_MS + n * HOUR // 2), st.sampled_from(IDS),
    st.booleans(), st.sampled_from([UNKNOWN_RATIO, -2, -1, 0, 7, 2**31 - 1]),
)  # fmt: skip


def added(store: RedisStore, some: list[Verdict], name: str = "merchant") -> Increments:
    columns = np.array([(*row[:2], 0, *row[3:]) for row in some], np.int64).reshape(-1, 5)
    ids = np.array([row[2] for row in some], np.uint64)
    return collect(
        store.layout.pipeline.profiles[name], columns[:, 0], columns[:, 1], fraud_M=columns[:, 3] > 0, id_M=ids,
        ratio_M=columns[:, 4],
    )  # fmt: skip


def rings_of(store: RedisStore, keys: list[str], name: str = "merchant") -> NDArray[np.void]:
    return store.load({}, {name: keys}).rings[name]


@given(
    entries=st.lists(st.lists(verdicts, max_size=70), min_size=1, max_size=4),
    events=st.lists(st.integers(0, 60), max_size=3),
    rng=st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_keeps_what_numpy_keeps(
    store: RedisStore, client: Any, pipeline_name: str, entries: list[list[Verdict]], events: list[int],
    rng: random.Random,
) -> None:  # fmt: skip
    """In any order, entries of labels and of events leave the rings that numpy computes; repeats change no verdict."""
    for key in client.scan_iter(match=f"{pipeline_name}:*"):
        client.delete(key)
    for name in ("merchant", "device"):  # of two rings of verdicts, and of one
        profile = store.layout.pipeline.profiles[name]
        rings = store.layout.empty_profiles(profile, 2)
        every = [added(store, some, name) for some in entries]
        every += [collect(profile, np.arange(2), np.full(2, START_MS + n * DAY_MS)) for n in events]
        rng.shuffle(every)
        for number, increments in enumerate(every, start=1):
            accumulate(profile, rings, increments)
            store.apply([(name, make_outbox(number, store.formats, {name: ["a", "b"]}, {name: increments}))])
            np.testing.assert_array_equal(rings_of(store, ["a", "b"], name), rings)
        again = make_outbox(99, store.formats, {name: ["a", "b"]}, {name: rng.choice(every)})
        store.apply([(name, again)])
        counted = len(profile.half_lives)
        np.testing.assert_array_equal(rings_of(store, ["a", "b"], name)[:, counted:], rings[:, counted:])


def test_a_busy_profile_stays_within_its_room(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """Thousands of verdicts leave at most 80, each new enough; the value is no larger than the room."""
    rng, held = np.random.default_rng(3), 0
    for number in range(1, 30):
        clock_M = START_MS + np.sort(rng.integers(0, 3 * HOUR, 100)) + number * 3 * HOUR
        some = [(0, int(c), int(i), i % 3 == 0, 5) for c, i in zip(clock_M, rng.integers(1, 2**60, 100), strict=True)]
        store.apply([("0", make_outbox(number, store.formats, {"merchant": ["m"]}, {"merchant": added(store, some)}))])
        found = rings_of(store, ["m"])[0, 2:].reshape(-1)
        held = int((found.view(np.int64).reshape(-1, 3)[:, 1] != 0).sum())
    assert 77 <= held <= 80
    clocks = found.view(np.int64).reshape(-1, 3)[:held, 0]
    assert (np.diff(clocks) >= 0).all()
    assert np.unique(clocks // HOUR, return_counts=True)[1].tolist() == [4] * 20
    slots = int((rings_of(store, ["m"])[0, :2]["labels"] != 0).sum())
    assert client.strlen(profile_key(pipeline_name, "merchant", "m")) == 8 + 28 * (slots + held)


def test_too_many_verdicts_in_a_value_are_refused(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """A value that another program wrote is an error, not memory written past its end."""
    one = added(store, [(0, 1, 1, True, 0)])
    store.apply([("0", make_outbox(1, store.formats, {"merchant": ["m"]}, {"merchant": one}))])
    key = profile_key(pipeline_name, "merchant", "m")
    value = client.get(key)
    assert value[-28:-24] == b"\xff" * 4
    client.set(key, value + value[-28:] * 79)
    assert rings_of(store, ["m"]).shape == (1, 4, 40)
    client.set(key, value + value[-28:] * 80)
    with pytest.raises(StateError, match="verdicts or half_lives have changed"):
        rings_of(store, ["m"])


def test_another_number_of_verdicts_is_another_layout(store: RedisStore, client: Any, pipeline: Pipeline) -> None:
    """Without verdicts, compared with something else, or kept by another delay, a stored profile is refused; fewer in
    the same room fit."""
    process(store, random_columns(1, 30), None)
    merchant = pipeline.profiles["merchant"]
    changes = ({"verdicts": 0, "compare": None}, {"compare": None}, {"delay": "2h"}, {"verdicts": 30})
    for change in changes:
        changed = msgspec.structs.replace(merchant, **change)
        other = msgspec.structs.replace(pipeline, profiles=pipeline.profiles | {"merchant": changed})
        if change == {"verdicts": 30}:
            assert rings_of(RedisStore(client, Layout(other)), MERCHANTS).shape == (9, 4, 40)
        else:
            with pytest.raises(StateError, match="have changed"):
                rings_of(RedisStore(client, Layout(other)), MERCHANTS)


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class DiedError(Exception):
    """The process, at this point."""


class Mortal(RedisStore):
    """Dies in place of a call, once."""

    dies_at = ""

    def _die(self, step: str) -> None:
        if self.dies_at == step:
            self.dies_at = ""
            raise DiedError

    def load(self, *arguments: Any) -> Any:
        self._die("load")
        return super().load(*arguments)

    def store(self, *arguments: Any) -> Any:
        self._die("store")
        return super().store(*arguments)

    def apply(self, entries: Any) -> None:
        self._die("apply")
        super().apply(entries)


@pytest.mark.parametrize("dies_at", ["", "load", "store", "apply"])
def test_labels_come_to_what_memory_comes_to(client: Any, pipeline: Pipeline, settings: Settings, dies_at: str) -> None:
    """Whatever step the process dies at, the next one leaves each verdict once, with the same ratio."""
    store, codec, memory = Mortal(client, Layout(pipeline)), Codec(pipeline), MemoryStore(pipeline)
    columns = random_columns(1, 200)
    process(store, columns, None)
    batch = columns_to_batch(store.layout, columns)
    memory.step(batch, np.maximum.accumulate(batch.time_M))
    rng, values, times = np.random.default_rng(2), [], []
    for n, m in enumerate(np.sort(rng.choice(200, 120, replace=False)).tolist()):
        arrival = START_MS + 7 * DAY_MS + n * HOUR // 7 - (HOUR if n % 9 == 0 else 0)
        fields = {name: columns[name][m] for name in ("card_id", "merchant_id", "device_id", "amount")}
        fields["amount"] = fields["amount"] if n % 5 else None
        values.append(codec.encode_label(columns["transaction_id"][m], arrival, n % 3 == 0, fields))
        times.append(arrival)
    records = [SimpleNamespace(offset=i, value=v, timestamp=t, timestamp_type=0, key=None)
               for i, (v, t) in enumerate(zip(values, times, strict=True))]  # fmt: skip

    def life(dies_at: str = "") -> None:
        async def seek(_: TP, offset: int) -> None:
            raise AssertionError(f"set back to {offset}")

        delivery = Delivery(store, label_tag, _at_once, seek, lambda _: None)
        processor = LabelProcessor(codec, store, delivery, Publisher(settings), _at_once, lambda: None)

        async def run() -> None:
            first = await delivery.take_over(TP_LABELS)
            for part in np.array_split(np.arange(first, len(records)), 3):
                if len(part):
                    await processor.process([Chunk(TP_LABELS, [records[i] for i in part.tolist()])], lambda: None)
                store.dies_at = dies_at  # in the second batch

        asyncio.run(run())

    if dies_at:
        with pytest.raises(DiedError):
            life(dies_at)
    life()
    decoded = codec.decode_labels(values, np.array(times)).batch
    memory.learn(decoded, np.maximum.accumulate(decoded.time_M))
    for name, keys in (("merchant", MERCHANTS), ("device", [f"d{i}" for i in range(1, 7)]), ("card", CARDS)):
        for key, rings in zip(keys, rings_of(store, keys, name), strict=True):
            np.testing.assert_array_equal(rings, memory.profile(name, key)[0])
    kept = rings_of(store, MERCHANTS)[:, 2:].reshape(-1).view(np.int32).reshape(-1, 6)
    kept = kept[kept[:, 2:4].any(axis=1)]
    assert len(kept) > 100
    assert 10 < (kept[:, 5] == UNKNOWN_RATIO).sum() < len(kept) / 2
    position = store.load({label_tag(0): []}, {}).positions[label_tag(0)]
    assert position is not None
    assert (position.next_offset, position.clock_ms) == (120, max(times))
