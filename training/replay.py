"""The history once more through the one feature path: what the worker saw, when it saw it.

Clocks are rebuilt as the worker's: the running maximum of event time (labels: arrival time) within a source
partition, in offset order. Partitions are then merged by clock, and a label is learnt before the events whose
clock has passed it. Shared profiles show an event only what is older than their delay, so this order gives the
windows the worker built, as long as it was never further behind than that delay.

The history is in memory; windows are made 4096 events at a time and only the wanted ones are handed on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.columns import columns_to_batch
from models.events import EventBatch, LabelBatch
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.features.profiles import safe_end_ms
from models.hashing import hash_ids
from models.pipeline.spec import Pipeline
from training.archive import APPEND_TIME, OFFSET, PARTITION, Archive, milliseconds

__all__ = ["Chunk", "History", "Replayed", "chunks", "load_history", "replay"]

CHUNK = 4096  # larger ones gain nothing, smaller ones pay the fixed cost of a step more often

Want = Callable[[EventBatch], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class History:
    """Events and labels of a pipeline by (partition, offset), and their clocks: int64, epoch ms."""

    pipeline: Pipeline
    events: pa.Table
    labels: pa.Table
    event_clock_M: NDArray[np.int64]
    label_clock_M: NDArray[np.int64]

    @property
    def event_time_M(self) -> NDArray[np.int64]:  # noqa: N802
        return milliseconds(self.events[self.pipeline.pipeline.time])

    def known_by(self, end_ms: int) -> History:
        """What had arrived when the clock stood at `end_ms`: nothing from there on, no later label."""
        events, labels = self.event_clock_M < end_ms, self.label_clock_M < end_ms
        return History(
            self.pipeline, self.events.filter(pa.array(events)), self.labels.filter(pa.array(labels)),
            self.event_clock_M[events], self.label_clock_M[labels],
        )  # fmt: skip

    def frauds(self) -> set[str]:
        """Ids of the events whose last verdict to arrive is fraud."""
        ever = set(self.labels["event_id"].filter(self.labels["fraud"]).to_pylist())
        if not ever:
            return ever
        order = np.argsort(milliseconds(self.labels["label_time"]), kind="stable")
        ordered = self.labels.select(["event_id", "fraud"]).take(pa.array(order))
        concerned = ordered.filter(pc.is_in(ordered["event_id"], pa.array(sorted(ever), pa.string())))
        last = dict(zip(concerned["event_id"].to_pylist(), concerned["fraud"].to_pylist(), strict=True))
        return {event_id for event_id, fraud in last.items() if fraud}


@dataclass(frozen=True, slots=True)
class Replayed:
    """Wanted events of one chunk with their windows, in the order of the clock."""

    encoded: Encoded
    batch: EventBatch


def load_history(archive: Archive, *, labels: bool = True) -> History:
    """The whole history, or its events alone: files of labels are then not opened. Raises HistoryError without any."""
    events = archive.read("events")
    known = archive.read("labels") if labels else archive.schemas["labels"].empty_table()
    return History(
        archive.pipeline, events, known,
        _clocks(events, archive.time_columns["events"]), _clocks(known, archive.time_columns["labels"]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive events, and a store with all that came before them, labels included."""

    store: MemoryStore
    batch: EventBatch
    clock_M: NDArray[np.int64]


def chunks(
    history: History, until_ms: int | None = None, report: Callable[[int, int], None] | None = None
) -> Iterator[Chunk]:
    """All events in the order of the clock. Whoever iterates must `step` the store over each chunk.

    until_ms: stop before the first event whose clock has reached it. report(done, total): after every chunk.
    """
    store = MemoryStore(history.pipeline)
    events = _Merged(history.events, history.event_clock_M)
    labels = _Merged(history.labels, history.label_clock_M)
    end = len(events.clock_M) if until_ms is None else int(np.searchsorted(events.clock_M, until_ms))
    first = learnt = 0
    while first < end:
        last = min(_chunk_end(store.layout, events.clock_M, first), end)
        known = int(np.searchsorted(labels.clock_M, events.clock_M[last - 1], side="right"))
        for start in range(learnt, known, CHUNK):
            part = labels.rows(start, min(start + CHUNK, known))
            store.learn(_label_batch(history.pipeline, part), labels.clock_M[start : start + part.num_rows])
        learnt = known
        yield Chunk(store, _event_batch(store.layout, events.rows(first, last)), events.clock_M[first:last])
        first = last
        if report is not None:
            report(first, end)


def replay(
    history: History, want: Want, until_ms: int | None = None, report: Callable[[int, int], None] | None = None
) -> Iterator[Replayed]:
    """Windows of the events for which `want(batch)` is True; chunks without one are passed over. As `chunks` otherwise.

    A repeated event (its id is still in the window of its entity) comes once, as it is applied once.
    """
    for chunk in chunks(history, until_ms, report):
        step = chunk.store.step(chunk.batch, chunk.clock_M)
        wanted = want(chunk.batch)[step.applied_A]
        if wanted.any():
            yield Replayed(step.encoded.take(wanted), chunk.batch.take(step.applied_A[wanted]))


class _Merged:
    """Rows of all partitions in the order of (clock, partition, offset)."""

    def __init__(self, table: pa.Table, clock_M: NDArray[np.int64]) -> None:
        self.order = np.argsort(clock_M, kind="stable")  # the table is in the order of (partition, offset)
        self.clock_M = clock_M[self.order]
        self.table = table

    def rows(self, start: int, stop: int) -> pa.Table:
        return self.table.take(pa.array(self.order[start:stop]))


def _clocks(table: pa.Table, time: str) -> NDArray[np.int64]:
    clock_M, partition_M = milliseconds(table[time]).copy(), table[PARTITION].to_numpy()
    for partition in np.unique(partition_M):
        rows = partition_M == partition
        clock_M[rows] = np.maximum.accumulate(clock_M[rows])
    return clock_M


def _chunk_end(layout: Layout, clock_M: NDArray[np.int64], first: int) -> int:
    """A chunk's labels are learnt before its first event: it may not span more than profiles tolerate."""
    end = safe_end_ms(layout, int(clock_M[first]))
    if end is None:
        return first + CHUNK
    return max(first + 1, min(first + CHUNK, int(np.searchsorted(clock_M, end, side="right"))))


def _event_batch(layout: Layout, table: pa.Table) -> EventBatch:
    time = layout.pipeline.pipeline.time
    columns: dict[str, object] = {}
    for name in table.column_names:
        if name in (PARTITION, OFFSET, APPEND_TIME):
            continue
        column = table[name]
        if name == time:
            columns[name] = milliseconds(column)
        elif pa.types.is_string(column.type):
            columns[name] = column.to_pylist()
        else:
            columns[name] = column.cast(pa.float32()).to_numpy()  # nulls become NaN
    return columns_to_batch(layout, columns)  # type: ignore[arg-type]


def _label_batch(pipeline: Pipeline, table: pa.Table) -> LabelBatch:
    ids = table["event_id"].to_pylist()
    return LabelBatch(
        event_id=ids,
        time_M=milliseconds(table["label_time"]),
        id_hash_M=hash_ids(ids),
        fraud_M=np.asarray(table["fraud"].to_numpy()),
        profile_keys={name: table[f"profile.{name}"].to_pylist() for name in pipeline.profiles},
        amounts={name: _numbers(table[f"value.{name}"]) for name in pipeline.label_amounts},
    )


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), dtype=np.float64)  # nulls become NaN
