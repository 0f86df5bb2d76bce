"""Kafka topics or a file to the history on disk, resumably.

A consumer without a group reads `<pipeline>.events`, `.labels` and `.scores` from where the history ends;
the history itself is the position, so nothing is committed to the broker and nobody else's offsets move.
A file takes the same road: its rows are encoded as the topics would carry them, then decoded and checked, so
an imported history equals one that was streamed (as one partition, in event time order).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from kafka import TopicPartition
from kafka.errors import KafkaError

from models.codec import Codec
from models.pipeline.spec import Pipeline
from training.archive import KINDS, Archive, Kind, Progress, Rows
from training.broker import no_broker, open_consumer
from training.errors import HistoryError
from training.rows import Records, RowMaker
from training.settings import Settings
from training.tables import Mapped

__all__ = ["Collected", "collect", "import_file"]

POLL_MS = 200
FLUSH_ROWS = 100_000  # a part of some megabytes: small enough to hold, large enough to read fast
FLUSH_S = 60.0  # what a crash repeats on a quiet topic
IMPORT_ROWS = 50_000
Report = Callable[[str], None]


@dataclass
class Collected:
    """What one run added: rows by kind, records skipped by reason, offsets that were no longer on the broker."""

    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    skipped: dict[str, int] = field(default_factory=dict)
    lost: int = 0


def collect(
    settings: Settings,
    pipeline: Pipeline,
    root: Path,
    *,
    until_idle_s: float | None = 3.0,
    stop: Callable[[], bool] = lambda: False,
    report: Report | None = None,
) -> Collected:
    """Append what the topics hold to the history below `root`.

    Ends after `until_idle_s` without a record (None: never), or when `stop()` says so; both after writing
    what was read. Raises HistoryError when the broker or the events topic is not there.
    """
    archive = Archive(root, pipeline)
    progress = archive.open_to_write()
    consumer = open_consumer(settings)
    try:
        return _Collector(consumer, archive, progress, RowMaker(pipeline), report or _silent).run(until_idle_s, stop)
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        consumer.close()


def import_file(
    pipeline: Pipeline, root: Path, mapped: Mapped, report: Callable[[int, int], None] | None = None
) -> Collected:
    """Make the history below `root` from a table, which takes the place of the topics.

    Raises HistoryError when there is a history already: rows of a file have no offsets to continue from.
    """
    archive = Archive(root, pipeline)
    progress = archive.open_to_write()
    if any(progress.next_offset[kind] for kind in KINDS):
        raise HistoryError(f"{archive.folder}: there is a history already: expected an empty folder to import into")
    maker, result = RowMaker(pipeline), Collected()
    encoded: dict[Kind, Iterator[tuple[int, bytes]]] = {
        "events": _events(mapped, maker.codec), "labels": _labels(mapped, maker.codec),
    }  # fmt: skip
    for kind, records_of_kind in encoded.items():
        for records in _in_batches(records_of_kind):
            result.rows[kind] += archive.append(kind, [maker.rows(kind, records)], progress)
            if report is not None:
                report(sum(result.rows.values()), len(mapped) * (2 if mapped.label_column else 1))
    progress.skipped = result.skipped = dict(maker.skipped)
    archive.append("events", [], progress)
    return result


def _silent(_: str) -> None:
    pass


class _Collector:
    """One run of `collect`: poll, turn into rows, flush now and then."""

    def __init__(self, consumer: Any, archive: Archive, progress: Progress, maker: RowMaker, report: Report) -> None:
        self.consumer, self.archive, self.progress, self.maker, self.report = consumer, archive, progress, maker, report
        self.result = Collected()
        self.waiting: dict[Kind, list[Rows]] = {kind: [] for kind in KINDS}
        self.kinds: dict[TopicPartition, Kind] = {}
        self.next_offset: dict[TopicPartition, int] = {}

    def run(self, until_idle_s: float | None, stop: Callable[[], bool]) -> Collected:
        self._assign()
        heard = flushed = time.monotonic()
        while not stop() and (until_idle_s is None or time.monotonic() - heard < until_idle_s):
            fetched = self.consumer.poll(timeout_ms=POLL_MS)
            if fetched:
                heard = time.monotonic()
            for partition, records in fetched.items():
                self._take(partition, records)
            if self._rows_waiting() >= FLUSH_ROWS or time.monotonic() - flushed > FLUSH_S:
                self._flush()
                flushed = time.monotonic()
        self._flush()
        return self.result

    def _assign(self) -> None:
        for kind in KINDS:
            topic = self.archive.pipeline.topic(kind)
            numbers = self.consumer.partitions_for_topic(topic)
            if not numbers and kind == "events":
                raise HistoryError(f"topic {topic}: the broker does not have it")
            for number in sorted(numbers or ()):
                self.kinds[TopicPartition(topic, number)] = kind
        self.consumer.assign(list(self.kinds))
        for partition, kind in self.kinds.items():
            start = self.progress.next_offset[kind].get(partition.partition)
            self.next_offset[partition] = start or 0
            if start is None:
                self.consumer.seek_to_beginning(partition)
            else:
                self.consumer.seek(partition, start)

    def _take(self, partition: TopicPartition, records: list[Any]) -> None:
        gap = records[0].offset - self.next_offset[partition]
        # from the start of a topic nothing is missing that the history ever promised
        self.result.lost += gap if self.next_offset[partition] else 0
        self.next_offset[partition] = records[-1].offset + 1
        kind = self.kinds[partition]
        block = Records(
            partition.partition,
            np.array([r.offset for r in records], dtype=np.int64),
            np.array([r.timestamp for r in records], dtype=np.int64),
            [r.value for r in records],
            [r.key for r in records] if kind == "events" else None,
        )
        self.waiting[kind].append(self.maker.rows(kind, block))

    def _rows_waiting(self) -> int:
        return sum(rows.table.num_rows for waiting in self.waiting.values() for rows in waiting)

    def _flush(self) -> None:
        skipped = self.maker.skipped - Counter(self.result.skipped)
        for reason, count in skipped.items():
            self.progress.skipped[reason] = self.progress.skipped.get(reason, 0) + count
        self.result.skipped = dict(self.maker.skipped)
        for kind in KINDS:
            batches = _joined(self.waiting[kind])
            self.result.rows[kind] += self.archive.append(kind, batches, self.progress)
            self.waiting[kind] = []
        self.report(", ".join(f"{count:,} {kind}" for kind, count in self.result.rows.items()))


def _joined(batches: list[Rows]) -> list[Rows]:
    """One batch a partition: a part per poll would be thousands of small files."""
    by_partition: dict[int, list[Rows]] = {}
    for rows in batches:
        by_partition.setdefault(rows.partition, []).append(rows)
    return [
        Rows(partition, pa.concat_tables([rows.table for rows in parts]), parts[-1].next_offset)
        for partition, parts in sorted(by_partition.items())
    ]


def _events(mapped: Mapped, codec: Codec) -> Iterator[tuple[int, bytes]]:
    return ((time_ms, codec.encode_event(row)) for time_ms, row in mapped.events())


def _labels(mapped: Mapped, codec: Codec) -> Iterator[tuple[int, bytes]]:
    return ((label.time_ms, codec.encode_label(label.event_id, label.time_ms, label.fraud, label.fields))
            for label in mapped.labels())  # fmt: skip


def _in_batches(encoded: Iterator[tuple[int, bytes]]) -> Iterator[Records]:
    """Numbered as one partition; the time of the event stands for the time of its append."""
    first = 0
    while batch := list(islice(encoded, IMPORT_ROWS)):
        offsets = np.arange(first, first + len(batch), dtype=np.int64)
        times = np.array([time_ms for time_ms, _ in batch], dtype=np.int64)
        yield Records(0, offsets, times, [value for _, value in batch], None)
        first += len(batch)
