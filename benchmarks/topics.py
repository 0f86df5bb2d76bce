"""Fast ways in and out of the local broker: a prepared backlog, events at a steady rate, and all of a topic.

Events go out as ready-made record batches, timestamped when they are built: the local broker keeps the producer's
time, so that is what "append time" means here. It is earlier than the broker's own by the time of one request.
`Sender.appended` remembers those of paced events, so that no consumer has to read them back while others are timed.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.workloads import Events
from models.errors import LeptonError
from stream.kafka import client_options, partition_for
from stream.settings import Settings

__all__ = ["Sender", "consumer_at", "read_all"]

BATCH_BYTES = 512 * 1024
BATCH_EVENTS = 4000
TICK_S = 0.01  # of a steady rate: every record batch burdens the broker, for as long as the topic lives
QUIET_S = 1.0  # after the expected number, so that repeats are seen
PATIENCE_S = 20.0


class Sender:
    """Puts events on a topic. next_offsets: of each partition, after the last event that was acknowledged."""

    def __init__(self, settings: Settings, topic: str, compression: str | None = None) -> None:
        self.topic, self.partitions = topic, settings.partitions
        self.next_offsets = [0] * settings.partitions
        self.appended: dict[str, int] = {}  # epoch ms by event id
        self._options = client_options(settings) | {"compression_type": compression}

    async def backlog(self, parts: Iterable[Events]) -> None:
        """All events, in record batches as large as they get. Returns when the broker has them."""
        async with self._producer() as producer:
            for events in parts:
                for a in range(0, len(events), BATCH_EVENTS * self.partitions):
                    rows = range(a, min(a + BATCH_EVENTS * self.partitions, len(events)))
                    await self._acknowledged(await self._send(producer, events, rows))

    async def paced(self, events: Events, rate: float, enough: Callable[[], bool] = lambda: False) -> float:
        """Events at a rate, all that are due each tick, until there are enough.

        Returns by how many seconds the slowest tick came late.
        """
        late_s, pending, done = 0.0, [], 0
        async with self._producer() as producer:
            start = time.monotonic()
            while done < len(events) and not enough():
                due = min(int((time.monotonic() - start) * rate) + 1, len(events))
                self.appended |= dict.fromkeys(events.ids[done:due], int(time.time() * 1000))
                pending += await self._send(producer, events, range(done, due))
                done = due
                wait_s = start + done / rate + TICK_S - time.monotonic()
                late_s = max(late_s, -wait_s)
                await asyncio.sleep(max(wait_s, 0))
            await self._acknowledged(pending)
        return late_s

    def _producer(self) -> Any:
        return AIOKafkaProducer(
            **self._options, acks="all", linger_ms=0, max_batch_size=BATCH_BYTES, max_request_size=2 * BATCH_BYTES
        )

    async def _send(self, producer: Any, events: Events, rows: range) -> list[tuple[int, int, Any]]:
        shares: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            shares[partition_for(events.keys[row], self.partitions)].append(row)
        sent, now_ms = [], int(time.time() * 1000)
        for partition, mine in shares.items():
            for batch in _batches(producer, events, mine, now_ms):
                future = await producer.send_batch(batch, self.topic, partition=partition)
                sent.append((partition, batch.record_count(), future))
        return sent

    async def _acknowledged(self, sent: list[tuple[int, int, Any]]) -> None:
        for partition, count, future in sent:
            metadata = await future
            self.next_offsets[partition] = max(self.next_offsets[partition], metadata.offset + count)


def _batches(producer: Any, events: Events, rows: list[int], now_ms: int) -> Iterator[Any]:
    batch = producer.create_batch()
    for row in rows:
        key, value = events.keys[row], events.values[row]
        if batch.append(key=key, value=value, timestamp=now_ms) is None:  # full
            batch.close()
            yield batch
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=now_ms)
    batch.close()
    yield batch


async def consumer_at(settings: Settings, topics: list[str], end: bool, **options: Any) -> AIOKafkaConsumer:
    """A started consumer of all partitions, outside any group, at the start or the end of the topics."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, enable_auto_commit=False,
        **({"fetch_max_wait_ms": settings.fetch_max_wait_ms} | options),
    )  # fmt: skip
    await consumer.start()
    partitions = [TopicPartition(topic, p) for topic in topics for p in range(settings.partitions)]
    consumer.assign(partitions)
    await (consumer.seek_to_end if end else consumer.seek_to_beginning)(*partitions)
    for partition in partitions:
        await consumer.position(partition)
    return consumer


async def read_all(settings: Settings, topic: str, expected: int) -> list[Any]:
    """All records of a topic that is no longer written to. Raises LeptonError when fewer than expected come."""
    consumer = await consumer_at(settings, [topic], end=False)
    found: list[Any] = []
    heard = time.monotonic()
    try:
        while True:
            fetched = await consumer.getmany(timeout_ms=200)
            for records in fetched.values():
                found += records
            quiet_s = 0.0 if fetched else time.monotonic() - heard
            if fetched:
                heard = time.monotonic()
            if len(found) >= expected and quiet_s > QUIET_S:
                return found
            if quiet_s > PATIENCE_S:
                raise LeptonError(f"wrong answer: {len(found)} records on {topic}: expected {expected}")
    finally:
        await consumer.stop()
