"""What an entity usually does: counts, sums, means, deviations and distinct values over the horizons.

Over a horizon h a statistic is exact while the window holds the horizon: the entity has had no more events
than the window has places, or the oldest event in the window is older than h. Beyond that it is estimated from
decayed sums with time constant h, Σ e^(−age/h)·x, whose expectation for a steady stream equals the sum over
the last h. Ages are against the entity's clock, the greatest event time seen; a late event does not turn it
back, and counts in the decayed sums with the weight of its age.

Legend: R rows of a section, H horizons, S decayed sums, C columns of context, V values, K hashes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.features.facts import Facts
from models.features.numerics import log1p, transformed
from models.features.windows import Section

__all__ = ["Scratch", "advance_decayed", "empty_scratch", "write_context"]

DEVIATION_FLOOR = 1e-3  # of the mean: one event, or equal amounts, have no spread to divide by
ZSCORE_LIMIT = 20.0
BLOCK = 16  # inner loops are this long: whole vector registers, no remainder


class Scratch(NamedTuple):
    """Room for the context of one event.

    Of the window's earlier rows in the order of their times, with empty places behind them (W: a multiple of BLOCK):
    time_W, values_VW, hashes_KW. before_HS: decayed sums without the event. first_H: the first row within each
    horizon. exact_H: whether the window holds it. work_W, sums_3W, distinct_W: see where they are used.
    """

    time_W: NDArray[np.float64]
    values_VW: NDArray[np.float32]
    hashes_KW: NDArray[np.uint32]
    before_HS: NDArray[np.float64]
    first_H: NDArray[np.int64]
    exact_H: NDArray[np.bool_]
    work_W: NDArray[np.int32]
    sums_3W: NDArray[np.float64]
    distinct_W: NDArray[np.int64]


@inlined
def empty_scratch(facts: Facts) -> Scratch:
    horizons = len(facts.horizon_H)
    places = facts.length // BLOCK * BLOCK + BLOCK  # more than the L - 1 earlier rows
    return Scratch(
        np.empty(places),
        np.empty((facts.numbers, places), np.float32),
        np.empty((facts.hashes, places), np.uint32),
        np.empty(horizons * (1 + 3 * facts.numbers)),
        np.empty(horizons, np.int64),
        np.empty(horizons, np.bool_),
        np.empty(places, np.int32),
        np.empty((3, places)),
        np.empty(places, np.int64),
    )


@inlined
def advance_decayed(
    facts: Facts,
    section: Section,
    row: int,
    elapsed_ms: float,
    age_ms: float,
    sums_HS: NDArray[np.float64],
    before_HS: NDArray[np.float64],
) -> None:
    """Fade the sums to the entity's clock, keep them as `before_HS`, and add the event in this row.

    Each number adds 1, x and x², or nothing where it is missing. elapsed_ms: how far the event moved the clock.
    age_ms: how late it is. Both arrays have the sums of the horizons end to end. The recurrence is stepped, not
    solved in closed form, so the sums are the same to the bit in any batching.
    """
    i = 0
    for h in range(len(facts.horizon_H)):
        faded = math.exp(-elapsed_ms / facts.horizon_H[h]) if elapsed_ms > 0.0 else 1.0
        weight = math.exp(-age_ms / facts.horizon_H[h]) if age_ms > 0.0 else 1.0
        before_HS[i] = sums_HS[i] * faded
        sums_HS[i] = before_HS[i] + weight
        i += 1
        for v in range(facts.numbers):
            x = np.float64(section.values_VR[v, row])
            known = 0.0 if np.isnan(x) else weight
            amount = 0.0 if np.isnan(x) else x
            for s in range(i, i + 3):
                before_HS[s] = sums_HS[s] * faded
            sums_HS[i] = before_HS[i] + known
            sums_HS[i + 1] = before_HS[i + 1] + known * amount
            sums_HS[i + 2] = before_HS[i + 2] + known * (amount * amount)
            i += 3


@compiled
def write_context(
    facts: Facts, section: Section, scratch: Scratch, row: int, clock: float, total: int, out_C: NDArray[np.float32]
) -> None:
    """The context columns from `history` to the last horizon, in `layout.inputs.context` order.

    total: events of the entity before this one, ever. history: log1p of it. over_median: transformed number
    minus the transformed median of the window's earlier events. seen: 1 if an earlier event of the window had
    this value. For each horizon: log1p of the number of events, this one included; for each number the
    transformed sum (included) and mean (excluded), the deviation relative to the mean, and the z-score of this
    event against them; for each category and entity log1p of distinct values, this event's included, in the
    window (a lower bound where the window does not hold the horizon).
    """
    lowest = max(row - facts.length + 1, 0)
    earlier = row - lowest
    _sort_by_time(facts, section, scratch, lowest, row)
    numbers, hashes = facts.numbers, facts.hashes
    out_C[0] = log1p(np.float64(total))
    first_column = 1 + numbers + hashes
    width = 1 + 4 * numbers + hashes
    for h in range(len(facts.horizon_H)):
        horizon = facts.horizon_H[h]
        within = 0
        for i in range(_places(earlier)):
            within += clock - scratch.time_W[i] <= horizon
        # the window holds L - 1 earlier events: all there are, or enough to reach past the horizon
        exact = total < facts.length or clock - section.time_R[lowest] > horizon
        scratch.first_H[h] = earlier - within
        scratch.exact_H[h] = exact
        count = np.float64(within) if exact else scratch.before_HS[h * (1 + 3 * numbers)]
        out_C[first_column + h * width] = log1p(count + 1.0)
    for v in range(numbers):
        now, how = np.float64(section.values_VR[v, row]), facts.how_P[v]
        out_C[1 + v] = _over_median(scratch.values_VW[v], earlier, now, how, scratch.work_W)
        _suffix_sums(scratch.values_VW[v], earlier, scratch.sums_3W)
        for h in range(len(facts.horizon_H)):
            place = h * (1 + 3 * numbers) + 1 + 3 * v
            _number_stats(scratch, h, place, how, now, out_C, first_column + h * width + 1 + 4 * v)
    for k in range(hashes):
        now_hash = section.hashes_KR[k, row]
        out_C[1 + numbers + k] = _distinct(scratch.hashes_KW[k], earlier, now_hash, scratch.work_W, scratch.distinct_W)
        for h in range(len(facts.horizon_H)):
            column = first_column + h * width + 1 + 4 * numbers + k
            out_C[column] = facts.log_count[scratch.distinct_W[scratch.first_H[h]]]


@inlined
def _places(earlier: int) -> int:
    return (earlier + BLOCK - 1) // BLOCK * BLOCK


@inlined
def _sort_by_time(facts: Facts, section: Section, scratch: Scratch, first: int, stop: int) -> None:
    """Copy the rows from `first` up to `stop`, oldest first; rows of one time keep their order.

    The places behind them hold what takes part in nothing: a time before all, an infinite value, no hash.
    """
    time_W = scratch.time_W
    earlier = stop - first
    _copy(section.time_R[first:stop], time_W)
    for v in range(facts.numbers):
        _copy(section.values_VR[v, first:stop], scratch.values_VW[v])
    for k in range(facts.hashes):
        _copy(section.hashes_KR[k, first:stop], scratch.hashes_KW[k])
    late = 0
    for i in range(1, earlier):
        late += time_W[i] < time_W[i - 1]
    if late:
        _move_late(facts, scratch, earlier)
    for i in range(earlier, _places(earlier)):
        time_W[i] = -np.inf
        for v in range(facts.numbers):
            scratch.values_VW[v, i] = np.inf
        for k in range(facts.hashes):
            scratch.hashes_KW[k, i] = 0


@inlined
def _copy(rows_E: NDArray[np.generic], out_W: NDArray[np.generic]) -> None:
    for i in range(len(rows_E)):
        out_W[i] = rows_E[i]


@compiled
def _move_late(facts: Facts, scratch: Scratch, earlier: int) -> None:
    """Insertion sort, for rows that are almost in order."""
    time_W = scratch.time_W
    for i in range(1, earlier):
        place = i
        while place > 0 and time_W[place - 1] > time_W[place]:
            time_W[place - 1], time_W[place] = time_W[place], time_W[place - 1]
            for v in range(facts.numbers):
                x_W = scratch.values_VW[v]
                x_W[place - 1], x_W[place] = x_W[place], x_W[place - 1]
            for k in range(facts.hashes):
                hash_W = scratch.hashes_KW[k]
                hash_W[place - 1], hash_W[place] = hash_W[place], hash_W[place - 1]
            place -= 1


@inlined
def _over_median(x_W: NDArray[np.float32], earlier: int, now: float, how: int, rank_W: NDArray[np.int32]) -> float:
    """A sorted place is found by counting: the m-th smallest is the greatest with at most m smaller ones."""
    places = _places(earlier)
    known = 0
    for i in range(earlier):
        known += not np.isnan(x_W[i])
    if known == 0 or np.isnan(now):
        return 0.0
    for i in range(places):
        rank_W[i] = 0
    for j in range(0, places, 4):
        a, b, c, d = x_W[j], x_W[j + 1], x_W[j + 2], x_W[j + 3]
        for i in range(places):
            x = x_W[i]  # nothing is smaller than NaN, or than NaN is
            rank_W[i] += np.int32(a < x) + np.int32(b < x) + np.int32(c < x) + np.int32(d < x)
    low = high = np.float32(-np.inf)
    for i in range(earlier):
        x = x_W[i]
        low = x if rank_W[i] <= (known - 1) // 2 and x > low else low
        high = x if rank_W[i] <= known // 2 and x > high else high
    median = (np.float64(low) + np.float64(high)) / 2
    return transformed(how, now) - transformed(how, median)


@inlined
def _suffix_sums(x_W: NDArray[np.float32], earlier: int, sums_3W: NDArray[np.float64]) -> None:
    """Of the known values from each place to the newest earlier row: how many, their sum, the sum of squares."""
    count = total = square = 0.0
    sums_3W[0, earlier] = sums_3W[1, earlier] = sums_3W[2, earlier] = 0.0
    for i in range(earlier - 1, -1, -1):
        missing = np.isnan(x_W[i])
        x = 0.0 if missing else np.float64(x_W[i])
        count += 0.0 if missing else 1.0
        total += x
        square += x * x
        sums_3W[0, i] = count
        sums_3W[1, i] = total
        sums_3W[2, i] = square


@inlined
def _number_stats(
    scratch: Scratch, h: int, decayed: int, how: int, now: float, out_C: NDArray[np.float32], c: int
) -> None:
    """sum, mean, deviation, zscore of one number over one horizon, from column c on. decayed: where its sums are."""
    if scratch.exact_H[h]:
        place = scratch.first_H[h]
        count, total, square = scratch.sums_3W[0, place], scratch.sums_3W[1, place], scratch.sums_3W[2, place]
    else:
        sums_HS = scratch.before_HS
        count, total, square = sums_HS[decayed], sums_HS[decayed + 1], sums_HS[decayed + 2]
    known = not np.isnan(now)
    some = count > 1e-9  # a decayed count never quite reaches 0
    mean = total / count if some else 0.0
    deviation = math.sqrt(max(square / count - mean * mean, 0.0)) if some else 0.0
    floor = DEVIATION_FLOOR * max(abs(mean), 1.0)
    zscore = min(max((now - mean) / deviation, -ZSCORE_LIMIT), ZSCORE_LIMIT)
    out_C[c] = transformed(how, total + (now if known else 0.0))
    out_C[c + 1] = transformed(how, mean)
    out_C[c + 2] = deviation / max(abs(mean), floor)
    out_C[c + 3] = zscore if known and deviation > floor else 0.0


@inlined
def _distinct(
    hashes_W: NDArray[np.uint32],
    earlier: int,
    now: np.uint32,
    last_W: NDArray[np.int32],
    distinct_W: NDArray[np.int64],
) -> float:
    """Sets how many distinct values the event and the rows from each place on have; 1 if a row has the event's.

    Of rows with one value the youngest counts, the event before all: so it decides whether a horizon holds it.
    """
    places = _places(earlier)
    for j in range(0, places, 4):
        a, b, c, d = hashes_W[j], hashes_W[j + 1], hashes_W[j + 2], hashes_W[j + 3]
        for i in range(places):
            found = hashes_W[i]
            last = np.int32(j) if found == a else last_W[i]
            last = np.int32(j + 1) if found == b else last
            last = np.int32(j + 2) if found == c else last
            last_W[i] = np.int32(j + 3) if found == d else last
    seen = np.int32(0)
    for i in range(places):
        found = hashes_W[i]
        seen += np.int32(found == now)
        last_W[i] = np.int32((last_W[i] == np.int32(i)) & (found != now) & (found != 0))
    count = np.int64(now != 0)
    distinct_W[earlier] = count
    for i in range(earlier - 1, -1, -1):
        count += last_W[i]
        distinct_W[i] = count
    return 1.0 if seen and now != 0 else 0.0
