"""What a replay reads: the rows of a history in the order of the clock, a block at a time.

`training.replay.History` has them in memory, `training.stored.StoredHistory` on disk. What can be asked of either is
computed from the blocks, so it is the same of both; the questions here hold no more of a history than a block, and of
verdicts those on events that were called fraud at some time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.pipeline.spec import Pipeline
from training.archive import OFFSET, PARTITION, Kind, milliseconds
from training.errors import HistoryError

__all__ = ["Block", "Source"]

VERDICT = ("event_id", "label_time", "fraud")


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows in the order of (clock, partition, offset). clock_M: int64, epoch ms."""

    table: pa.Table
    clock_M: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.clock_M)


class Source(ABC):
    """Events and labels of a pipeline, and their clocks."""

    pipeline: Pipeline

    @abstractmethod
    def blocks(
        self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None,
        columns: Sequence[str] | None = None,
    ) -> Iterator[Block]:  # fmt: skip
        """Rows with from_ms <= clock < until_ms, each once; blocks are not empty, and their sizes mean nothing.

        columns: that are wanted, None for all; partition and offset come with them, others may.
        """

    @abstractmethod
    def known_by(self, end_ms: int) -> Source:
        """What had arrived when the clock stood at `end_ms`: nothing from there on, no later label."""

    @abstractmethod
    def events_alone(self) -> Source:
        """Without any label."""

    @abstractmethod
    def most_rows(self, kind: Kind, from_ms: int | None = None, until_ms: int | None = None) -> int:
        """At least as many as `blocks` has rows: quick to find, to measure progress by."""

    @abstractmethod
    def last_clock_ms(self, kind: Kind) -> int | None:
        """The greatest clock of the kind, None without rows."""

    @abstractmethod
    def first_event_ms(self) -> int:
        """The least event time. Raises HistoryError without events."""

    def end_ms(self) -> int:
        """The first time that no clock has reached, of events and labels."""
        clocks = [self.last_clock_ms("events"), self.last_clock_ms("labels")]
        known = [clock for clock in clocks if clock is not None]
        if not known:
            raise HistoryError(f"{self.pipeline.name}: no events: expected a history with some")
        return max(known) + 1

    def count_events(self, start_ms: int | None = None, end_ms: int | None = None) -> int:
        """Events whose event time lies in [start_ms, end_ms)."""
        time, count = self.pipeline.pipeline.time, 0
        for block in self.blocks("events", start_ms, columns=[time]):  # a clock is never before its event
            time_M = milliseconds(block.table[time])
            low = -np.inf if start_ms is None else start_ms
            high = np.inf if end_ms is None else end_ms
            count += int(((time_M >= low) & (time_M < high)).sum())
        return count

    def frauds(self, from_ms: int | None = None) -> set[str]:
        """Ids of the events whose last verdict to arrive is fraud.

        from_ms: pass over labels with an earlier clock. No verdict on an event after it is among them.
        """
        ever: set[str] = set()
        for block in self.blocks("labels", from_ms, columns=VERDICT):
            ever.update(block.table["event_id"].filter(block.table["fraud"]).to_pylist())
        if not ever:
            return ever
        last: dict[str, tuple[int, int, int, bool]] = {}
        concerned = pa.array(sorted(ever), pa.string())
        for block in self.blocks("labels", from_ms, columns=VERDICT):
            rows = block.table.filter(pc.is_in(block.table["event_id"], concerned))
            for event_id, *said in zip(*_said(rows), strict=True):
                last[event_id] = max(last.get(event_id, (-1, -1, -1, False)), tuple(said))
        return {event_id for event_id, said in last.items() if said[-1]}


def _said(labels: pa.Table) -> list[list[Any]]:
    """Event, and what verdicts on it are ordered by: arrival, then partition and offset; then the verdict."""
    time_M = milliseconds(labels["label_time"]).tolist()
    return [labels["event_id"].to_pylist(), time_M, *(labels[c].to_pylist() for c in (PARTITION, OFFSET, "fraud"))]
