"""A table of past events as a history in memory: what `import_file` writes and `load_history` reads, in seconds.

An import takes the road of the stream, through JSON, and writes parts that last. An evaluation of millions of rows
needs neither; it does need the same values, so texts are made canonical and rows that the worker would refuse are
left out here, too, with their labels. One partition, in event time order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from models.codec import LATEST_MS
from models.columns import identifier
from models.pipeline.sample import BOOLEAN_WORDS
from models.pipeline.spec import BooleanField, GeoField, NumberField, TimeField
from training.archive import APPEND_TIME, OFFSET, PARTITION, event_schema, label_schema
from training.errors import HistoryError
from training.replay import History
from training.tables import Mapped

__all__ = ["history_of_table"]

Booleans = NDArray[np.bool_]


def history_of_table(mapped: Mapped) -> tuple[History, dict[str, int]]:
    """The history, and how many rows were left out, by the worker's reason. Raises HistoryError when none is left."""
    pipeline, skipped = mapped.pipeline, Counter[str]()
    columns, refused_M = _columns(mapped, skipped)
    order = mapped.order[~refused_M[mapped.order]]
    if not len(order):
        raise HistoryError(f"no row can be used: expected events as the pipeline describes them ({dict(skipped)})")
    time_M = mapped.time_M[order]
    source = _source(time_M)
    schema = event_schema(pipeline)
    columns[pipeline.pipeline.time] = pa.array(mapped.time_M)
    arrays = [_arranged(source[f.name] if f.name in source else columns.get(f.name), order, f) for f in schema]
    events = pa.table(arrays, schema=schema)
    labels = _labels(mapped, columns, ~refused_M)
    return History(pipeline, events, labels, np.maximum.accumulate(time_M), _clock(labels)), dict(skipped)


def _columns(mapped: Mapped, skipped: Counter[str]) -> tuple[dict[str, pa.Array], Booleans]:
    """Columns by field name in the order of the file, and the rows that the worker would refuse."""
    refused_M = (mapped.time_M <= 0) | (mapped.time_M >= LATEST_MS)
    skipped.update({"time": int(refused_M.sum())} if refused_M.any() else {})
    columns: dict[str, pa.Array] = {}
    for name, source in mapped.sources.items():
        field = mapped.pipeline.fields[name.split(".", maxsplit=1)[0]]
        if isinstance(field, TimeField):
            continue
        column = mapped.frame[source]
        if isinstance(field, NumberField | GeoField | BooleanField):
            values_M, bad_M = _numbers(column, *_limits(name, field))
            _refuse("range", bad_M, refused_M, skipped)
            missing_M = np.isnan(values_M)
            columns[name] = pa.array(values_M, mask=missing_M)
            if isinstance(field, BooleanField):
                columns[name] = pa.array(values_M > 0, mask=missing_M)
        else:
            columns[name] = _texts(column)
            missing_M = np.asarray(columns[name].is_null())
        if field.required:
            _refuse("schema", missing_M, refused_M, skipped)
    return columns, refused_M


def _refuse(reason: str, bad_M: Booleans, refused_M: Booleans, skipped: Counter[str]) -> None:
    new_M = bad_M & ~refused_M
    if new_M.any():
        skipped[reason] += int(new_M.sum())
        refused_M |= bad_M


def _numbers(column: pd.Series[Any], low: float, high: float) -> tuple[NDArray[np.float64], Booleans]:
    """NaN where missing, and which are no number between the limits."""
    if column.dtype == object or isinstance(column.dtype, pd.StringDtype):
        words = {word: float(truth) for word, truth in BOOLEAN_WORDS.items()}
        texts = column.astype("string").str.strip().str.lower()
        column = texts.mask(texts == "").map(lambda text: words.get(text, text), na_action="ignore")
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    known = column.notna().to_numpy()
    with np.errstate(invalid="ignore"):
        return values, known & ~((values >= low) & (values <= high))


def _limits(name: str, field: NumberField | GeoField | BooleanField) -> tuple[float, float]:
    greatest = float(np.finfo(np.float32).max)
    if isinstance(field, NumberField):
        return (-greatest if field.min is None else field.min), (greatest if field.max is None else field.max)
    if isinstance(field, GeoField):
        return (-90.0, 90.0) if name.endswith(".latitude") else (-180.0, 180.0)
    return 0.0, 1.0


def _texts(column: pd.Series[Any]) -> pa.Array:
    """The canonical text of each value: of each distinct one once, as there are few."""
    place_M, distinct = pd.factorize(column)
    texts = pa.array([identifier(value) for value in distinct.tolist()], pa.string())
    return texts.take(pa.array(place_M, mask=place_M < 0))


def _labels(mapped: Mapped, columns: dict[str, pa.Array], good_M: Booleans) -> pa.Table:
    pipeline = mapped.pipeline
    schema = label_schema(pipeline)
    if mapped.label_column is None:
        return schema.empty_table()
    verdict_M, arrival_M = mapped.verdicts()
    known_M = good_M & ~np.isnan(verdict_M)
    order = np.argsort(arrival_M, kind="stable")
    order = order[known_M[order]]
    source = _source(arrival_M[order])
    values: dict[str, Any] = {
        "event_id": columns[pipeline.pipeline.event_id],
        "label_time": pa.array(arrival_M),
        "fraud": pa.array(np.nan_to_num(verdict_M) > 0),
        "source": None,
        **{f"profile.{name}": columns.get(profile.key) for name, profile in pipeline.profiles.items()},
        **{f"value.{name}": columns.get(name) for name in pipeline.label_amounts},
    }
    arrays = [_arranged(source[f.name] if f.name in source else values[f.name], order, f) for f in schema]
    return pa.table(arrays, schema=schema)


def _source(time_M: NDArray[np.int64]) -> dict[str, Any]:
    """Numbered as one partition; the time stands for that of the append. Already in order."""
    count = len(time_M)
    return {
        PARTITION: np.zeros(count, np.int32),
        OFFSET: np.arange(count, dtype=np.int64),
        APPEND_TIME: time_M,
    }


def _arranged(values: Any, order: NDArray[np.int64], field: pa.Field) -> pa.Array:
    if values is None:
        return pa.nulls(len(order), field.type)
    if isinstance(values, np.ndarray):
        return pa.array(values).cast(field.type)  # in order already
    return values.take(pa.array(order)).cast(field.type)


def _clock(labels: pa.Table) -> NDArray[np.int64]:
    return np.asarray(labels["label_time"].cast(pa.int64()).to_numpy())
