"""The fast way from records to columns, for a batch in which every event is a flat object and nothing is wrong.

Anything else makes it answer None, and the general way (`models.codec`, `models.records`) reads the batch again: that
one knows every form an event may have, and what to say of one that is refused. Both give the same batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.columns import Distinct
from models.events import EventBatch
from models.features.layout import Layout
from models.flat.group import group
from models.flat.scan import (
    BOOLEAN,
    CATEGORY,
    IDENTIFIER,
    ISO8601,
    LONGITUDE,
    MILLISECONDS,
    NUMBER,
    SECONDS,
    UNUSUAL,
    Member,
    pack_members,
    scan,
)
from models.hashing import hash_ids, hash_texts
from models.pipeline.spec import BooleanField, CategoryField, Field, NumberField, TimeField
from models.records import MAX_BYTES

__all__ = ["FlatEvents", "FlatReader"]

TIME_KINDS = {"iso8601": ISO8601, "ms": MILLISECONDS, "s": SECONDS}


class FlatEvents(NamedTuple):
    """M events that may be used, but for the records' keys. texts: by field, for entities and categories."""

    batch: EventBatch
    texts: dict[str, Distinct]


class FlatReader:
    """Reads the events of one pipeline.

    keys: the JSON key of each column of the file, in its order; positions have two. limits: the least and the greatest
    value of those that hold numbers.
    """

    def __init__(self, layout: Layout, keys: Mapping[str, str], limits: Mapping[str, tuple[float, float]]) -> None:
        self._layout, stream = layout, layout.pipeline.pipeline
        fields = layout.pipeline.fields
        columns = list(keys)
        members = []
        for column, key in keys.items():
            field = fields[column.split(".")[0]]
            value = layout.values.index(column) if column in limits else 0
            members.append(Member(key, _kind(column, field), field.required, value, *limits.get(column, ())))
        self._members_CX = pack_members(members)
        self._padding = b"\n" * self._members_CX[0].nbytes  # `scan` looks as far ahead as a name is long
        self._limits = [(c, members[c].value, *limits[column]) for c, column in enumerate(columns) if column in limits]
        self._event_id = columns.index(stream.event_id)
        self._grouped = (stream.entity, *layout.hashes)
        self._columns_G = np.array([1 + 2 * columns.index(name) for name in self._grouped], dtype=np.int64)
        self._future_ms = stream.max_future_ms

    def read(self, values: Sequence[bytes | None], append_ms: NDArray[np.int64]) -> FlatEvents | None:
        """The events of M record values; None when one of them is unusual or refused. append_ms: as for `Codec`."""
        if not values or None in values:
            return None
        count = len(values)
        size_M = np.fromiter(map(len, values), dtype=np.int64, count=count)  # type: ignore[arg-type]
        if size_M.max() > MAX_BYTES:
            return None
        joined = b"\n".join([*values, self._padding])  # type: ignore[list-item]
        try:
            text = joined.decode()
        except UnicodeDecodeError:
            return None
        buffer = np.frombuffer(joined, dtype=np.uint8)
        found_MX = np.empty((count, 1 + 2 * len(self._members_CX)), dtype=np.int64)
        values_MV = np.empty((count, len(self._layout.values)), dtype=np.float32)
        append_M = np.ascontiguousarray(append_ms, dtype=np.int64)
        infinite = scan(buffer, size_M, append_M, self._future_ms, self._members_CX, found_MX, values_MV)
        if infinite == UNUSUAL or (infinite and not self._read_long_numbers(joined, found_MX, values_MV)):
            return None
        # places in bytes are places in ASCII text
        return self._events(text if len(text) == len(joined) else joined, buffer, found_MX, values_MV)

    def _read_long_numbers(
        self, joined: bytes, found_MX: NDArray[np.int64], values_MV: NDArray[np.float32]
    ) -> bool:  # fmt: skip
        """Those with more digits than compiled code reads exactly; False when one is outside its limits."""
        for c, v, low, high in self._limits:
            for m in np.isinf(values_MV[:, v]).nonzero()[0].tolist():
                start, size = found_MX[m, 1 + 2 * c : 3 + 2 * c].tolist()
                number = float(joined[start : start + size])
                if not low <= number <= high:
                    return False
                values_MV[m, v] = number
        return True

    def _events(
        self, source: str | bytes, buffer: NDArray[np.uint8], found_MX: NDArray[np.int64],
        values_MV: NDArray[np.float32],
    ) -> FlatEvents:  # fmt: skip
        layout, groups, events = self._layout, len(self._columns_G), len(found_MX)
        start_M, size_M = found_MX[:, 1 + 2 * self._event_id], found_MX[:, 2 + 2 * self._event_id]
        ids = _cut(source, start_M, start_M + size_M)
        place_GM = np.empty((groups, events), dtype=np.int64)
        bounds_U2, count_G = np.empty((groups * events, 2), dtype=np.int64), np.empty(groups, dtype=np.int64)
        group(buffer, found_MX, self._columns_G, place_GM, bounds_U2, count_G)
        ends = np.cumsum(count_G)
        texts_U = _cut(source, bounds_U2[: ends[-1], 0], bounds_U2[: ends[-1], 1])
        first_G = ends - count_G
        texts = {
            name: Distinct(texts_U[first:end], place_M)
            for name, first, end, place_M in zip(self._grouped, first_G.tolist(), ends.tolist(), place_GM, strict=True)
        }
        stream, profiles = layout.pipeline.pipeline, layout.pipeline.profiles
        batch = EventBatch(
            event_id=ids,
            entity=texts[stream.entity].column(),  # type: ignore[arg-type]  # an event has one
            time_M=found_MX[:, 0].copy(),
            id_hash_M=hash_ids(ids),
            values_MV=values_MV,
            hashes_MK=self._hashes(texts_U[ends[0] :], first_G[1:] - ends[0], place_GM[1:]),
            profile_keys={name: texts[profile.key].column() for name, profile in profiles.items()},
        )
        return FlatEvents(batch, texts)

    @staticmethod
    def _hashes(texts_U: list[str], first_K: NDArray[np.int64], place_KM: NDArray[np.int64]) -> NDArray[np.uint32]:
        """hashes_MK of columns whose distinct texts stand one behind another, those of each from `first_K` on."""
        hash_U = np.append(hash_texts(texts_U), np.uint32(0))  # the last is for those that are missing
        hashes_KM = hash_U[np.where(place_KM < 0, -1, place_KM + first_K[:, None])]
        return np.ascontiguousarray(hashes_KM.T)


def _kind(column: str, field: Field) -> int:
    if isinstance(field, TimeField):
        return TIME_KINDS[field.unit]
    if isinstance(field, BooleanField):
        return BOOLEAN
    if isinstance(field, CategoryField):
        return CATEGORY
    if column.endswith(".longitude"):
        return LONGITUDE
    return NUMBER if isinstance(field, NumberField) or column.endswith(".latitude") else IDENTIFIER


def _cut(source: str | bytes, start_M: NDArray[np.int64], end_M: NDArray[np.int64]) -> list[str]:
    places = zip(start_M.tolist(), end_M.tolist(), strict=True)
    if isinstance(source, str):
        return [source[start:end] for start, end in places]
    return [source[start:end].decode() for start, end in places]
