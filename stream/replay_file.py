"""Rows to be published, from a CSV, JSONL or Parquet file or from memory, in event-time order.

A file's columns are matched to the pipeline's fields; values are only unwrapped (`"12.5"` in a CSV is a number),
never judged: that is the worker's task, so a bad value reaches the topic as it stands. A CSV's separator and its
words for a missing value are recognised as `python -m models pipeline init` does. Rows without a usable time cannot
be put in order and are counted as skipped. The file must fit in memory.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.clock import from_iso
from models.errors import LeptonError, shorten
from models.pipeline.sample import BOOLEAN_WORDS, MISSING_TEXTS, csv_delimiter
from models.pipeline.spec import BooleanField, Field, GeoField, NumberField, Pipeline

__all__ = ["FileRows", "Rows", "read_file"]

Row = dict[str, Any]
NO_TIME = np.iinfo(np.int64).min
BOOLEANS = {**BOOLEAN_WORDS, "1": True, "0": False}
LATITUDE, LONGITUDE = ".latitude", ".longitude"
HEAD = 65_536  # characters that hold a CSV's header
LONGEST_MISSING = max(map(len, MISSING_TEXTS))


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows in the order in which they are published; a row is made when it is asked for.

    time_ms: int64 (N,), event time (of a label: when it arrived). read(start, stop) gives rows start … stop − 1:
    events by field name as `Codec.encode_event` takes them; labels with `event_id`, `time`, `fraud` and the
    fields that name shared profiles or are compared there.
    """

    time_ms: NDArray[np.int64]
    read: Callable[[int, int], list[Row]]

    def __len__(self) -> int:
        return len(self.time_ms)

    @staticmethod
    def of(rows: Sequence[Mapping[str, Any]], time: str, sort: bool = True) -> Rows:
        """Rows in memory; `time` names the key with epoch milliseconds. sort=False keeps them out of order."""
        time_ms = np.array([row[time] for row in rows], dtype=np.int64)
        order = np.argsort(time_ms, kind="stable") if sort else np.arange(len(rows))
        return Rows(time_ms[order], lambda start, stop: [dict(rows[i]) for i in order[start:stop].tolist()])

    @staticmethod
    def of_columns(columns: Mapping[str, NDArray[Any]], time: str) -> Rows:
        """The same from equally long columns."""
        order = np.argsort(columns[time], kind="stable")

        def read(start: int, stop: int) -> list[Row]:
            return _zip({name: column[order[start:stop]].tolist() for name, column in columns.items()})

        return Rows(columns[time][order].astype(np.int64), read)

    def between(self, start_ms: int | None, end_ms: int | None) -> Rows:
        """Rows with start ≤ time < end, of rows in order of time."""
        first = 0 if start_ms is None else int(np.searchsorted(self.time_ms, start_ms))
        last = len(self) if end_ms is None else max(first, int(np.searchsorted(self.time_ms, end_ms)))
        read = self.read
        return Rows(self.time_ms[first:last], lambda start, stop: read(first + start, min(first + stop, last)))


@dataclass(frozen=True, slots=True)
class FileRows:
    """What a file holds. `skipped` rows have no usable time."""

    events: Rows
    labels: Rows | None
    skipped: int


def read_file(
    path: Path,
    pipeline: Pipeline,
    *,
    columns: Mapping[str, str] | None = None,
    labels: str | None = None,
    label_delay_ms: int = 0,
) -> FileRows:
    """Read a .csv, .jsonl (.ndjson, .json) or .parquet file.

    columns: file column → field (name or JSON key; `latitude` or `<field>.latitude` for positions) where names
    differ. labels: column with the verdict of each row (true, false, 1, 0; empty: none); its label arrives
    `label_delay_ms` after the event. Raises LeptonError that names the file and what was expected.
    """
    wanted = _wanted(pipeline, dict(columns or {}))
    table = _read(path)
    found = {part: name for part, names in wanted.items() for name in names if name in table.columns}
    for part, names in wanted.items():
        if part not in found and _field(pipeline, part).required:
            raise LeptonError(
                f"{path}: column {names[0]!r} for the field {part} is missing: expected it, or a column mapping, "
                f"among {_names(table.columns)}"
            )
    if labels is not None and labels not in table.columns:
        raise LeptonError(f"{path}: label column {labels!r} is missing: expected one of {_names(table.columns)}")
    time = pipeline.pipeline.time
    unit = getattr(pipeline.fields[time], "unit", "ms")
    time_ms = table.times(found[time], unit)
    order = np.argsort(time_ms, kind="stable")
    skipped = int((time_ms == NO_TIME).sum())
    if skipped == len(time_ms) and skipped:
        value = shorten(table.slice(found[time], 0, 1)[0])
        raise LeptonError(f"{path}: {found[time]} = {value} in the first row: expected a time in unit {unit}")
    order = order[skipped:]
    table = table.take(order, [*found.values(), *([labels] if labels else [])])
    events = _event_rows(table, pipeline, found, time_ms[order])
    if labels is None:
        return FileRows(events, None, skipped)
    verdicts = [_boolean(value) for value in table.slice(labels, 0, len(events))]
    wrong = next((v for v in verdicts if v not in (None, 0, 1)), None)
    if wrong is not None:
        raise LeptonError(f"{path}: {labels} = {shorten(wrong)}: expected true, false, 1, 0 or nothing")
    return FileRows(events, _label_rows(pipeline, events, verdicts, label_delay_ms), skipped)


def _event_rows(table: _Table, pipeline: Pipeline, found: dict[str, str], time_ms: NDArray[np.int64]) -> Rows:
    time = pipeline.pipeline.time
    kinds = {part: _unwrap(_field(pipeline, part)) for part in found if part != time}

    def read(start: int, stop: int) -> list[Row]:
        columns: dict[str, list[Any]] = {time: time_ms[start:stop].tolist()}
        for part, unwrap in kinds.items():
            columns[part] = [unwrap(value) for value in table.slice(found[part], start, stop)]
        return _zip(columns)

    return Rows(time_ms, read)


def _label_rows(pipeline: Pipeline, events: Rows, verdicts: list[Any], delay_ms: int) -> Rows:
    """The labels of those events that have a verdict."""
    kept = np.array([i for i, verdict in enumerate(verdicts) if verdict is not None], dtype=np.int64)
    fields = [*pipeline.profile_keys, *pipeline.label_amounts]
    event_id, time = pipeline.pipeline.event_id, pipeline.pipeline.time

    def read(start: int, stop: int) -> list[Row]:
        positions = kept[start:stop].tolist()
        if not positions:
            return []
        first = positions[0]
        rows = events.read(first, positions[-1] + 1)
        return [
            {"event_id": row[event_id], "time": row[time] + delay_ms, "fraud": bool(verdicts[p])}
            | {name: row.get(name) for name in fields}
            for p in positions
            for row in (rows[p - first],)
        ]

    return Rows(events.time_ms[kept] + delay_ms, read)


def _wanted(pipeline: Pipeline, renamed: dict[str, str]) -> dict[str, list[str]]:
    """For every part of an event (fields, and two for a position) the file columns it may come from, best first."""
    wanted: dict[str, list[str]] = {}
    for name, field in pipeline.fields.items():
        if isinstance(field, GeoField):
            wanted[name + LATITUDE] = [field.latitude, name + LATITUDE]
            wanted[name + LONGITUDE] = [field.longitude, name + LONGITUDE]
        else:
            wanted[name] = [pipeline.json_key(name), name]
    for column, target in renamed.items():
        part: str | None = next((p for p, names in wanted.items() if target in (p, *names)), None)
        if part is None:
            raise LeptonError(f"column mapping {column}={target}: expected one of the fields {_names(wanted)}")
        wanted[part] = [column]
    return wanted


def _field(pipeline: Pipeline, part: str) -> Field:
    return pipeline.fields[part.removesuffix(LATITUDE).removesuffix(LONGITUDE)]


def _names(names: Any) -> str:
    return ", ".join(names)


def _zip(columns: dict[str, list[Any]]) -> list[Row]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _unwrap(field: Field) -> Callable[[Any], Any]:
    if isinstance(field, NumberField | GeoField):
        return _number
    return _boolean if isinstance(field, BooleanField) else _text


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        number = float(value) if value.strip() else None
    except ValueError:
        return value
    return value if number is not None and math.isinf(number) else number


def _boolean(value: Any) -> Any:
    if isinstance(value, str):
        text = value.strip().lower()
        return BOOLEANS.get(text, value) if text else None
    return _text(value)


def _text(value: Any) -> Any:
    """An identifier or category. Table libraries read integers with gaps as floats."""
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else str(value)
    if isinstance(value, date):
        return value.isoformat()
    return None if value == "" else value


def _time(value: Any, unit: str) -> int:
    """Epoch milliseconds of a file's value, NO_TIME when it is none."""
    try:
        if unit == "iso8601":
            return from_iso(value.strip())
        return round(float(value) * (1000 if unit == "s" else 1))
    except (ValueError, TypeError, AttributeError, OverflowError):
        return NO_TIME


class _Table:
    """Columns of a text file, as lists."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def slice(self, name: str, start: int, stop: int) -> list[Any]:
        return list(self.columns[name][start:stop])

    def times(self, name: str, unit: str) -> NDArray[np.int64]:
        return np.array([_time(value, unit) for value in self.columns[name]], dtype=np.int64)

    def take(self, order: NDArray[np.int64], names: list[str]) -> _Table:
        index = order.tolist()
        return _Table({name: [self.columns[name][i] for i in index] for name in names})


class _ArrowTable(_Table):
    """Columns of a Parquet file, as Arrow arrays: compact, and typed."""

    def slice(self, name: str, start: int, stop: int) -> list[Any]:
        return list(self.columns[name].slice(start, max(0, stop - start)).to_pylist())

    def times(self, name: str, unit: str) -> NDArray[np.int64]:
        import pyarrow as pa  # noqa: PLC0415, an extra

        column = self.columns[name]
        if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
            return _Table({name: column.to_pylist()}).times(name, unit)
        stamps = column.cast(pa.timestamp("ms", getattr(column.type, "tz", None)), safe=False)
        return np.array(stamps.cast(pa.int64()).fill_null(NO_TIME).to_numpy(), dtype=np.int64)

    def take(self, order: NDArray[np.int64], names: list[str]) -> _Table:
        return _ArrowTable({name: self.columns[name].take(order).combine_chunks() for name in names})


def _read(path: Path) -> _Table:
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_jsonl,
               ".parquet": _read_parquet}  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LeptonError(f"{path}: expected a file that ends in one of {_names(readers)}")
    try:
        return reader(path)
    except OSError as error:
        raise LeptonError(f"{path}: {error.strerror or error}: expected a readable file") from error
    except UnicodeDecodeError as error:
        raise LeptonError(f"{path}: byte {error.start} is not UTF-8: expected UTF-8 text") from error
    except csv.Error as error:
        raise LeptonError(f"{path}: {error}: expected CSV, its quotes closed") from error


def _read_csv(path: Path) -> _Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = csv_delimiter(file.read(HEAD))
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, None)
        if not header:
            raise LeptonError(f"{path}: expected a first line with column names")
        columns: list[list[str | None]] = [[] for _ in header]
        for row in reader:
            if row:  # a short row lacks its last values
                for column, value in zip_longest(columns, row[: len(header)], fillvalue=""):
                    column.append(_present(value))  # type: ignore[union-attr]
    table: dict[str, list[str | None]] = {}
    for name, column in zip(header, columns, strict=True):
        table.setdefault(name, column)  # of columns with one name the first counts
    return _Table(table)


def _present(text: str) -> str | None:
    """The text of a CSV's value, None for the words that stand for a missing one."""
    text = text.strip()
    return None if len(text) <= LONGEST_MISSING and text.lower() in MISSING_TEXTS else text


def _read_jsonl(path: Path) -> _Table:
    rows: list[Row] = []
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(decode(line))
                except (msgspec.MsgspecError, RecursionError) as error:
                    raise LeptonError(f"{path}: line {number}: {error}: expected one JSON object") from error
    names = {name: None for row in rows for name in row}
    return _Table({name: [row.get(name) for row in rows] for name in names})


def _read_parquet(path: Path) -> _Table:
    try:
        import pyarrow as pa  # noqa: PLC0415, an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise LeptonError(f"{path}: reading Parquet: expected `pip install lepton[training]` (pyarrow)") from error
    try:
        table = parquet.read_table(path)
    except pa.ArrowInvalid as error:
        raise LeptonError(f"{path}: {error}: expected a Parquet file") from error
    return _ArrowTable({name: table.column(name) for name in table.column_names})
