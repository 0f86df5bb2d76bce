"""The history on disk: events, labels and scores of one pipeline as partitioned Parquet, each row exactly once.

    <root>/<pipeline>/events/date=2026-03-01/part-<partition>-<first offset>-<last offset>.parquet
    <root>/<pipeline>/labels/date=…            (the day a label arrived)
    <root>/<pipeline>/scores/date=…            (the day of the event that was scored)
    <root>/<pipeline>/progress.json            (next offset of each topic partition, rows skipped and why)

Columns of events: `_partition`, `_offset`, `_append_time`, then the pipeline's fields by name, positions as
two columns. Identifiers and categories are kept as their canonical text, numbers as the float32 the worker
sees, times in UTC. Columns of labels: the same three, `event_id`, `label_time`, `fraud`, `source`, `profile.<name>`,
the key under which each shared profile learns of the label, and `value.<field>`, the amount that verdicts are compared
by, as float64. Columns of scores: the same three, and what the worker published. A column that older parts lack reads
as null.

What a crash costs, in the order of `Archive.append`:

1. a part is written under a hidden name and renamed    nothing: hidden files are never read
2. (all parts of the call are in place)                 their rows are fetched again; `Archive` removes parts
                                                        from beyond the progress when it is opened to write
3. progress.json is replaced                            nothing

Nothing here knows where rows come from, and one process at a time may write a pipeline's history.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.clock import DAY_MS, to_iso
from models.pipeline.spec import BooleanField, GeoField, NumberField, Pipeline, TimeField
from training.clock_days import ClockDays, offsets_of
from training.errors import HistoryError

__all__ = [
    "APPEND_TIME",
    "KINDS",
    "OFFSET",
    "PARTITION",
    "Archive",
    "Kind",
    "Progress",
    "Rows",
    "event_schema",
    "label_schema",
    "milliseconds",
    "schemas",
]  # fmt: skip

Kind = Literal["events", "labels", "scores"]
KINDS: tuple[Kind, ...] = ("events", "labels", "scores")
# Field names begin with a letter, so these cannot meet one.
PARTITION, OFFSET, APPEND_TIME = "_partition", "_offset", "_append_time"
SOURCE = [(PARTITION, pa.int32()), (OFFSET, pa.int64()), (APPEND_TIME, pa.timestamp("ms", tz="UTC"))]
FORMAT = 1  # of progress.json
# Arrow reads ahead, and its allocator keeps what that took: 40 bytes more for every row that was ever read.
SPARING = {"use_threads": False, "fragment_readahead": 1, "batch_readahead": 1}


class Progress(msgspec.Struct):
    """What is on disk. next_offset: by kind and partition; skipped: bad records by reason code."""

    format: int = FORMAT
    next_offset: dict[str, dict[int, int]] = msgspec.field(default_factory=dict)
    skipped: dict[str, int] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in KINDS:  # an earlier release kept no scores
            self.next_offset.setdefault(kind, {})


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one partition on their way to disk: a table in the kind's schema, and where to go on after it."""

    partition: int
    table: pa.Table
    next_offset: int


def event_schema(pipeline: Pipeline) -> pa.Schema:
    """Columns of events: see the module's docstring."""
    columns: list[tuple[str, Any]] = list(SOURCE)
    for name, field in pipeline.fields.items():
        if isinstance(field, GeoField):
            columns += [(f"{name}.latitude", pa.float32()), (f"{name}.longitude", pa.float32())]
        elif isinstance(field, NumberField):
            columns.append((name, pa.float32()))
        elif isinstance(field, BooleanField):
            columns.append((name, pa.bool_()))
        elif isinstance(field, TimeField):
            columns.append((name, pa.timestamp("ms", tz="UTC")))
        else:
            columns.append((name, pa.string()))
    return pa.schema(columns)


def label_schema(pipeline: Pipeline) -> pa.Schema:
    """Columns of labels: see the module's docstring."""
    columns = [
        *SOURCE,
        ("event_id", pa.string()),
        ("label_time", pa.timestamp("ms", tz="UTC")),
        ("fraud", pa.bool_()),
        ("source", pa.string()),
    ]
    columns += [(f"profile.{name}", pa.string()) for name in pipeline.profiles]
    return pa.schema([*columns, *((f"value.{name}", pa.float64()) for name in pipeline.label_amounts)])


def score_schema() -> pa.Schema:
    """Columns of scores: see the module's docstring."""
    columns = [("event_id", pa.string()), ("entity", pa.string()), ("event_time", pa.timestamp("ms", tz="UTC"))]
    columns += [("score", pa.float32()), ("probability", pa.float32()), ("alert", pa.bool_()), ("model", pa.string())]
    return pa.schema([*SOURCE, *columns])


def schemas(pipeline: Pipeline) -> dict[Kind, pa.Schema]:
    """Of every kind of rows."""
    return {"events": event_schema(pipeline), "labels": label_schema(pipeline), "scores": score_schema()}


class Archive:
    """One pipeline's history below `root`."""

    def __init__(self, root: Path, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.folder = root / pipeline.name
        self.schemas = schemas(pipeline)
        self.time_columns: dict[Kind, str] = {
            "events": pipeline.pipeline.time, "labels": "label_time", "scores": "event_time"
        }  # fmt: skip

    def progress(self) -> Progress:
        """How far the history reaches; an empty one where there is none. Raises HistoryError."""
        path = self.folder / "progress.json"
        if not path.exists():
            return Progress()
        try:
            progress = msgspec.json.decode(path.read_bytes(), type=Progress)
        except msgspec.MsgspecError as error:
            raise HistoryError(f"{path}: {error}: expected a progress file of format {FORMAT}") from error
        if progress.format != FORMAT:
            raise HistoryError(f"{path}: format = {progress.format}: expected {FORMAT}")
        return progress

    def open_to_write(self) -> Progress:
        """The progress, after parts that a crashed writer left beyond it are removed."""
        progress = self.progress()
        for kind in self.schemas:
            for part in sorted((self.folder / kind).glob("date=*/part-*.parquet")):
                partition, first, _ = offsets_of(part)
                if first >= progress.next_offset[kind].get(partition, 0):
                    part.unlink()
            for hidden in (self.folder / kind).glob("date=*/.part-*"):
                hidden.unlink()
        return progress

    def append(self, kind: Kind, batches: list[Rows], progress: Progress) -> int:
        """Write rows, then the progress, which is updated in place. Returns the number of rows."""
        rows = 0
        for batch in batches:
            rows += batch.table.num_rows
            self._write_by_day(kind, batch)
            progress.next_offset[kind][batch.partition] = batch.next_offset
        self._save(progress)
        return rows

    def read(self, kind: Kind) -> pa.Table:
        """All rows, ordered by (partition, offset), each once. Raises HistoryError when there are none of events.

        The whole history is held in memory, about 100 bytes a row.
        """
        parts = self._parts(kind)
        return _each_once(self._table(kind, parts)) if parts else self.schemas[kind].empty_table()

    def days(self, kind: Kind) -> ClockDays:
        """By which the history can be read in pieces. Raises HistoryError when there are no parts of events."""
        return ClockDays(self._parts(kind))

    def read_days(
        self, kind: Kind, days: ClockDays, first_day: int, end_day: int, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Rows whose clock lies in these days (see `ClockDays`), ordered by (partition, offset), each once.

        columns: that are wanted, None for all; partition, offset and time come with them. Only parts in which such rows
        lie are opened. What is held is these days and, for a moment, the rest of those parts.
        """
        rows = days.rows(first_day, end_day)
        table = self._table(kind, days.parts_of(rows), columns, **SPARING)
        partition_M, offset_M = table[PARTITION].to_numpy(), table[OFFSET].to_numpy()
        inside_M = np.zeros(len(table), dtype=bool)
        for partition, (low, high) in rows.items():
            inside_M |= (partition_M == partition) & (offset_M >= low) & (offset_M < high)
        return _each_once(table if inside_M.all() else table.filter(pa.array(inside_M)))

    def first_ms(self, kind: Kind, days: ClockDays) -> int:
        """The least time of all rows: it is in a part of the first day."""
        table = self._table(kind, days.filed_under(int(days.days[0])), [])
        return int(milliseconds(table[self.time_columns[kind]]).min())

    def _parts(self, kind: Kind) -> list[Path]:
        parts = sorted((self.folder / kind).glob("date=*/part-*.parquet"))
        if not parts and kind == "events":
            raise HistoryError(f"{self.folder / kind}: no parts: run `python -m training history` first")
        return parts

    def _table(self, kind: Kind, parts: list[Path], columns: Sequence[str] | None = None, **reading: Any) -> pa.Table:
        schema = self.schemas[kind]
        wanted = schema.names if columns is None else self._with_place(kind, columns)
        if not parts:
            return schema.empty_table().select(wanted)
        return ds.dataset([str(part) for part in parts], format="parquet", schema=schema).to_table(
            columns=wanted, **reading
        )

    def _with_place(self, kind: Kind, columns: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([PARTITION, OFFSET, self.time_columns[kind], *columns]))

    def _write_by_day(self, kind: Kind, rows: Rows) -> None:
        day_M = milliseconds(rows.table[self.time_columns[kind]]) // DAY_MS
        for day in np.unique(day_M).tolist():
            table = rows.table.filter(pa.array(day_M == day))
            offsets = table[OFFSET]
            folder = self.folder / kind / f"date={to_iso(day * DAY_MS)[:10]}"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"part-{rows.partition}-{pc.min(offsets).as_py()}-{pc.max(offsets).as_py()}.parquet"
            hidden = folder / f".{name}"
            pq.write_table(table, hidden, compression="zstd")
            _sync(hidden)
            hidden.replace(folder / name)

    def _save(self, progress: Progress) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        hidden = self.folder / ".progress.json"
        hidden.write_bytes(msgspec.json.format(msgspec.json.encode(progress)))
        _sync(hidden)
        hidden.replace(self.folder / "progress.json")


def milliseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Epoch milliseconds of a timestamp column without nulls."""
    return np.asarray(column.cast(pa.int64()).to_numpy())


def _each_once(table: pa.Table) -> pa.Table:
    """By (partition, offset); a row that a crashed writer left in two parts comes once."""
    partition_M, offset_M = table[PARTITION].to_numpy(), table[OFFSET].to_numpy()
    order = np.lexsort((offset_M, partition_M))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(partition_M[order]) != 0) | (np.diff(offset_M[order]) != 0)
    return table.take(pa.array(order[first])).combine_chunks()


def _sync(path: Path) -> None:
    """A renamed file that is empty after a power cut would be worse than none."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
