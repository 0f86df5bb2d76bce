"""The worker's batches overlap, over a real Redis and a real broker that fail at random: nothing changes by it."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from redis.exceptions import ConnectionError as RedisConnectionError

from models.codec import Codec
from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import Scorer, load_scorer
from models.simulate import Simulated, simulate
from stream import lane as lane_module
from stream.batching import BatchSize
from stream.delivery import Delivery
from stream.kafka import ensure_topics
from stream.lane import Lane
from stream.publisher import Publisher
from stream.redis import connect
from stream.settings import Settings
from stream.store.keys import event_tag
from stream.store.redis_store import RedisStore, Stored, Write
from stream.transport import Chunk
from stream.worker import EventProcessor
from tests.conftest import MakeSettings
from tests.support import publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted

PATIENCE_S = 60
EVENTS = 3000


class Trouble:
    """How often a call fails: before it has done anything, or after, when only its answer is lost.

    The fourth that may fail does: on a slow machine batches are large, and few.
    """

    def __init__(self, rng: random.Random, chance: float) -> None:
        self.rng, self.chance, self.count, self.calls = rng, chance, 0, 0

    def maybe(self, error: Callable[[str], Exception]) -> None:
        self.calls += self.chance > 0
        if self.rng.random() < self.chance or (self.chance > 0 and self.calls == 4):
            self.count += 1
            raise error("trouble")


class UnreliableStore(RedisStore):
    """A real store whose connection breaks now and then."""

    trouble: Trouble

    def load(self, *arguments: Any) -> Stored:
        self.trouble.maybe(RedisConnectionError)
        return super().load(*arguments)

    def store(self, writes: Sequence[Write]) -> list[bool]:
        self.trouble.maybe(RedisConnectionError)
        done = super().store(writes)
        self.trouble.maybe(RedisConnectionError)
        return done

    def apply(self, entries: Any) -> None:
        self.trouble.maybe(RedisConnectionError)
        super().apply(entries)
        self.trouble.maybe(RedisConnectionError)


class UnreliablePublisher(Publisher):
    """A real publisher whose acknowledgements come late, out of order, or not at all."""

    trouble: Trouble

    async def acknowledged(self, pending: Sequence[Any]) -> None:  # type: ignore[override]
        await super().acknowledged(pending)
        await asyncio.sleep(self.trouble.rng.choice([0, 0, 0.01, 0.03]))
        self.trouble.maybe(KafkaConnectionError)


class Topic:
    """What Faust does: hands a partition's records to the lane in chunks, from where it was told to read on."""

    def __init__(self, pipeline: Pipeline, parts: dict[int, list[Any]], rng: random.Random) -> None:
        self.parts, self.rng = {TP(pipeline.topic("events"), p): records for p, records in parts.items()}, rng
        self.at = dict.fromkeys(self.parts, 0)

    async def seek(self, tp: TP, offset: int) -> None:
        self.at[tp] = offset

    async def feed(self, lane: Lane, stored: Callable[[], dict[TP, int]]) -> None:
        """Until everything is stored."""
        while any(stored().get(tp, 0) < len(records) for tp, records in self.parts.items()):
            tp = self.rng.choice(list(self.parts))
            count = self.rng.choice([1, 7, 60, 200])
            found = self.parts[tp][self.at[tp] : self.at[tp] + count]
            if found:
                self.at[tp] += len(found)
                await lane.put(Chunk(tp, found))
            await asyncio.sleep(self.rng.choice([0, 0, 0.002]))


def _records(pipeline: Pipeline, simulated: Simulated, partitions: int) -> dict[int, list[Any]]:
    """Records of each partition; an entity's are in one of them."""
    codec, parts = Codec(pipeline), {p: [] for p in range(partitions)}
    for row in list(simulated.event_rows())[:EVENTS]:
        partition = zlib.crc32(str(row["card_id"]).encode()) % partitions
        facts = {
            "topic": pipeline.topic("events"), "partition": partition, "offset": len(parts[partition]),
            "timestamp": int(row["timestamp"]), "timestamp_type": 0, "headers": (),
        }  # fmt: skip
        parts[partition].append(
            SimpleNamespace(key=str(row["card_id"]).encode(), value=codec.encode_event(row), **facts)
        )
    return parts


@pytest.mark.parametrize(
    ("seed", "chance", "partitions"), [(1, 0.0, 1), (2, 0.08, 1), (3, 0.08, 3), (4, 0.25, 1)],
    ids=["smooth", "trouble", "partitions", "much-trouble"],
)  # fmt: skip
def test_overlapping_batches_change_nothing(
    seed: int, chance: float, partitions: int, pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """States, profiles, positions and scores are those of one record after the other, to the bit."""
    monkeypatch.setattr(lane_module, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(lane_module, "LAST_BACKOFF_S", 0.01)
    settings = make_settings(partitions=partitions)
    simulated = simulate(seed=seed, customers=150, merchants=20, days=8)
    version = publish_model(
        pipeline, settings.registry, simulated_windows(pipeline, simulated), folder=tmp_path / "bundle"
    )
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    trouble = Trouble(random.Random(seed), chance)
    parts = _records(pipeline, simulated, partitions)
    asyncio.run(asyncio.wait_for(_run(pipeline, settings, scorer, parts, trouble), PATIENCE_S))
    expected = uninterrupted(pipeline, [r for part in parts.values() for r in part], [], scorer)
    expected.next_offsets = {event_tag(p): len(part) for p, part in parts.items()}
    scores = asyncio.run(read_settled(settings, pipeline.topic("scores")))
    repeats = assert_scored(expected, scores, same_content=partitions == 1)
    assert_same_end(settings, pipeline, expected)
    assert bool(trouble.count) == bool(chance)
    assert repeats == 0 or chance


async def _run(
    pipeline: Pipeline, settings: Settings, scorer: Scorer, parts: dict[int, list[Any]], trouble: Trouble
) -> None:
    ensure_topics(settings, pipeline)
    client: Any = connect(settings)
    store, publisher = UnreliableStore(client, Layout(pipeline)), UnreliablePublisher(settings)
    store.trouble = publisher.trouble = trouble
    topic = Topic(pipeline, parts, trouble.rng)
    delivery = Delivery(store, event_tag, asyncio.to_thread, topic.seek, lambda _: None)
    champion: Any = SimpleNamespace(scorer=scorer)
    processor = EventProcessor(Codec(pipeline), store, delivery, publisher, champion, asyncio.to_thread)
    failures: list[BaseException] = []

    async def fatal(error: BaseException) -> None:
        failures.append(error)

    lane = Lane("events", processor, BatchSize(1.0, 100, 300), fatal)
    await publisher.start()
    for tp in topic.parts:
        chance, trouble.chance = trouble.chance, 0.0
        topic.at[tp] = await delivery.take_over(tp)
        trouble.chance = chance
    running = asyncio.create_task(lane.run())
    try:
        await topic.feed(lane, delivery.stored)
        await lane.stop()
        await running
    finally:
        running.cancel()
        await publisher.stop()
        client.close()
    assert failures == []
