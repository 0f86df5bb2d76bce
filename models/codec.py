"""Bytes on a topic to columns in memory, and back. Everything is derived from the pipeline file.

A record that cannot be used never stops a batch: it comes back as a `BadRecord` with a stable reason code
and a detail that names the field, the value and what was expected.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.clock import to_iso
from models.columns import Columns, Distinct, columns_to_batch, distinct, identifier
from models.events import EventBatch, LabelBatch
from models.features.layout import Layout
from models.flat import FlatReader
from models.hashing import hash_ids
from models.pipeline.spec import (
    BooleanField,
    CategoryField,
    EntityField,
    GeoField,
    IdField,
    NumberField,
    Pipeline,
    TimeField,
)  # fmt: skip
from models.records import (
    DECODE_ERRORS,
    MAX_BYTES,
    MAX_TEXT,
    REASONS,
    BadRecord,
    Text,
    Whole,
    decode_each,
    decode_one,
    make_decoder,
    optional,
    time_type,
)

__all__ = ["MAX_BYTES", "REASONS", "BadRecord", "Codec", "Decoded", "DecodedLabels", "columns_to_batch"]

LATEST_MS = 4_102_444_800_000  # 2100-01-01


@dataclass(frozen=True, slots=True)
class Decoded:
    """`good[i]` is the position in the input of event i of the batch.

    entities: the events' entities. profile_keys: their keys of each shared profile.
    """

    batch: EventBatch
    good: NDArray[np.int64]
    bad: list[BadRecord]
    entities: Distinct
    profile_keys: dict[str, Distinct]


@dataclass(frozen=True, slots=True)
class DecodedLabels:
    """`good[i]` is the position in the input of label i of the batch."""

    batch: LabelBatch
    good: NDArray[np.int64]
    bad: list[BadRecord]


class Codec:
    """Encodes and decodes one pipeline's events and labels."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.time_unit = _time_unit(pipeline)
        self.layout = Layout(pipeline)
        members = [m for name in pipeline.fields for m in self._members(name)]
        self._columns = tuple(column for column, _, _ in members)
        self._limits = self._number_limits()
        self._flat = FlatReader(self.layout, {column: key for column, key, _ in members}, self._limits)
        self._keys = tuple(key for _, key, _ in members)
        # columns of positions have dots in their names; attributes of a struct cannot
        self._event = make_decoder("Event", [(f"c{i}", key, kind) for i, (_, key, kind) in enumerate(members)])
        self._label = make_decoder("Label", self._label_members())
        self._encode = msgspec.json.Encoder().encode

    def decode(
        self,
        values: Sequence[bytes | None],
        append_ms: NDArray[np.int64],
        keys: Sequence[bytes | None] | None = None,
    ) -> Decoded:
        """Events of M record values.

        append_ms: int64 (M,), the broker's clock when it took each record, against which the future is
        measured. keys: the records' keys, to be checked against the entity; None leaves that out.
        """
        flat = self._flat.read(values, append_ms)
        if flat is not None and (keys is None or _are_keys(keys, flat.texts[self.pipeline.entity])):
            shared = {name: flat.texts[profile.key] for name, profile in self.pipeline.profiles.items()}
            return Decoded(flat.batch, np.arange(len(values)), [], flat.texts[self.pipeline.entity], shared)
        structs, good, bad = decode_each(self._event, values)
        columns = _as_columns(structs, self._columns)
        refused = self._refused(columns, append_ms[good])
        batch = columns_to_batch(self.layout, columns)
        if keys is not None:
            self._refuse_keys(batch.entity, [keys[i] for i in good.tolist()], refused)
        if refused:
            bad += [BadRecord(int(good[i]), reason, detail) for i, (reason, detail) in refused.items()]
            bad.sort(key=lambda b: b.index)
            keep = np.array([i for i in range(len(good)) if i not in refused], dtype=np.int64)
            batch, good = batch.take(keep), good[keep]
        profile_keys = {name: distinct(texts) for name, texts in batch.profile_keys.items()}
        return Decoded(batch, good, bad, distinct(batch.entity), profile_keys)

    def decode_labels(self, values: Sequence[bytes | None], append_ms: NDArray[np.int64]) -> DecodedLabels:
        """Labels of M record values. A label from the future is as bad as such an event."""
        structs, good, bad = decode_each(self._label, values)
        times = self._times_ms([s.time for s in structs])
        refused = self._refused_times(times, append_ms[good])
        amounts = {name: self._amounts(name, structs, refused) for name in self.pipeline.label_amounts}
        bad += [BadRecord(int(good[i]), reason, detail) for i, (reason, detail) in refused.items()]
        keep = [i for i in range(len(structs)) if i not in refused]
        structs = [structs[i] for i in keep]
        ids = [str(s.event_id) for s in structs]
        batch = LabelBatch(
            event_id=ids,
            time_M=times[keep],
            id_hash_M=hash_ids(ids),
            fraud_M=np.array([bool(s.verdict) for s in structs], dtype=bool),
            profile_keys={
                name: [identifier(getattr(s, f"key_{profile.key}")) for s in structs]
                for name, profile in self.pipeline.profiles.items()
            },
            amounts={name: amount_M[keep] for name, amount_M in amounts.items()},
            source=[s.source for s in structs],
        )
        return DecodedLabels(batch, good[keep], sorted(bad, key=lambda b: b.index))

    def decode_one(self, value: bytes) -> dict[str, Any]:
        """The JSON object of one event, as it came; of one that is broken where no field is read (`decode` skips
        that unread), the fields. Raises EventError."""
        try:
            return dict(msgspec.json.decode(value, type=dict[str, Any]))
        except DECODE_ERRORS:
            struct = decode_one(self._event.decode, value)
            read = {key: getattr(struct, f"c{i}") for i, key in enumerate(self._keys)}
            return {key: member for key, member in read.items() if member is not None}

    def encode_event(self, row: Mapping[str, Any]) -> bytes:
        """The JSON of one event.

        row: by field name (positions: `<field>.latitude` and `<field>.longitude`); the time in epoch
        milliseconds. None and NaN mean missing and are left out.
        """
        out: dict[str, Any] = {}
        for name, field in self.pipeline.fields.items():
            if isinstance(field, GeoField):
                parts = ((field.latitude, f"{name}.latitude"), (field.longitude, f"{name}.longitude"))
                out.update({key: float(row[part]) for key, part in parts if not _missing(row.get(part))})
            elif not _missing(row.get(name)):
                key = self.pipeline.json_key(name)
                out[key] = self._external_time(int(row[name])) if isinstance(field, TimeField) else _plain(row[name])
        return self._encode(out)

    def encode_label(self, event_id: object, time_ms: int, fraud: bool, fields: Mapping[str, object]) -> bytes:
        """The JSON of one label that arrived at `time_ms`.

        fields: of the event, by name: the entities whose shared profiles learn of it, and the amounts they compare.
        """
        labels = self.pipeline.labels
        out: dict[str, Any] = {
            self.pipeline.json_key(self.pipeline.pipeline.event_id): _plain(event_id),
            labels.verdict: int(fraud),
            labels.time: self._external_time(time_ms),
        }
        out.update({self.pipeline.json_key(n): _plain(value) for n, value in fields.items() if not _missing(value)})
        return self._encode(out)

    def _members(self, name: str) -> list[tuple[str, str, Any]]:
        """(column, JSON key, type) of one field; two for a position."""
        field = self.pipeline.fields[name]
        if isinstance(field, GeoField):
            kinds = (("latitude", field.latitude), ("longitude", field.longitude))
            return [(f"{name}.{part}", key, optional(float, field.required)) for part, key in kinds]
        kind: Any
        if isinstance(field, IdField | EntityField):
            kind = Text | Whole
        elif isinstance(field, TimeField):
            kind = time_type(field.unit)
        elif isinstance(field, NumberField):
            kind = float
        elif isinstance(field, CategoryField):
            kind = Annotated[str, Meta(max_length=MAX_TEXT)] | Whole | bool
        elif isinstance(field, BooleanField):
            kind = Annotated[int, Meta(ge=0, le=1)] | bool
        return [(name, self.pipeline.json_key(name), optional(kind, field.required))]

    def _label_members(self) -> list[tuple[str, str, Any]]:
        spec = self.pipeline
        verdict = Annotated[int, Meta(ge=0, le=1)] | bool
        return [
            ("event_id", spec.json_key(spec.pipeline.event_id), Text | Whole),
            ("verdict", spec.labels.verdict, verdict),
            ("source", spec.labels.source, str | None),
            ("time", spec.labels.time, time_type(self.time_unit)),
            *((f"key_{name}", spec.json_key(name), Text | Whole | None) for name in spec.profile_keys),
            *((f"value_{name}", spec.json_key(name), float | None) for name in spec.label_amounts),
        ]

    def _amounts(self, name: str, structs: list[Any], refused: dict[int, tuple[str, str]]) -> NDArray[np.float64]:
        """A number field of labels, NaN where it is missing; notes the labels where it is outside its limits."""
        amount_M = np.array([getattr(s, f"value_{name}") for s in structs], dtype=np.float64)  # None becomes NaN
        low, high = self._limits[name]
        for i in np.flatnonzero((amount_M < low) | (amount_M > high)).tolist():
            refused[i] = ("range", f"{name} = {amount_M[i]}: expected a number from {low} to {high}")
        return amount_M

    def _times_ms(self, values: Sequence[Any]) -> NDArray[np.int64]:
        if self.time_unit == "ms":
            return np.array(values, dtype=np.int64)
        if self.time_unit == "s":
            return np.rint(np.array(values, dtype=np.float64) * 1000).astype(np.int64)
        try:
            since = [stamp - _EPOCH for stamp in values]
        except TypeError:  # one has no offset: it is UTC
            since = [(stamp if stamp.tzinfo else stamp.replace(tzinfo=datetime.UTC)) - _EPOCH for stamp in values]
        seconds = np.fromiter(map(_total_seconds, since), dtype=np.float64, count=len(since))
        # whole microseconds, before halves of a millisecond are rounded up
        return (np.rint(seconds * 1e6) / 1000 + 0.5).astype(np.int64)

    def _external_time(self, ms: int) -> str | int | float:
        if self.time_unit == "iso8601":
            return to_iso(ms)
        return ms / 1000 if self.time_unit == "s" else ms

    def _refused(self, columns: Columns, append_ms: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
        """Positions of the events that decode but break a rule; on the way times become epoch ms, numbers arrays."""
        time = self.pipeline.pipeline.time
        columns[time] = self._times_ms(columns[time])
        refused = self._refused_times(columns[time], append_ms)
        for name, (low, high) in self._limits.items():
            column = columns[name] = np.array(columns[name], dtype=np.float64)  # None becomes NaN
            outside = (column < low) | (column > high)
            for i in np.flatnonzero(outside).tolist():
                refused[i] = ("range", f"{name} = {column[i]}: expected a number from {low} to {high}")
            column[outside] = 0.0  # of an event that goes no further; float32 may not hold it
        for name in self.layout.geo_names:
            half = np.isnan(columns[f"{name}.latitude"]) != np.isnan(columns[f"{name}.longitude"])
            for i in np.flatnonzero(half).tolist():
                refused[i] = ("schema", f"{name}: one of latitude and longitude is missing: expected both or neither")
        return refused

    def _number_limits(self) -> dict[str, tuple[float, float]]:
        """The least and the greatest value of each column that holds numbers, in file order."""
        limits: dict[str, tuple[float, float]] = {}
        greatest = float(np.finfo(np.float32).max)
        for name, field in self.pipeline.fields.items():
            if isinstance(field, NumberField):
                low, high = field.min, field.max
                limits[name] = (-greatest if low is None else low, greatest if high is None else high)
            elif isinstance(field, BooleanField):
                limits[name] = (0.0, 1.0)
            elif isinstance(field, GeoField):
                limits |= {f"{name}.latitude": (-90.0, 90.0), f"{name}.longitude": (-180.0, 180.0)}
        return limits

    def _refused_times(self, times: NDArray[np.int64], append_ms: NDArray[np.int64]) -> dict[int, tuple[str, str]]:
        refused: dict[int, tuple[str, str]] = {}
        # producers may set the broker's time, to anything
        limit = np.minimum(np.maximum(append_ms, 0), LATEST_MS) + self.pipeline.pipeline.max_future_ms
        impossible, future = (times <= 0) | (times >= LATEST_MS), times > limit
        if not (impossible | future).any():
            return refused
        for i in np.flatnonzero(impossible).tolist():
            refused[i] = ("time", f"time = {times[i]} ms: expected the years 1970 to 2100")
        for i in np.flatnonzero(future & (times < LATEST_MS)).tolist():
            latest = f"{self.pipeline.pipeline.max_future} after {to_iso(min(max(int(append_ms[i]), 0), LATEST_MS))}"
            refused[i] = ("future", f"time = {to_iso(int(times[i]))}: expected at most {latest}")
        return refused

    def _refuse_keys(
        self, entities: list[str], keys: Sequence[bytes | None], refused: dict[int, tuple[str, str]]
    ) -> None:
        expected = list(map(str.encode, entities))
        if expected == keys:
            return
        for i, (key, entity) in enumerate(zip(keys, expected, strict=True)):
            if key != entity:
                # no values here: keys and entities are card numbers
                what = "nothing" if key is None else f"{len(key)} other bytes"
                refused[i] = ("key", f"record key is {what}: expected the event's {self.pipeline.entity}")


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_total_seconds = datetime.timedelta.total_seconds


def _time_unit(pipeline: Pipeline) -> str:
    field = pipeline.fields[pipeline.pipeline.time]
    assert isinstance(field, TimeField)  # checked when the file was read
    return field.unit


def _are_keys(keys: Sequence[bytes | None], entities: Distinct) -> bool:
    """Whether each record's key is its event's entity."""
    encoded = np.array([text.encode() for text in entities.texts], dtype=object)
    return bool(encoded[entities.place_M].tolist() == list(keys))


def _as_columns(structs: list[Any], names: tuple[str, ...]) -> Columns:
    """The structs' members, which are in the order of these names, as columns."""
    if not structs:
        return dict.fromkeys(names, ())
    return dict(zip(names, zip(*map(msgspec.structs.astuple, structs), strict=True), strict=True))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def _plain(value: Any) -> Any:
    """numpy scalars as Python's own, which JSON can carry."""
    return value.item() if isinstance(value, np.generic) else value
