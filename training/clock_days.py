"""Which rows of a history have their clock in which day, said by the names of its parts alone.

A row's clock is the running maximum of time within its partition, in offset order. Parts are filed by the day of time
and named by their offsets, so of a partition p and a day X

    b(X) = the least first offset of its parts of day X or later

is the first row whose clock has reached X: no row before it is of X or later, and itself it is. The rows of p with a
clock in day X are those from b(X) up to b(X + 1). They lie in parts of X and, where they came late, of days before; and
since the first of them is itself of day X, their clocks need nothing of what came before. Days can therefore be read
one by one, from any of them on, and their clocks follow one another.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import HistoryError

__all__ = ["ClockDays", "Offsets", "offsets_of"]

PART_NAME = re.compile(r"part-(\d+)-(\d+)-(\d+)\.parquet")
FOLDER = "date="
BEYOND = np.iinfo(np.int64).max  # of all offsets

Offsets = dict[int, tuple[int, int]]  # of each partition: the first offset, and the first no longer meant


def offsets_of(part: Path) -> tuple[int, int, int]:
    """Partition, first and last offset by a part's name. Raises HistoryError for another name."""
    match = PART_NAME.fullmatch(part.name)
    if match is None:
        raise HistoryError(f"{part}: expected a name like part-0-0-999.parquet")
    return int(match[1]), int(match[2]), int(match[3])


class ClockDays:
    """The parts of one kind, as they were when this was made. day: whole days since 1970.

    Raises HistoryError for a part that is named or filed otherwise than `Archive` does.
    """

    def __init__(self, parts: list[Path]) -> None:
        self.parts = parts
        rows = np.array([(*offsets_of(part), _day_of(part)) for part in parts], dtype=np.int64).reshape(-1, 4)
        self._partition_P, self._first_P, self._last_P, self._day_P = rows.T
        self.days = np.unique(self._day_P)
        self._begins = {p: self._begins_of(p) for p in np.unique(self._partition_P).tolist()}

    def rows(self, first_day: int, end_day: int) -> Offsets:
        """Of each partition the offsets whose clock is of first_day or later and before end_day; without empty ones."""
        found = {p: (begins.at(first_day), begins.at(end_day)) for p, begins in self._begins.items()}
        return {p: (low, high) for p, (low, high) in found.items() if low < high}

    def parts_of(self, rows: Offsets) -> list[Path]:
        """The parts in which these rows lie; they may hold others, too."""
        wanted_P = np.zeros(len(self.parts), dtype=bool)
        for partition, (low, high) in rows.items():
            wanted_P |= (self._partition_P == partition) & (self._last_P >= low) & (self._first_P < high)
        return [self.parts[i] for i in np.flatnonzero(wanted_P).tolist()]

    def filed_under(self, day: int) -> list[Path]:
        """The parts with rows whose time, not clock, is of this day."""
        return [self.parts[i] for i in np.flatnonzero(self._day_P == day).tolist()]

    def most_rows(self, first_day: int, end_day: int) -> int:
        """How many rows there are at most: offsets that were left out, or never were, count."""
        rows = self.rows(first_day, end_day)
        return sum(min(high, self._begins[p].end) - low for p, (low, high) in rows.items())

    def spans(self, first_day: int, end_day: int, rows: int) -> list[tuple[int, int]]:
        """Ranges of days, one after another, of about so many rows at most, but of a day at least."""
        days = self.days[(self.days >= first_day) & (self.days < end_day)].tolist()
        spans: list[tuple[int, int]] = []
        for day, after in itertools.pairwise([*days, end_day]):
            if spans and self.most_rows(spans[-1][0], after) <= rows:
                spans[-1] = (spans[-1][0], after)
            else:
                spans.append((day, after))
        return spans

    def _begins_of(self, partition: int) -> _Begins:
        mine_P = self._partition_P == partition
        order = np.argsort(self._day_P[mine_P], kind="stable")
        least = np.minimum.accumulate(self._first_P[mine_P][order][::-1])[::-1]
        return _Begins(self._day_P[mine_P][order], least, int(self._last_P[mine_P].max()) + 1)


@dataclass(frozen=True, slots=True)
class _Begins:
    """b(X) of one partition: of each of its parts, by day, the least first offset from it on. end: after its last."""

    day_P: NDArray[np.int64]
    least_P: NDArray[np.int64]
    end: int

    def at(self, day: int) -> int:
        place = int(np.searchsorted(self.day_P, day))
        return int(self.least_P[place]) if place < len(self.least_P) else BEYOND


def _day_of(part: Path) -> int:
    folder = part.parent.name
    try:
        if not folder.startswith(FOLDER):
            raise ValueError
        return int(np.datetime64(folder.removeprefix(FOLDER), "D").astype(np.int64))
    except ValueError as error:
        raise HistoryError(f"{part}: expected it in a folder like {FOLDER}2026-03-01") from error
