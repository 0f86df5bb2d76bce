"""Windows by index: stored rings and the batch's own events laid end to end, entity by entity.

Each entity's section holds its L stored rows and then its k events of this batch, in arrival order. The
window of an event is the L rows that end with it, so many events of one entity cost no Python loop, and each
row still finds the row before it (for gaps and distances), the first row of a window included.

Legend: N entities, A applied events (sorted by entity, then arrival), E rows of all sections together,
L events in a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS
from models.events import EventBatch
from models.features.layout import Layout

__all__ = ["Sections", "encode_rows", "lay_out"]

EARTH_KM = 6371.0088  # mean radius (IUGG)
SLOWEST_GAP_H = 1 / 60  # speeds are over at least a minute: two clocks rarely agree to the second
MONDAY_MS = 4 * DAY_MS  # 1970-01-05, the first Monday of the epoch


@dataclass(frozen=True, slots=True)
class Sections:
    """The rows of N entities' sections, and where in them each event and each window lies.

    time_E int64; values_EV float32; hashes_EK uint32; id_E uint64 (0: empty row). previous_E: bool, the row
    before belongs to the same entity and is not empty. event_A: row of each event. window_AL: rows of each
    event's window. rank_A: 0 for an entity's first event in this batch. newest_NL: rows that are the new ring.
    """

    time_E: NDArray[np.int64]
    id_E: NDArray[np.uint64]
    values_EV: NDArray[np.float32]
    hashes_EK: NDArray[np.uint32]
    previous_E: NDArray[np.bool_]
    event_A: NDArray[np.int64]
    window_AL: NDArray[np.int64]
    rank_A: NDArray[np.int64]
    newest_NL: NDArray[np.int64]


def lay_out(layout: Layout, states_N: NDArray[np.void], owner_A: NDArray[np.int64], batch: EventBatch) -> Sections:
    """Sections of N stored states and A events; `batch` and `owner_A` are sorted by owner, stable."""
    count_N = np.bincount(owner_A, minlength=len(states_N))
    length = layout.length
    start_N = np.arange(len(states_N)) * length + np.concatenate(([0], np.cumsum(count_N)[:-1]))
    rank_A = np.arange(len(owner_A)) - np.concatenate(([0], np.cumsum(count_N)[:-1]))[owner_A]
    event_A = start_N[owner_A] + length + rank_A
    stored_NL = start_N[:, None] + np.arange(length)
    rows = states_N["rows"]
    total = len(states_N) * length + len(owner_A)

    def fill(stored: NDArray[Any], fresh: NDArray[Any]) -> NDArray[Any]:
        out = np.empty((total, *stored.shape[2:]), dtype=stored.dtype)
        out[stored_NL.ravel()] = stored.reshape(-1, *stored.shape[2:])
        out[event_A] = fresh
        return out

    id_E = fill(rows["id"], batch.id_hash_M)
    previous_E = np.zeros(total, dtype=bool)
    previous_E[1:] = id_E[:-1] != 0
    previous_E[start_N] = False
    return Sections(
        time_E=fill(rows["time"], batch.time_M),
        id_E=id_E,
        values_EV=fill(rows["values"], batch.values_MV),
        hashes_EK=fill(rows["hashes"], batch.hashes_MK),
        previous_E=previous_E & (id_E != 0),
        event_A=event_A,
        window_AL=event_A[:, None] + np.arange(1 - length, 1),
        rank_A=rank_A,
        newest_NL=(start_N + count_N)[:, None] + np.arange(length),
    )


def encode_rows(layout: Layout, s: Sections) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Per-event features of every row: x float32 (E, F) and codes int32 (E, K), in `layout.inputs` order.

    Numbers and booleans: transformed, 0 where missing, with a `missing` flag for optional ones. Positions:
    log1p of the great-circle distance in km and of the speed in km/h since the row before (0 where either
    position is missing). `repeated`: 1 if the entity field equals the row before's. gap: log1p of seconds
    since the row before, 0 for a first event or a late one. Hour of day and time of week in UTC: sine, cosine.
    """
    values_EV = s.values_EV.astype(np.float64)
    missing_EV = np.isnan(values_EV)
    columns: list[NDArray[np.generic]] = []
    plain = len(layout.number_names) + len(layout.boolean_names)
    for v in range(plain):
        columns.append(np.where(missing_EV[:, v], 0.0, transform(layout, layout.values[v], values_EV[:, v])))
    columns += [missing_EV[:, v] for v in range(plain) if layout.values[v] in layout.optional_values]
    gap_E = np.zeros(len(s.time_E))
    gap_E[1:] = np.maximum(s.time_E[1:] - s.time_E[:-1], 0) / 1000.0
    gap_E[~s.previous_E] = 0.0
    for g, name in enumerate(layout.geo_names):
        degrees = values_EV[:, plain + 2 * g : plain + 2 * g + 2]
        km_E = _distance_km(degrees, s.previous_E)
        columns += [np.log1p(km_E), np.log1p(km_E / np.maximum(gap_E / 3600.0, SLOWEST_GAP_H))]
        if not layout.pipeline.fields[name].required:
            columns.append(missing_EV[:, plain + 2 * g])
    offset = len(layout.category_names)
    for k in range(len(layout.other_entities)):
        hashes_E = s.hashes_EK[:, offset + k]
        repeated_E = s.previous_E & (hashes_E != 0)
        repeated_E[1:] &= hashes_E[1:] == hashes_E[:-1]
        columns.append(repeated_E)
    columns += [np.log1p(gap_E), *_phase(s.time_E, DAY_MS, 0), *_phase(s.time_E, 7 * DAY_MS, MONDAY_MS)]
    x_EF = np.column_stack([c.astype(np.float32) for c in columns])
    return x_EF, _codes(layout, s.hashes_EK)


def transform(layout: Layout, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The number field's transform; booleans have none."""
    how = getattr(layout.pipeline.fields[name], "transform", "linear")
    if how == "log1p":
        return np.log1p(np.maximum(values, 0.0))
    return np.arcsinh(values) if how == "asinh" else values


def _phase(time_E: NDArray[np.int64], period_ms: int, origin_ms: int) -> tuple[NDArray[np.float64], ...]:
    angle_E = ((time_E - origin_ms) % period_ms) * (2 * np.pi / period_ms)
    return np.sin(angle_E), np.cos(angle_E)


def _distance_km(degrees_E2: NDArray[np.float64], previous_E: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Great-circle distance to the row before (haversine formula), 0 where either position is unknown."""
    radians_E2 = np.radians(degrees_E2)
    latitude_E, longitude_E = np.ascontiguousarray(radians_E2[:, 0]), np.ascontiguousarray(radians_E2[:, 1])
    half_E = np.zeros(len(latitude_E))
    half_E[1:] = (
        np.sin((latitude_E[1:] - latitude_E[:-1]) / 2) ** 2
        + np.cos(latitude_E[1:]) * np.cos(latitude_E[:-1]) * np.sin((longitude_E[1:] - longitude_E[:-1]) / 2) ** 2
    )
    km_E = 2 * EARTH_KM * np.arcsin(np.sqrt(np.minimum(half_E, 1.0)))
    return np.where(previous_E & ~np.isnan(km_E), km_E, 0.0)


def _codes(layout: Layout, hashes_EK: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Embedding rows of the categories: 0 for missing, else 1 + hash modulo the rest."""
    codes_EK = np.zeros((len(hashes_EK), len(layout.inputs.codes)), dtype=np.int32)
    for k, (_, buckets) in enumerate(layout.inputs.codes):
        hashes_E = hashes_EK[:, k]
        codes_EK[:, k] = np.where(hashes_E == 0, 0, 1 + hashes_E % np.uint32(buckets - 1))
    return codes_EK
