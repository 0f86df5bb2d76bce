"""The history once more through the one feature path: what the worker saw, when it saw it.

Clocks are rebuilt as the worker's: the running maximum of event time (labels: arrival time) within a source
partition, in offset order. Partitions are then merged by clock, and a label is learnt before the events whose
clock has passed it. Shared profiles show an event only what is older than their delay, so this order gives the
windows the worker built, as long as it was never further behind than that delay.

Any `Source` can be replayed, the history in memory that is here or the one on disk in `training.stored`. Windows are
made 4096 events at a time and only the wanted ones are handed on. A replay may begin later than the history: states and
profiles are then those of a worker that started at that time with an empty store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.columns import columns_to_batch
from models.events import EventBatch, LabelBatch
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.features.profiles import safe_end_ms
from models.hashing import hash_ids
from models.pipeline.spec import Pipeline
from training.archive import APPEND_TIME, OFFSET, PARTITION, Archive, Kind, milliseconds
from training.errors import HistoryError
from training.source import Block, Source

__all__ = ["Chunk", "History", "Replayed", "chunks", "clocks_of", "load_history", "replay"]

CHUNK = 4096  # larger ones gain nothing, smaller ones pay the fixed cost of a step more often
BLOCK = 16 * CHUNK  # rows that are put in order at once

Want = Callable[[EventBatch], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class History(Source):
    """Events and labels of a pipeline by (partition, offset), and their clocks: int64, epoch ms. All in memory."""

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

    def blocks(
        self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Block]:  # fmt: skip
        table, clock_M = (self.events, self.event_clock_M) if kind == "events" else (self.labels, self.label_clock_M)
        if columns is not None:
            table = table.select(list(dict.fromkeys([PARTITION, OFFSET, *columns])))
        order = np.argsort(clock_M, kind="stable")  # the table is in the order of (partition, offset)
        ordered_M = clock_M[order]
        first, end = _place(ordered_M, from_ms, 0), _place(ordered_M, until_ms, len(ordered_M))
        for start in range(first, end, BLOCK):
            rows = slice(start, min(start + BLOCK, end))
            yield Block(table.take(pa.array(order[rows])), ordered_M[rows])

    def events_alone(self) -> History:
        return History(
            self.pipeline, self.events, self.labels.slice(0, 0), self.event_clock_M, self.label_clock_M[:0]
        )  # fmt: skip

    def most_rows(self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None) -> int:
        clock_M = self.event_clock_M if kind == "events" else self.label_clock_M
        low = -np.inf if from_ms is None else from_ms
        high = np.inf if until_ms is None else until_ms
        return int(((clock_M >= low) & (clock_M < high)).sum())

    def last_clock_ms(self, kind: Kind) -> int | None:
        clock_M = self.event_clock_M if kind == "events" else self.label_clock_M
        return int(clock_M.max()) if len(clock_M) else None

    def first_event_ms(self) -> int:
        if not len(self.events):
            raise HistoryError(f"{self.pipeline.name}: no events: expected a history with some")
        return int(self.event_time_M.min())


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
        clocks_of(events, archive.time_columns["events"]), clocks_of(known, archive.time_columns["labels"]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive events, and a store with all that came before them, labels included."""

    store: MemoryStore
    batch: EventBatch
    clock_M: NDArray[np.int64]


def chunks(
    history: Source,
    until_ms: int | None = None,
    report: Callable[[int, int], None] | None = None,
    *,
    from_ms: int | None = None,
) -> Iterator[Chunk]:
    """All events in the order of the clock. Whoever iterates must `step` the store over each chunk.

    from_ms: begin with the first event, and the first label, whose clock has reached it, and with an empty store.
    until_ms: stop before the first event whose clock has reached it. report(done, total): after every chunk.
    """
    store = MemoryStore(history.pipeline)
    labels = _Labels(store, history.blocks("labels", from_ms, until_ms))
    done, total = 0, history.most_rows("events", from_ms, until_ms)
    for block in history.blocks("events", from_ms, until_ms):
        first, clock_M = 0, block.clock_M
        while first < len(block):
            last = min(_chunk_end(store.layout, clock_M, first), len(block))
            labels.learn_until(int(clock_M[last - 1]))
            yield Chunk(store, _event_batch(store.layout, block.table.slice(first, last - first)), clock_M[first:last])
            done, first = done + last - first, last
            if report is not None:
                report(done, max(done, total))
    if report is not None and done < total:
        report(done, done)  # the total is an upper bound


def replay(
    history: Source,
    want: Want,
    until_ms: int | None = None,
    report: Callable[[int, int], None] | None = None,
    *,
    from_ms: int | None = None,
) -> Iterator[Replayed]:
    """Windows of the events for which `want(batch)` is True; chunks without one are passed over. As `chunks` otherwise.

    A repeated event (its id is still in the window of its entity) comes once, as it is applied once.
    """
    for chunk in chunks(history, until_ms, report, from_ms=from_ms):
        step = chunk.store.step(chunk.batch, chunk.clock_M)
        wanted = want(chunk.batch)[step.applied_A]
        if wanted.any():
            yield Replayed(step.encoded.take(wanted), chunk.batch.take(step.applied_A[wanted]))


class _Labels:
    """Labels on their way to a store, in the order of the clock; no more than a block of them is held."""

    def __init__(self, store: MemoryStore, blocks: Iterator[Block]) -> None:
        self.store, self.blocks = store, blocks
        self.block: Block | None = next(blocks, None)
        self.learnt = 0  # of the block

    def learn_until(self, clock_ms: int) -> None:
        """Labels whose clock is at most this."""
        while self.block is not None:
            known = int(np.searchsorted(self.block.clock_M, clock_ms, side="right"))
            while self.learnt < known:
                self._learn(self.block, min(self.learnt + CHUNK, known))
            if known < len(self.block):
                return
            self.block, self.learnt = next(self.blocks, None), 0

    def _learn(self, block: Block, stop: int) -> None:
        part = block.table.slice(self.learnt, stop - self.learnt)
        self.store.learn(_label_batch(self.store.layout.pipeline, part), block.clock_M[self.learnt : stop])
        self.learnt = stop


def clocks_of(table: pa.Table, time: str) -> NDArray[np.int64]:
    """The clock at each row of a table ordered by (partition, offset). time: the column that moves it."""
    clock_M, partition_M = milliseconds(table[time]).copy(), table[PARTITION].to_numpy()
    for partition in np.unique(partition_M):
        rows = partition_M == partition
        clock_M[rows] = np.maximum.accumulate(clock_M[rows])
    return clock_M


def _place(clock_M: NDArray[np.int64], time_ms: int | None, otherwise: int) -> int:
    """Of the first row whose clock has reached this time."""
    return otherwise if time_ms is None else int(np.searchsorted(clock_M, time_ms))


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
