"""Publish rows on a pipeline's topics in event-time order: as fast as it goes, at a rate, or followed.

Followed means: the timeline of events and labels is cut into slices of half the skew, and a slice is
published only when the last but one is stored by the workers, in every partition. So nothing is ever more than the
skew ahead of anything else in event time. With a skew no longer than the shortest profile delay this makes live
scores independent of timing, and equal to an offline replay.

Publishing is at least once: a retry may repeat a record, which the event's id makes harmless.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
from aiokafka import AIOKafkaProducer
from numpy.typing import NDArray
from redis.exceptions import RedisError

from models.clock import HOUR_MS
from models.codec import Codec
from models.columns import identifier
from models.errors import LeptonError
from models.pipeline.spec import Pipeline
from stream.kafka import client_options, partition_for
from stream.publisher import filled_batches
from stream.redis import connect
from stream.replay_file import Row, Rows
from stream.settings import Settings
from stream.store.keys import Position, event_tag, label_tag, position_key

__all__ = ["Offsets", "Pace", "Published", "default_skew_ms", "publish", "wait_stored"]

Kind = Literal["events", "labels"]
Offsets = dict[tuple[Kind, int], int]  # (topic, partition) → offset after the last record
CHUNK = 2048  # records encoded without letting other tasks run
BATCH_BYTES = 256 * 1024
MIN_TICK_S = 0.01  # of paced publishing; smaller batches burden the broker more than they smooth


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast rows go out.

    rate: events a second, 0 for no limit. follow: keep to the workers as the module describes, within `skew_ms`
    (None: `default_skew_ms`). patience_s: how long workers may make no progress before that is an error.
    """

    rate: float = 0
    follow: bool = False
    skew_ms: int | None = None
    patience_s: float = 60


@dataclass(slots=True)
class Published:
    """What was acknowledged by the broker. `unusable` rows have no entity, or a value that JSON cannot carry."""

    events: int = 0
    labels: int = 0
    unusable: int = 0
    next_offsets: Offsets = field(default_factory=dict)


def default_skew_ms(pipeline: Pipeline) -> int:
    """The shortest profile delay; an hour for a pipeline without profiles."""
    return min((profile.delay_ms for profile in pipeline.profiles.values()), default=HOUR_MS)


async def publish(
    settings: Settings,
    pipeline: Pipeline,
    events: Rows,
    labels: Rows | None = None,
    *,
    pace: Pace | None = None,
    on_progress: Callable[[Published], None] | None = None,
) -> Published:
    """Publish all rows; the topics must exist. Returns when the broker has acknowledged them all.

    Rows out of order are published where they stand. Raises LeptonError when followed workers make no progress.
    """
    pace = pace or Pace()
    labels = labels if labels is not None else Rows.of([], "time")
    skew_ms = pace.skew_ms or default_skew_ms(pipeline)
    parts = _slices(events, labels, skew_ms) if pace.follow else _chunks(events, labels)
    with closing(_Followed(settings, pipeline, pace)) as followed:
        async with _publisher(settings, pipeline) as publisher:
            published = publisher.published
            start = time.monotonic()
            for part in parts:
                await followed.before(part.number)
                for a, b in _steps(*part.labels, CHUNK):
                    await publisher.send("labels", labels.read(a, b))
                for a, b in _steps(*part.events, _step(settings, pace)):
                    if pace.rate:
                        await asyncio.sleep(start + a / pace.rate - time.monotonic())
                    await publisher.send("events", events.read(a, b))
                    if on_progress:
                        on_progress(published)
                if pace.follow:
                    await publisher.settle()
                    followed.after(part.number, published.next_offsets)
            await publisher.settle()
    return published


async def wait_stored(settings: Settings, pipeline: Pipeline, offsets: Offsets, patience_s: float = 60) -> None:
    """Return when the positions in Redis have reached these offsets.

    Raises LeptonError when no position moves for `patience_s`.
    """
    client: Any = connect(settings)
    try:
        await _wait(client, pipeline, offsets, patience_s)
    finally:
        client.close()


class _Followed:
    """Holds a slice back until the last but one before it is stored. Connects only when asked to follow."""

    def __init__(self, settings: Settings, pipeline: Pipeline, pace: Pace) -> None:
        self._client: Any = connect(settings) if pace.follow else None
        self._pipeline, self._patience_s = pipeline, pace.patience_s
        self._ends: list[tuple[int, Offsets]] = []  # slice number, offsets at its end; oldest first

    async def before(self, number: int) -> None:
        due = [offsets for ended, offsets in self._ends if ended <= number - 2]
        if due:
            self._ends = self._ends[len(due) :]
            await _wait(self._client, self._pipeline, due[-1], self._patience_s)

    def after(self, number: int, offsets: Offsets) -> None:
        self._ends.append((number, dict(offsets)))

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


async def _wait(client: Any, pipeline: Pipeline, offsets: Offsets, patience_s: float) -> None:
    deadline, before, pause = time.monotonic() + patience_s, None, 0.002
    while True:
        try:
            now = await asyncio.to_thread(_positions, client, pipeline.name, offsets)
        except RedisError:  # away for a while: workers wait for it as well
            now = before or dict.fromkeys(offsets, 0)
        behind = {key: offset for key, offset in offsets.items() if now[key] < offset}
        if not behind:
            return
        if now != before:
            deadline, before, pause = time.monotonic() + patience_s, now, 0.002
        elif time.monotonic() > deadline:
            (kind, partition), offset = next(iter(behind.items()))
            raise LeptonError(
                f"no progress for {patience_s:g} s: partition {partition} of {pipeline.topic(kind)} is stored up "
                f"to offset {now[kind, partition]}: expected {offset}; is a worker running?"
            )
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, 0.1)


def _positions(client: Any, pipeline: str, wanted: Offsets) -> Offsets:
    found: Offsets = {}
    for kind, partition in wanted:
        tag = event_tag(partition) if kind == "events" else label_tag(partition)
        packed = client.get(position_key(pipeline, tag))
        found[kind, partition] = Position.unpack(packed).next_offset if packed else 0
    return found


@dataclass(frozen=True, slots=True)
class _Part:
    """Half-open ranges of rows that are published together."""

    number: int
    events: tuple[int, int]
    labels: tuple[int, int]


def _slices(events: Rows, labels: Rows, skew_ms: int) -> Iterator[_Part]:
    """Slices of the timeline that are not empty. A late row counts with the clock of those before it."""
    width = max(1, skew_ms // 2)
    slice_E = np.maximum.accumulate(events.time_ms) // width
    slice_L = np.maximum.accumulate(labels.time_ms) // width
    numbers = np.union1d(slice_E, slice_L)
    ends_E, ends_L = (np.searchsorted(s, numbers, side="right").tolist() for s in (slice_E, slice_L))
    first_e = first_l = 0
    for number, end_e, end_l in zip(numbers.tolist(), ends_E, ends_L, strict=True):
        yield _Part(number, (first_e, end_e), (first_l, end_l))
        first_e, first_l = end_e, end_l


def _chunks(events: Rows, labels: Rows) -> Iterator[_Part]:
    """Without following: labels go out just before the first chunk of events that they precede."""
    clock_E: NDArray[np.int64] = np.maximum.accumulate(events.time_ms)
    clock_L: NDArray[np.int64] = np.maximum.accumulate(labels.time_ms)
    first = 0
    for number, (a, b) in enumerate(_steps(0, len(events), CHUNK)):
        end = max(first, int(np.searchsorted(clock_L, clock_E[b - 1])))
        yield _Part(number, (a, b), (first, end))
        first = end
    yield _Part(len(events), (len(events), len(events)), (first, len(labels)))


def _step(settings: Settings, pace: Pace) -> int:
    """Events sent at once: all that are due within one linger, when a rate is kept."""
    if not pace.rate:
        return CHUNK
    return min(CHUNK, max(1, round(pace.rate * max(MIN_TICK_S, settings.kafka_linger_ms / 1000))))


def _steps(start: int, stop: int, step: int) -> Iterator[tuple[int, int]]:
    return ((a, min(a + step, stop)) for a in range(start, stop, step))


@asynccontextmanager
async def _publisher(settings: Settings, pipeline: Pipeline) -> AsyncIterator[_Publisher]:
    producer = AIOKafkaProducer(**client_options(settings), acks="all", max_batch_size=BATCH_BYTES)
    await producer.start()
    try:
        partitions = {kind: len(await producer.partitions_for(pipeline.topic(kind))) for kind in ("events", "labels")}
        yield _Publisher(pipeline, producer, partitions)
    finally:
        await producer.stop()


class _Publisher:
    """Encodes rows and hands them to the producer as whole batches: sending one by one costs ten times more."""

    def __init__(self, pipeline: Pipeline, producer: AIOKafkaProducer, partitions: dict[str, int]) -> None:
        self.pipeline, self.producer, self.partitions = pipeline, producer, partitions
        self.published = Published()
        self._codec = Codec(pipeline)
        self._label_fields = [*pipeline.profile_keys, *pipeline.label_amounts]
        self._sent: list[tuple[Kind, int, int, asyncio.Future[Any]]] = []

    async def send(self, kind: Kind, rows: list[Row]) -> None:
        """Queue rows. Waits while a batch of the same partition is still queued."""
        encode = self._event if kind == "events" else self._label
        records = []
        for row in rows:
            try:
                key, value = encode(row)
            except (ValueError, TypeError, OverflowError):
                self.published.unusable += 1
                continue
            records.append((partition_for(key, self.partitions[kind]), key, value))
        records.sort(key=lambda record: record[0])  # stable: order within a partition stays
        for partition, group in groupby(records, key=lambda record: record[0]):
            await self._send_partition(kind, partition, group)
        await self._collect(wait=False)

    async def settle(self) -> None:
        """Wait for all acknowledgements."""
        await self._collect(wait=True)

    async def _send_partition(self, kind: Kind, partition: int, records: Iterator[tuple[int, bytes, bytes]]) -> None:
        for batch in filled_batches(self.producer, ((key, value) for _, key, value in records)):
            future = await self.producer.send_batch(batch, self.pipeline.topic(kind), partition=partition)
            self._sent.append((kind, partition, batch.record_count(), future))

    async def _collect(self, wait: bool) -> None:
        """Take account of what was acknowledged, oldest first."""
        while self._sent and (wait or self._sent[0][3].done()):
            kind, partition, count, future = self._sent.pop(0)
            metadata = await future
            self.published.next_offsets[kind, partition] = metadata.offset + count
            if kind == "events":
                self.published.events += count
            else:
                self.published.labels += count

    def _event(self, row: Row) -> tuple[bytes, bytes]:
        entity = identifier(row.get(self.pipeline.entity))
        if entity is None:
            raise ValueError("no entity")
        return entity.encode(), self._codec.encode_event(row)

    def _label(self, row: Row) -> tuple[bytes, bytes]:
        event_id = identifier(row["event_id"])
        if event_id is None:
            raise ValueError("no event id")
        fields = {name: row.get(name) for name in self._label_fields}
        return event_id.encode(), self._codec.encode_label(row["event_id"], row["time"], row["fraud"], fields)
