"""Kafka records to rows of the history: decoded and checked as the worker does, kept as a person can read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.clock import from_iso
from models.codec import Codec
from models.columns import identifier
from models.events import EventBatch
from models.messages import decode_score
from models.pipeline.spec import BooleanField, Pipeline
from training.archive import APPEND_TIME, OFFSET, PARTITION, Kind, Rows, schemas

__all__ = ["Records", "RowMaker"]


@dataclass(frozen=True, slots=True)
class Records:
    """M records of one topic partition, in offset order; never empty.

    append_M: int64, the broker's time of each in epoch milliseconds. keys: None leaves the key unchecked.
    """

    partition: int
    offset_M: NDArray[np.int64]
    append_M: NDArray[np.int64]
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None


class RowMaker:
    """Turns records into rows, leaving out those the worker dead-letters; `skipped` counts them by reason."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.codec = Codec(pipeline)
        self.layout = self.codec.layout
        self.schemas = schemas(pipeline)
        self.skipped: Counter[str] = Counter()

    def rows(self, kind: Kind, records: Records) -> Rows:
        """The rows of these records in the kind's schema."""
        make = {"events": self._events, "labels": self._labels, "scores": self._scores}[kind]
        columns, good = make(records)
        columns[PARTITION] = np.full(len(good), records.partition, dtype=np.int32)
        columns[OFFSET] = records.offset_M[good]
        columns[APPEND_TIME] = records.append_M[good]
        schema = self.schemas[kind]
        table = pa.table([_array(columns[field.name], field.type) for field in schema], schema=schema)
        return Rows(records.partition, table, int(records.offset_M[-1]) + 1)

    def _events(self, records: Records) -> tuple[dict[str, Any], NDArray[np.int64]]:
        decoded = self.codec.decode(records.values, records.append_M, records.keys)
        self.skipped.update(bad.reason for bad in decoded.bad)
        raw = [self.codec.decode_one(records.values[i] or b"{}") for i in decoded.good.tolist()]
        return self._event_columns(decoded.batch, raw), decoded.good

    def _event_columns(self, batch: EventBatch, raw: list[dict[str, Any]]) -> dict[str, Any]:
        stream = self.pipeline.pipeline
        columns: dict[str, Any] = {stream.event_id: batch.event_id, stream.entity: batch.entity,
                                   stream.time: batch.time_M}  # fmt: skip
        for v, name in enumerate(self.layout.values):
            column = batch.values_MV[:, v]
            if isinstance(self.pipeline.fields.get(name), BooleanField):
                columns[name] = [None if np.isnan(x) else bool(x) for x in column]
            else:
                columns[name] = column
        for name in self.layout.hashes:
            key = self.pipeline.json_key(name)
            columns[name] = [identifier(event.get(key)) for event in raw]
        return columns

    def _labels(self, records: Records) -> tuple[dict[str, Any], NDArray[np.int64]]:
        decoded = self.codec.decode_labels(records.values, records.append_M)
        self.skipped.update(f"label.{bad.reason}" for bad in decoded.bad)
        batch = decoded.batch
        columns: dict[str, Any] = {"event_id": batch.event_id, "label_time": batch.time_M, "fraud": batch.fraud_M,
                                   "source": batch.source}  # fmt: skip
        columns |= {f"profile.{name}": keys for name, keys in batch.profile_keys.items()}
        columns |= {f"value.{name}": amount_M for name, amount_M in batch.amounts.items()}
        return columns, decoded.good

    def _scores(self, records: Records) -> tuple[dict[str, Any], NDArray[np.int64]]:
        scores, good = [], []
        for i, value in enumerate(records.values):
            try:
                score = decode_score(value or b"")
                scores.append((score, from_iso(score.event_time)))
            except (msgspec.MsgspecError, ValueError):
                self.skipped["score.format"] += 1
            else:
                good.append(i)
        names = ("event_id", "entity", "score", "probability", "alert", "model")
        columns: dict[str, Any] = {name: [getattr(score, name) for score, _ in scores] for name in names}
        return columns | {"event_time": [time_ms for _, time_ms in scores]}, np.array(good, dtype=np.int64)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    """NaN becomes null, as every reader of Parquet expects of a missing value."""
    return pa.array(values, type=kind, from_pandas=pa.types.is_floating(kind))
