"""Columns of field values to an `EventBatch`: where text becomes hashes and numbers.

The codec fills the columns from JSON, the trainer from Parquet; both end up here, so an event has the same
state and the same features wherever it was read. `models.flat` makes the same batch from plain records, faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.layout import Layout
from models.hashing import hash_ids, hash_values

__all__ = ["Columns", "Distinct", "columns_to_batch", "distinct", "identifier"]

Columns = dict[str, Any]


def columns_to_batch(layout: Layout, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> EventBatch:
    """The batch of M events.

    columns: by field name, positions as `<field>.latitude` and `<field>.longitude`; M values each, the time
    in epoch milliseconds; None, NaN and pandas' NA mean missing. A column that is absent is all missing.
    """
    stream = layout.pipeline.pipeline
    ids = _required_texts(columns[stream.event_id])
    count = len(ids)
    values_MV = np.empty((count, len(layout.values)), dtype=np.float32)
    for v, name in enumerate(layout.values):
        values_MV[:, v] = _numbers(columns.get(name))
    texts = {name: _texts(columns.get(name), count) for name in layout.hashes}
    hashes_MK = np.empty((count, len(layout.hashes)), dtype=np.uint32)
    for k, name in enumerate(layout.hashes):
        hashes_MK[:, k] = hash_values(texts[name])
    entity = _required_texts(columns[stream.entity])
    keys: dict[str, list[str | None]] = {**texts, stream.entity: list(entity)}
    return EventBatch(
        event_id=ids,
        entity=entity,
        time_M=np.asarray(columns[stream.time], dtype=np.int64),
        id_hash_M=hash_ids(ids),
        values_MV=values_MV,
        hashes_MK=hashes_MK,
        profile_keys={name: keys[profile.key] for name, profile in layout.pipeline.profiles.items()},
    )


class Distinct(NamedTuple):
    """A column of texts: the distinct ones in order of appearance, and the place of each event's among them: int64
    (M,), -1 where it has none."""

    texts: list[str]
    place_M: NDArray[np.int64]

    def column(self) -> list[str | None]:
        """M texts, None where there is none."""
        texts = np.array([*self.texts, None], dtype=object)
        column: list[str | None] = texts[self.place_M].tolist()
        return column


def distinct(values: Sequence[str | None]) -> Distinct:
    """The column of these texts."""
    index: dict[str, int] = {}
    places = [-1 if value is None else index.setdefault(value, len(index)) for value in values]
    return Distinct(list(index), np.array(places, dtype=np.int64))


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


def _plain(column: Sequence[Any] | NDArray[Any]) -> list[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else list(column)


def _required_texts(column: Sequence[Any] | NDArray[Any]) -> list[str]:
    values = _plain(column)
    return values if _are_texts(values) else [str(v) for v in values]


def _texts(column: Sequence[Any] | NDArray[Any] | None, count: int) -> list[str | None]:
    if column is None:
        return [None] * count
    values = _plain(column)
    return values if _are_texts(values, _TEXT_OR_NONE) else [identifier(v) for v in values]


def _are_texts(values: list[Any], kinds: frozenset[Any] = frozenset((str,))) -> bool:
    """Almost always: then nothing is left to do for each value."""
    return kinds.issuperset(map(type, values))


_TEXT_OR_NONE = frozenset((str, type(None)))


def _numbers(column: Sequence[Any] | NDArray[Any] | None) -> NDArray[np.float64] | float:
    if column is None:
        return math.nan
    return np.asarray(column, dtype=np.float64)  # None becomes NaN
