"""Faust's Kafka transport, one message a fetched chunk of a partition instead of one a record.

A message costs Faust 70–90 µs whatever is in it; a chunk of hundreds of records costs the same. Topics that are
not `chunked` keep Faust's ordinary behaviour.

Offsets of chunked topics are not Faust's to decide. Where reading starts comes from `where_to_start` (the
position kept in Redis), and what is committed comes from `stored` (the worker's own report); Faust's ledger,
which can commit past a message that is still in flight, is left out. Private hooks of faust-streaming 0.15 are
marked; tests/recovery covers each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from aiokafka.consumer import fetcher
from faust import App, Schema
from faust.transport.drivers import aiokafka as driver
from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

__all__ = ["Chunk", "ChunkSchema", "use_chunks"]

PAUSED_POLL_S = 0.1  # how soon a consumer whose partitions are all paused looks again
POLL_S = 0.1  # a fetch returns sooner when there is something


class Chunk:
    """Consecutive records of one partition, in the shape of a consumer record whose offset is the last one's.

    records: at least one, each with offset, timestamp (ms), key, value and headers.
    """

    __slots__ = (
        "checksum", "headers", "key", "offset", "partition", "records", "serialized_key_size",
        "serialized_value_size", "timestamp", "timestamp_type", "topic",
    )  # fmt: skip

    def __init__(self, tp: TP, records: list[Any]) -> None:
        last = records[-1]
        self.records = records
        self.topic: str = tp.topic
        self.partition: int = tp.partition
        self.offset: int = last.offset
        self.timestamp, self.timestamp_type = last.timestamp, last.timestamp_type
        self.headers: tuple[()] = ()
        self.key = self.checksum = None
        self.serialized_key_size = self.serialized_value_size = 0

    def __len__(self) -> int:
        return len(self.records)

    @property
    def first(self) -> int:
        return int(self.records[0].offset)

    @property
    def tp(self) -> TP:
        return TP(self.topic, self.partition)

    @property
    def value(self) -> Chunk:
        """What the agent receives."""
        return self

    def since(self, offset: int) -> Chunk:
        """The records from this offset on; there is at least one."""
        return self if self.first >= offset else Chunk(self.tp, [r for r in self.records if r.offset >= offset])

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The first `count` records and the rest; both have some."""
        return Chunk(self.tp, self.records[:count]), Chunk(self.tp, self.records[count:])

    def halves(self) -> tuple[Chunk, Chunk]:
        """Two chunks of about the same size; there are at least two records."""
        return self.split(len(self.records) // 2)


class ChunkSchema(Schema[Any, Any]):
    """Hands chunks through undecoded: decoding is the worker's, batch by batch."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> None:  # noqa: ARG002
        return None

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:  # noqa: ARG002
        return message.value


def use_chunks(
    app: App,
    topics: frozenset[str],
    *,
    chunk_max: int,
    fetch_max_wait_ms: int,
    where_to_start: Callable[[TP], Awaitable[int | None]],
    stored: Callable[[], Mapping[TP, int]],
    before_stop: Callable[[], Awaitable[None]],
) -> None:
    """Make `app` deliver these topics as chunks. Call it before the app starts.

    where_to_start: asked for each assigned partition and on every seek; None leaves Faust's committed offset.
    stored: the next offset of each partition that is safe to commit. before_stop: awaited before the last
    commit of a clean shutdown.
    """

    class Scheduler(DefaultSchedulingStrategy):
        def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[Any]:
            chunks = {tp: _cut(tp, batch, topics, chunk_max) for tp, batch in records.items()}
            return super().iterate(chunks)

    class Thread(driver.AIOKafkaConsumerThread):
        def _create_worker_consumer(self, transport: Any) -> Any:
            consumer = super()._create_worker_consumer(transport)
            consumer._fetch_max_wait_ms = fetch_max_wait_ms  # Faust hard-codes 1500
            return consumer

    class Consumer(_ChunkConsumer):
        chunked = topics
        thread = Thread

    class Records(fetcher.PartitionRecords):  # type: ignore[misc]  # untyped
        def _consumer_record(self, tp: Any, record: Any) -> Any:
            # building a ConsumerRecord costs more than decoding what is in it
            return record if tp.topic in topics else super()._consumer_record(tp, record)

    fetcher.PartitionRecords = Records  # private hook; for consumers of these topics in this process
    Consumer.where_to_start = staticmethod(where_to_start)
    Consumer.stored = staticmethod(stored)
    Consumer.before_stop = staticmethod(before_stop)

    class Transport(driver.Transport):
        pass

    Transport.Consumer = Consumer
    app.conf.ConsumerScheduler = Scheduler  # type: ignore[assignment]
    app.transport = Transport(app.conf.broker_consumer, app)


def _cut(tp: TP, records: list[Any], topics: frozenset[str], size: int) -> list[Any]:
    if tp.topic not in topics:
        return records
    return [Chunk(tp, records[i : i + size]) for i in range(0, len(records), size)]


class _ChunkConsumer(driver.Consumer):
    """Faust's consumer with the worker's own offsets for chunked topics."""

    chunked: frozenset[str] = frozenset()
    thread: Any = driver.AIOKafkaConsumerThread
    where_to_start: Any = None
    stored: Any = None
    before_stop: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._buffer_dropped = asyncio.Event()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> Any:  # private hook
        return self.thread(self, loop=self.loop, beacon=self.beacon)

    def on_buffer_drop(self, tp: TP) -> None:
        super().on_buffer_drop(tp)
        self._buffer_dropped.set()

    async def _wait_next_records(self, timeout: float) -> Any:  # private hook
        # Faust sleeps a whole second when back-pressure has paused every partition
        while (
            self.flow_active
            and self._buffered_partitions
            and not self._get_active_partitions()
            and not self.should_stop
        ):
            self._buffer_dropped.clear()
            try:
                await asyncio.wait_for(self._buffer_dropped.wait(), PAUSED_POLL_S)
            except TimeoutError:
                continue
        return await super()._wait_next_records(min(timeout, POLL_S))

    def ack(self, message: Any) -> bool:
        """A chunk that was handed over is no longer Faust's business; others are acknowledged as usual."""
        if message.topic not in self.chunked:
            return bool(super().ack(message))
        message.acked = True
        self._unacked_messages.discard(message)
        return True

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:  # private hook
        yield from super()._filter_tps_with_pending_acks(topics)
        for tp in self.stored():
            if topics is None or tp in topics or tp.topic in topics:
                yield tp

    def _new_offset(self, tp: TP) -> int | None:  # private hook
        if tp.topic in self.chunked:
            found: int | None = self.stored().get(tp)
            return found
        return super()._new_offset(tp)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:  # private hook
        if tp.topic not in self.chunked:
            await super()._add_gap(tp, offset_from, offset_to)

    async def perform_seek(self) -> None:
        """After an assignment, and when a fetch was cut off: read on from what is stored."""
        await super().perform_seek()
        for tp in self.assignment():
            if tp.topic in self.chunked:
                offset = await self.where_to_start(tp)
                if offset is not None:
                    await self.seek(tp, offset)

    async def on_stop(self) -> None:
        await self.before_stop()
        await super().on_stop()
