"""A worker that is overtaken in the middle of a batch stores nothing after it: no record counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from models.codec import Codec
from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from stream.delivery import Delivery
from stream.labelling import LabelProcessor
from stream.publisher import Publisher
from stream.redis import connect
from stream.settings import Settings
from stream.store.keys import Position, label_tag
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore, Write
from stream.transport import Chunk

TAG, TP_LABELS = label_tag(0), TP("labels", 0)
START_MS, DAY_MS = 1_767_225_600_000, 86_400_000  # 2026-01-01


@pytest.fixture
def store(settings: Settings, pipeline: Pipeline) -> Iterator[RedisStore]:
    client: Any = connect(settings)
    yield RedisStore(client, Layout(pipeline))
    client.close()


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _delivery(store: RedisStore, seeks: list[int]) -> Delivery:
    async def seek(_: TP, offset: int) -> None:
        seeks.append(offset)

    return Delivery(store, label_tag, _at_once, seek, lambda _: None)


def _chunk(codec: Codec, days: int) -> Chunk:
    """One label a day for merchant m."""
    times = [START_MS + day * DAY_MS for day in range(days)]
    values = [codec.encode_label(f"e{i}", time, True, {"merchant_id": "m"}) for i, time in enumerate(times)]
    records = enumerate(zip(values, times, strict=True))
    facts = {"timestamp_type": 0, "key": None}
    return Chunk(TP_LABELS, [SimpleNamespace(offset=i, value=v, timestamp=t, **facts) for i, (v, t) in records])


def test_labels_after_a_fenced_write_are_not_applied(store: RedisStore, settings: Settings) -> None:
    """Another owner stores all three labels while we hold the second back: we add the first, and nothing more."""
    codec, seeks = Codec(store.layout.pipeline), []
    delivery = _delivery(store, seeks)
    looks = iter((0, 1, 2))

    def events_clock() -> int | None:
        look = next(looks)
        if look == 1:  # the other owner, whose own entry adds nothing here
            held = store.recover(TAG)
            assert store.store([Write(TAG, held, Position(3, START_MS + 2 * DAY_MS, 2), Outbox(2, []))]) == [True]
        return START_MS + look * DAY_MS

    processor = LabelProcessor(codec, store, delivery, Publisher(settings), _at_once, events_clock)

    async def run() -> None:
        await delivery.take_over(TP_LABELS)
        await processor.process([_chunk(codec, 3)], lambda: None)

    asyncio.run(run())
    stored = store.load({TAG: []}, {"merchant": ["m"]})
    assert stored.positions[TAG] == Position(3, START_MS + 2 * DAY_MS, 2)
    assert stored.rings["merchant"]["labels"][:, :2].sum(axis=2).tolist() == [[1, 1]]
    assert seeks == [3]


def test_records_are_stored_after_the_position_they_were_admitted_at(store: RedisStore) -> None:
    """A rebalance may set the source forward while its records are scored: they keep the position they follow."""
    codec = Codec(store.layout.pipeline)
    delivery = _delivery(store, [])

    async def run() -> None:
        await delivery.take_over(TP_LABELS)
        admitted = (await delivery.admit([_chunk(codec, 2)]))[TP_LABELS]
        assert store.store([Write(TAG, None, Position(2, 1, 1), Outbox(1, []))]) == [True]
        await delivery.take_over(TP_LABELS)
        assert delivery.sources[TP_LABELS].held == Position(2, 1, 1)
        assert admitted.held is None
        assert store.store([Write(TAG, admitted.held, Position(2, 9, 1), Outbox(1, []))]) == [False]

    asyncio.run(run())
