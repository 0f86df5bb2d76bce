"""The rows of one entity, and what each says by itself and against the row before it.

A section is the stored ring without its empty places, then the entity's events of this batch in arrival order. The
window of an event is the L rows that end with it, so that a row is encoded once however many windows show it.

Legend: R rows of a section, V values, K hashes, F columns, P plain values; L events in a window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS
from models.compiled import compiled, inlined
from models.features.facts import Facts
from models.features.numerics import ASINH, LOG1P, arcsin, asinh, cos_turns, log1p, sin_turns

__all__ = ["EARTH_KM", "Section", "copy_window", "empty_section", "encode_rows"]

EARTH_KM = 6371.0088  # mean radius (IUGG)
SLOWEST_GAP_H = 1 / 60  # speeds are over at least a minute: two clocks rarely agree to the second
HOUR_S = 3600.0
DAY = float(DAY_MS)
WEEK = 7 * DAY
MONDAY = 4 * DAY  # 1970-01-05, the first Monday of the epoch


class Section(NamedTuple):
    """Room for the rows of one entity.

    time_R: float64, epoch ms (exact below 2^53). id_R: uint64. values_VR: float32. hashes_KR: uint32. gap_R, cosine_R
    and km_R: float64, on the way to columns. x_FR: float32, the encoded rows by column; x_RF the same, and codes_RK
    (int32), by row, the rows end to end.
    """

    time_R: NDArray[np.float64]
    id_R: NDArray[np.uint64]
    values_VR: NDArray[np.float32]
    hashes_KR: NDArray[np.uint32]
    gap_R: NDArray[np.float64]
    cosine_R: NDArray[np.float64]
    km_R: NDArray[np.float64]
    x_FR: NDArray[np.float32]
    x_RF: NDArray[np.float32]
    codes_RK: NDArray[np.int32]


@inlined
def empty_section(facts: Facts, rows: int) -> Section:
    """Room for this many rows, not initialised."""
    return Section(
        np.empty(rows, np.float64),
        np.empty(rows, np.uint64),
        np.empty((facts.values, rows), np.float32),
        np.empty((facts.hashes, rows), np.uint32),
        np.empty(rows, np.float64),
        np.empty(rows, np.float64),
        np.empty(rows, np.float64),
        np.empty((facts.columns, rows), np.float32),
        np.empty(rows * facts.columns, np.float32),
        np.empty(rows * len(facts.buckets_K), np.int32),
    )


@compiled
def encode_rows(facts: Facts, section: Section, stop: int) -> None:
    """Columns x and codes of the rows up to `stop`, in `layout.inputs` order.

    Numbers and booleans: transformed, 0 where missing, with a `missing` flag for optional ones. Positions:
    log1p of the great-circle distance in km and of the speed in km/h since the row before (0 where either
    position is missing). `repeated`: 1 if the entity field equals the row before's. gap: log1p of seconds
    since the row before, 0 for a first event or a late one. Hour of day and time of week in UTC: sine, cosine.
    Row 0 has no row before it. The last columns are the numbers and the gap once more, NaN where unknown, for
    `models.features.habit.show_surprise`.
    """
    time_R, gap_R, x_FR = section.time_R, section.gap_R, section.x_FR
    gap_R[0] = 0.0
    for r in range(1, stop):
        gap_R[r] = max(time_R[r] - time_R[r - 1], 0.0) / 1000.0
    f = _plain_columns(facts, section, stop)
    plain, categories = len(facts.how_P), len(facts.buckets_K)
    for g in range(len(facts.optional_G)):
        latitude_R = section.values_VR[plain + 2 * g]
        _distance_columns(section, latitude_R, section.values_VR[plain + 2 * g + 1], f, stop)
        f += 2
        if facts.optional_G[g]:
            for r in range(stop):
                x_FR[f, r] = np.float32(np.isnan(latitude_R[r]))
            f += 1
    for k in range(categories, facts.hashes):
        hashes_R = section.hashes_KR[k]
        x_FR[f, 0] = 0.0
        for r in range(1, stop):
            x_FR[f, r] = np.float32((hashes_R[r] == hashes_R[r - 1]) & (hashes_R[r] != 0))
        f += 1
    _log_column(gap_R, x_FR[f], stop)
    _phase_columns(section, f + 1, DAY, 0.0, stop)
    _phase_columns(section, f + 3, WEEK, MONDAY, stop)
    _known_columns(facts, section, f, f + 5, stop)
    for r in range(stop):
        start = np.uint64(r * facts.columns)
        for c in range(facts.columns):
            section.x_RF[start + np.uint64(c)] = x_FR[c, r]
    for k in range(categories):
        # 0 for missing, else 1 + hash modulo the rest; exact in doubles, and much faster than a division of integers
        rest = np.float64(facts.buckets_K[k] - 1)
        for r in range(stop):
            found = np.float64(section.hashes_KR[k, r])
            left = found - np.floor(found * (1.0 / rest)) * rest
            left = left + rest if left < 0.0 else left
            left = left - rest if left >= rest else left
            section.codes_RK[np.uint64(r * categories + k)] = 0 if found == 0.0 else np.int32(left) + 1


@inlined
def copy_window(
    section: Section,
    row: int,
    x_LF: NDArray[np.float32],
    codes_LK: NDArray[np.int32],
    mask_L: NDArray[np.bool_],
) -> int:
    """The window that ends with this row, its places laid end to end; padding in front of a short one is 0.

    Returns how many places that padding takes.
    """
    length = len(mask_L)
    padding = max(length - 1 - row, 0)
    for place in range(length):
        mask_L[place] = place >= padding
    first = row + 1 - (length - padding)
    columns, categories = len(x_LF) // length, len(codes_LK) // length
    _copy_rows(section.x_RF[first * columns :], columns * padding, x_LF)
    _copy_rows(section.codes_RK[first * categories :], categories * padding, codes_LK)
    return padding


@inlined
def _copy_rows(rows_X: NDArray[np.generic], padding: int, out_X: NDArray[np.generic]) -> None:
    for i in range(padding):
        out_X[i] = 0
    filled_X = out_X[padding:]
    for i in range(len(filled_X)):
        filled_X[i] = rows_X[i]


@inlined
def _plain_columns(facts: Facts, section: Section, stop: int) -> int:
    """Transformed numbers and booleans, then the flags of the optional ones; how many columns that makes."""
    plain = len(facts.how_P)
    for v in range(plain):
        _transform_column(facts.how_P[v], section.values_VR[v], section.x_FR[v], stop)
    for i in range(len(facts.optional_P)):
        values_R = section.values_VR[facts.optional_P[i]]
        for r in range(stop):
            section.x_FR[plain + i, r] = np.float32(np.isnan(values_R[r]))
    return plain + len(facts.optional_P)


@inlined
def _transform_column(how: int, values_R: NDArray[np.float32], out_R: NDArray[np.float32], stop: int) -> None:
    if how == LOG1P:
        for r in range(stop):
            value = values_R[r]
            out_R[r] = 0.0 if np.isnan(value) else log1p(max(np.float64(value), 0.0))
    elif how == ASINH:
        for r in range(stop):
            value = values_R[r]
            out_R[r] = 0.0 if np.isnan(value) else asinh(np.float64(value))
    else:
        for r in range(stop):
            value = values_R[r]
            out_R[r] = np.float32(0.0) if np.isnan(value) else value


@inlined
def _distance_columns(
    section: Section, latitude_R: NDArray[np.float32], longitude_R: NDArray[np.float32], f: int, stop: int
) -> None:
    """Great-circle distance to the row before (haversine formula), and speed, 0 where either position is unknown."""
    cosine_R, km_R = section.cosine_R, section.km_R
    for r in range(stop):
        cosine_R[r] = cos_turns(np.float64(latitude_R[r]) * (1 / 360))
    km_R[0] = 0.0
    for r in range(1, stop):
        across = sin_turns((np.float64(latitude_R[r]) - np.float64(latitude_R[r - 1])) * (1 / 720))
        along = sin_turns((np.float64(longitude_R[r]) - np.float64(longitude_R[r - 1])) * (1 / 720))
        km_R[r] = across * across + cosine_R[r] * cosine_R[r - 1] * (along * along)
    for r in range(1, stop):
        half = km_R[r]
        km = 2.0 * EARTH_KM * arcsin(math.sqrt(half if half < 1.0 else 1.0))
        km_R[r] = 0.0 if np.isnan(half) else km
    _log_column(km_R, section.x_FR[f], stop)
    for r in range(stop):
        hours = section.gap_R[r] * (1 / HOUR_S)
        km_R[r] = km_R[r] / (hours if hours > SLOWEST_GAP_H else SLOWEST_GAP_H)
    _log_column(km_R, section.x_FR[f + 1], stop)


@inlined
def _log_column(values_R: NDArray[np.float64], out_R: NDArray[np.float32], stop: int) -> None:
    for r in range(stop):
        out_R[r] = log1p(values_R[r])


@inlined
def _phase_columns(section: Section, f: int, period: float, origin: float, stop: int) -> None:
    """Sine and cosine of the time within a period; whole milliseconds, so the remainder is exact."""
    for r in range(stop):
        time = section.time_R[r] - origin
        turns = (time - np.floor(time * (1.0 / period)) * period) * (1.0 / period)
        section.x_FR[f, r] = sin_turns(turns)
        section.x_FR[f + 1, r] = cos_turns(turns)


@inlined
def _known_columns(facts: Facts, section: Section, gap: int, f: int, stop: int) -> None:
    """The numbers and the gap (its column), from column f on: NaN where a number is missing, and where no time has
    passed because there is no event before or the event is older than that one."""
    unknown = np.float32(np.nan)
    for v in range(facts.numbers):
        for r in range(stop):
            section.x_FR[f + v, r] = unknown if np.isnan(section.values_VR[v, r]) else section.x_FR[v, r]
    gap_R, time_R = section.x_FR[f + facts.numbers], section.time_R
    gap_R[0] = unknown
    for r in range(1, stop):
        gap_R[r] = unknown if time_R[r] < time_R[r - 1] else section.x_FR[gap, r]
