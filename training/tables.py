"""A user's file of past events as rows a codec encodes: columns found by name, ordered by event time.

Reads CSV, JSONL and Parquet with pandas. Times are what the pipeline's unit says, or whatever pandas reads
as a date; a time without an offset is UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.pipeline.sample import BOOLEAN_WORDS, MISSING_TEXTS, csv_delimiter
from models.pipeline.spec import BooleanField, GeoField, NumberField, Pipeline, TimeField
from training.errors import HistoryError

__all__ = ["Label", "Mapped", "read_file"]

HEAD_CHARS = 65_536  # hold a CSV's header
CHUNK = 20_000  # rows turned into Python objects at a time


@dataclass(frozen=True, slots=True)
class Label:
    """One verdict: when it arrived, and what it says of the event: the entities whose shared profiles learn of it, and
    the amounts that are compared there."""

    event_id: object
    time_ms: int
    fraud: bool
    fields: dict[str, object]


class Mapped:
    """A table whose columns are matched to a pipeline's fields.

    columns: file column → JSON key or field name, for those that carry another name in the file.
    labels: the column with the verdict (0/1, true/false; empty: none), None for a table without labels.
    label_delay_ms: how long after its event each label arrives; label_time names a column that says it instead.
    Raises HistoryError when a required field has no column.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        pipeline: Pipeline,
        *,
        labels: str | None = None,
        label_delay_ms: int = 0,
        label_time: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self.pipeline, self.label_column, self.delay_ms, self.label_time = pipeline, labels, label_delay_ms, label_time
        self.frame = frame.rename(columns=dict(columns or {}))
        self.sources = self._sources()
        for name in (labels, label_time):
            if name is not None and name not in self.frame:
                raise HistoryError(f"column {name!r} for labels: expected one of {_names(self.frame)}")
        self.time_M = self._times(self.frame[self.sources[pipeline.pipeline.time]], pipeline.pipeline.time)
        self.order = np.argsort(self.time_M, kind="stable")

    def __len__(self) -> int:
        return len(self.frame)

    def events(self) -> Iterator[tuple[int, dict[str, object]]]:
        """(event time in ms, row by field name) in event time order; missing values are left out."""
        time = self.pipeline.pipeline.time
        sources = [(name, source) for name, source in self.sources.items() if name != time]
        for index in _chunks(self.order):
            times = self.time_M[index].tolist()
            columns = [(name, self._values(name, source, index)) for name, source in sources]
            for i, time_ms in enumerate(times):
                row = {name: values[i] for name, values in columns if values[i] is not None}
                row[time] = time_ms
                yield time_ms, row

    def labels(self) -> Iterator[Label]:
        """Labels in the order of their arrival."""
        if self.label_column is None:
            return
        verdict, arrival_M = self.verdicts()
        known = ~np.isnan(verdict)
        order = np.argsort(arrival_M, kind="stable")
        fields = [n for n in (*self.pipeline.profile_keys, *self.pipeline.label_amounts) if n in self.sources]
        event_id = self.pipeline.pipeline.event_id
        for index in _chunks(order[known[order]]):
            ids = self._values(event_id, self.sources[event_id], index)
            field_values = [(name, self._values(name, self.sources[name], index)) for name in fields]
            times = arrival_M[index].tolist()
            for i, fraud in enumerate((verdict[index] > 0).tolist()):
                yield Label(ids[i], times[i], fraud, {name: values[i] for name, values in field_values})

    def verdicts(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Verdict of each row (above 0: fraud; NaN: none) and when it arrives; both in the order of the file."""
        assert self.label_column is not None
        column = self.frame[self.label_column]
        distinct = {value: _boolean(value) for value in column.unique().tolist()}
        verdict_M = pd.to_numeric(column.map(distinct), errors="coerce").to_numpy(np.float64)
        arrival_M = self.time_M + self.delay_ms
        if self.label_time is not None:
            known_M = ~np.isnan(verdict_M) & self.frame[self.label_time].notna().to_numpy()
            verdict_M = np.where(known_M, verdict_M, np.nan)
            arrival_M[known_M] = self._times(self.frame.loc[known_M, self.label_time], self.label_time)
        return verdict_M, arrival_M

    def _sources(self) -> dict[str, str]:
        """Field (positions: both parts) → column of the frame, by JSON key first, then by field name."""
        sources = {}
        for name, field in self.pipeline.fields.items():
            if isinstance(field, GeoField):
                wanted = [(f"{name}.latitude", field.latitude), (f"{name}.longitude", field.longitude)]
            else:
                wanted = [(name, self.pipeline.json_key(name))]
            for column, key in wanted:
                found = key if key in self.frame else column if column in self.frame else None
                if found is not None:
                    sources[column] = found
                elif field.required:
                    raise HistoryError(
                        f"field {column} (JSON key {key!r}): expected a column of that name, or --columns FILE={key}; "
                        f"the file has {_names(self.frame)}"
                    )
        return sources

    def _times(self, column: pd.Series[Any], name: str) -> NDArray[np.int64]:
        field = self.pipeline.fields[self.pipeline.pipeline.time]
        unit = field.unit if isinstance(field, TimeField) else "iso8601"
        try:
            if unit != "iso8601" and not pd.api.types.is_datetime64_any_dtype(column):
                column = pd.to_numeric(column)
            if pd.api.types.is_numeric_dtype(column):
                return np.asarray(np.round(column.to_numpy(np.float64) * (1 if unit == "ms" else 1000)), dtype=np.int64)
            stamps = pd.to_datetime(column, utc=True, format=None if column.dtype.kind == "M" else "ISO8601")
        except (ValueError, TypeError) as error:
            reason = str(error).partition("\n")[0]  # pandas goes on with advice to programmers
            raise HistoryError(f"column {name!r}: {reason}: expected times in the unit {unit}") from error
        if stamps.isna().any():
            raise HistoryError(f"column {name!r}: {int(stamps.isna().sum())} rows have no time")
        return np.asarray(stamps.dt.as_unit("ms").to_numpy("datetime64[ms]")).astype(np.int64)

    def _values(self, name: str, source: str, index: NDArray[np.int64]) -> list[Any]:
        """Python values, None where missing, of the type the codec expects in JSON."""
        column = self.frame[source].iloc[index]
        missing = column.isna().to_numpy()
        field = self.pipeline.fields[name.split(".", maxsplit=1)[0]]
        values = column.tolist()
        if isinstance(field, NumberField | GeoField):
            values = [_number(v) for v in values]
        elif isinstance(field, BooleanField):
            values = [_boolean(v) if isinstance(v, str) else bool(v) for v in values]
            values = [bool(v) if v in (0, 1) else v for v in values]
        elif pd.api.types.is_float_dtype(column.dtype):
            values = [int(v) if v.is_integer() else v for v in values]  # integers beside gaps are read as floats
        return [None if gone else value for value, gone in zip(values, missing.tolist(), strict=True)]


def _read_csv(path: Path) -> pd.DataFrame:
    """With the separator and the words for missing values that `pipeline init` and replay take.

    All texts: a card number that begins with 0 is no number, and the codec says what is.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = csv_delimiter(file.read(HEAD_CHARS))
    frame = pd.read_csv(path, sep=delimiter, encoding="utf-8-sig", dtype=str, keep_default_na=False)
    frame = frame.apply(lambda column: column.str.strip())
    known: pd.DataFrame = frame.mask(frame.apply(lambda column: column.str.lower().isin(MISSING_TEXTS)))
    return known


def read_file(path: Path) -> pd.DataFrame:
    """The table in a .csv, .jsonl or .parquet file. Raises HistoryError."""
    readers: dict[str, Any] = {
        ".csv": _read_csv,
        ".jsonl": lambda p: pd.read_json(p, lines=True, dtype=False),
        ".parquet": pd.read_parquet,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise HistoryError(f"{path}: expected a name that ends in .csv, .jsonl or .parquet")
    try:
        frame = reader(path)
    except (OSError, ValueError) as error:
        raise HistoryError(f"{path}: {error}") from error
    assert isinstance(frame, pd.DataFrame)
    return frame


def _number(value: Any) -> Any:
    """A number in text as a number; anything else stays, for the codec to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return float(value) if value.strip() else float("nan")
    except ValueError:
        return value


def _boolean(value: Any) -> Any:
    """The words for true and false that replay takes, and numbers in text; anything else stays."""
    known = BOOLEAN_WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    return _number(value) if known is None else known


def _chunks(order: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (order[i : i + CHUNK] for i in range(0, len(order), CHUNK))


def _names(frame: pd.DataFrame) -> str:
    return ", ".join(str(c) for c in frame.columns)
