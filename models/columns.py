"""Columns of field values to an `EventBatch`: the one place where text becomes hashes and numbers.

The codec fills the columns from JSON, the trainer from Parquet; both end up here, so an event has the same
state and the same features wherever it was read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.layout import Layout
from models.hashing import hash_ids, hash_values

__all__ = ["Columns", "columns_to_batch", "identifier"]

Columns = dict[str, Any]


def columns_to_batch(layout: Layout, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> EventBatch:
    """The batch of M events.

    columns: by field name, positions as `<field>.latitude` and `<field>.longitude`; M values each, the time
    in epoch milliseconds; None, NaN and pandas' NA mean missing. A column that is absent is all missing.
    """
    stream = layout.pipeline.pipeline
    ids = [str(v) for v in _plain(columns[stream.event_id])]
    count = len(ids)
    values_MV = np.empty((count, len(layout.values)), dtype=np.float32)
    for v, name in enumerate(layout.values):
        values_MV[:, v] = _numbers(columns.get(name), count)
    texts = {name: _texts(columns.get(name), count) for name in layout.hashes}
    hashes_MK = np.empty((count, len(layout.hashes)), dtype=np.uint32)
    for k, name in enumerate(layout.hashes):
        hashes_MK[:, k] = hash_values(texts[name])
    return EventBatch(
        event_id=ids,
        entity=[str(v) for v in _plain(columns[stream.entity])],
        time_M=np.asarray(columns[stream.time], dtype=np.int64),
        id_hash_M=hash_ids(ids),
        values_MV=values_MV,
        hashes_MK=hashes_MK,
        profile_keys={name: texts[profile.key] for name, profile in layout.pipeline.profiles.items()},
    )


def identifier(value: Any) -> str | None:
    """The canonical text of an identifier or category: what is hashed, and what stands in keys.

    >>> identifier(True), identifier(7), identifier(7.0), identifier("x"), identifier(float("nan"))
    ('true', '7', '7', 'x', None)
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        # a column of integers with gaps is read as floats by every table library
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return str(value) if isinstance(value, int) else None  # pandas' NA and NaT are neither


def _plain(column: Sequence[Any] | NDArray[Any]) -> Sequence[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _texts(column: Sequence[Any] | NDArray[Any] | None, count: int) -> list[str | None]:
    return [None] * count if column is None else [identifier(v) for v in _plain(column)]


def _numbers(column: Sequence[Any] | NDArray[Any] | None, count: int) -> NDArray[np.float64]:
    if column is None:
        return np.full(count, np.nan)
    if isinstance(column, np.ndarray) and column.dtype != object:
        return column.astype(np.float64)
    return np.array([np.nan if v is None else v for v in column], dtype=np.float64)
