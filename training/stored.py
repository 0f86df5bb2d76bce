"""A history that stays on disk: read a few clock days at a time, however long it is.

What is in memory at once is one block of events and one of labels: about `BLOCK` rows, or a single day where that has
more. Days before the wanted ones are not opened, so a window that moves along years costs what lies in it. The parts
are listed when the history is opened; what is appended later does not exist for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from models.clock import DAY_MS
from training.archive import Archive, Kind
from training.clock_days import ClockDays
from training.replay import clocks_of
from training.source import Block, Source

__all__ = ["StoredHistory", "open_history"]

BLOCK = 65_536  # rows; a part is opened once for each block that it has rows in


class StoredHistory(Source):
    """Events and labels below an archive, as listed in `days`. end_ms: what has a clock from it on does not exist."""

    def __init__(self, archive: Archive, days: dict[Kind, ClockDays], end_ms: int | None = None) -> None:
        self.pipeline = archive.pipeline
        self._archive, self._days, self._end_ms = archive, days, end_ms

    def blocks(
        self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Block]:  # fmt: skip
        for span in self._spans(kind, from_ms, until_ms):
            block = self._cut(self._read(kind, span, columns), from_ms, self._until(until_ms))
            if len(block):
                yield block

    def known_by(self, end_ms: int) -> StoredHistory:
        return StoredHistory(self._archive, self._days, self._until(end_ms))

    def events_alone(self) -> StoredHistory:
        return StoredHistory(self._archive, self._days | {"labels": ClockDays([])}, self._end_ms)

    def most_rows(self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None) -> int:
        """Offsets of the days in which these clocks lie: more than there are rows, by less than two days."""
        spans = self._spans(kind, from_ms, until_ms)
        return self._days[kind].most_rows(spans[0][0], spans[-1][1]) if spans else 0

    def last_clock_ms(self, kind: Kind) -> int | None:
        for first_day, end_day in reversed(self._spans(kind, None, None)):
            block = self._cut(self._read(kind, (first_day, end_day), []), None, self._end_ms)
            if len(block):
                return int(block.clock_M[-1])
        return None

    def first_event_ms(self) -> int:
        """Of the whole history, also when less is known: the least time lies in the first day's parts."""
        return self._archive.first_ms("events", self._days["events"])

    def _until(self, until_ms: int | None) -> int | None:
        ends = [end for end in (until_ms, self._end_ms) if end is not None]
        return min(ends) if ends else None

    def _spans(self, kind: Kind, from_ms: int | None, until_ms: int | None) -> list[tuple[int, int]]:
        days, until_ms = self._days[kind], self._until(until_ms)
        if not len(days.days):
            return []
        first = int(days.days[0]) if from_ms is None else from_ms // DAY_MS
        end = int(days.days[-1]) + 1 if until_ms is None else -(-until_ms // DAY_MS)
        return days.spans(first, end, BLOCK)

    def _read(self, kind: Kind, span: tuple[int, int], columns: Sequence[str] | None) -> Block:
        table = self._archive.read_days(kind, self._days[kind], *span, columns)
        clock_M = clocks_of(table, self._archive.time_columns[kind])
        order = np.argsort(clock_M, kind="stable")  # the table is in the order of (partition, offset)
        return Block(table.take(pa.array(order)).combine_chunks(), clock_M[order])

    def _cut(self, block: Block, from_ms: int | None, until_ms: int | None) -> Block:
        low = 0 if from_ms is None else int(np.searchsorted(block.clock_M, from_ms))
        high = len(block) if until_ms is None else int(np.searchsorted(block.clock_M, until_ms))
        if (low, high) == (0, len(block)):
            return block
        return Block(block.table.slice(low, high - low), block.clock_M[low:high])


def open_history(archive: Archive) -> StoredHistory:
    """The history on disk. Nothing but names is read. Raises HistoryError without events."""
    return StoredHistory(archive, {"events": archive.days("events"), "labels": archive.days("labels")})
