"""What an entity usually does: counts, sums, means, deviations and distinct values over the horizons.

Over a horizon h a statistic is exact while the window holds the horizon: the entity has had no more events
than the window has places, or the oldest event in the window is older than h. Beyond that it is estimated from
decayed sums with time constant h, Σ e^(−age/h)·x, whose expectation for a steady stream equals the sum over
the last h. Ages are against the entity's clock, the greatest event time seen; a late event does not turn it
back, and counts in the decayed sums with the weight of its age.

Legend: A applied events sorted by entity and arrival, L events in a window, H horizons, S decayed sums.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.features.layout import Layout
from models.features.windows import Sections, transform

__all__ = ["advance_decayed", "entity_clock", "horizon_features"]

CLOCK_BITS = 43  # epoch ms until the year 2248; the rest of 63 bits numbers the entities of a batch
DEVIATION_FLOOR = 1e-3  # of the mean: one event, or equal amounts, have no spread to divide by
ZSCORE_LIMIT = 20.0


def entity_clock(
    clock_N: NDArray[np.int64], owner_A: NDArray[np.int64], time_A: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Each entity's greatest event time up to and including each event: int64 (A,)."""
    section_A = owner_A << CLOCK_BITS
    running_A: NDArray[np.int64] = np.maximum.accumulate(section_A + np.maximum(time_A, clock_N[owner_A]))
    clock_A: NDArray[np.int64] = running_A - section_A
    return clock_A


def advance_decayed(
    layout: Layout,
    states_N: NDArray[np.void],
    owner_A: NDArray[np.int64],
    s: Sections,
    clock_A: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decayed sums before each event (A, H, S), as of its clock, and after the last of each entity (N, H, S).

    One round for each repetition of the busiest entity; a round is an array operation over entities. The
    recurrence is stepped, not solved in closed form, so the sums are the same to the bit in any batching.
    """
    horizons_H = np.array(layout.pipeline.window.horizons_ms, dtype=np.float64)
    sums_NHS = states_N["decayed"].copy()
    clock_N = states_N["clock"].copy()
    time_A = s.time_E[s.event_A]
    terms_AS = _terms(layout, s.values_EV[s.event_A])
    late_AH = np.exp(-(clock_A - time_A)[:, None] / horizons_H)
    before_AHS = np.empty((len(owner_A), *sums_NHS.shape[1:]))
    by_rank = np.argsort(s.rank_A, kind="stable")
    bounds = np.concatenate(([0], np.cumsum(np.bincount(s.rank_A))))
    for first, last in pairwise(bounds.tolist()):
        a = by_rank[first:last]
        n = owner_A[a]
        faded_HS = np.exp(-(clock_A[a] - clock_N[n])[:, None] / horizons_H)
        before_AHS[a] = sums_NHS[n] * faded_HS[:, :, None]
        sums_NHS[n] = before_AHS[a] + late_AH[a][:, :, None] * terms_AS[a][:, None, :]
        clock_N[n] = clock_A[a]
    return before_AHS, sums_NHS


def _terms(layout: Layout, values_AV: NDArray[np.float32]) -> NDArray[np.float64]:
    """What one event adds: 1, then for each number 1, x and x² (0 where it is missing): (A, S)."""
    terms = [np.ones(len(values_AV))]
    for v in range(len(layout.number_names)):
        x_A = values_AV[:, v].astype(np.float64)
        known_A = ~np.isnan(x_A)
        x_A = np.where(known_A, x_A, 0.0)
        terms += [known_A.astype(np.float64), x_A, x_A * x_A]
    return np.column_stack(terms)


def horizon_features(
    layout: Layout,
    s: Sections,
    mask_AL: NDArray[np.bool_],
    clock_A: NDArray[np.int64],
    total_A: NDArray[np.int64],
    before_AHS: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """The context columns from `history` to the last horizon, in `layout.inputs.context` order.

    total_A: events of the entity before this one, ever. history: log1p of it. over_median: transformed number
    minus the transformed median of the window's earlier events. seen: 1 if an earlier event of the window had
    this value. For each horizon: log1p of the number of events, this one included; for each number the
    transformed sum (included) and mean (excluded), the deviation relative to the mean, and the z-score of this
    event against them; for each category and entity log1p of distinct values, this event's included, in the
    window (a lower bound where the window does not hold the horizon).
    """
    age_AL = np.maximum(clock_A[:, None] - s.time_E[s.window_AL], 0)
    earlier_AL = mask_AL.copy()
    earlier_AL[:, -1] = False
    values_ALV = s.values_EV[s.window_AL][:, :, : len(layout.number_names)].astype(np.float64)
    columns = [np.log1p(total_A.astype(np.float64))]
    for v, name in enumerate(layout.number_names):
        columns.append(_over_median(layout, name, values_ALV[:, :, v], earlier_AL))
    hashes_ALK = s.hashes_EK[s.window_AL]
    aged_AL, latest_KAL = _latest_by_age(age_AL, hashes_ALK, mask_AL)
    for k in range(hashes_ALK.shape[2]):
        same_AL = earlier_AL & (hashes_ALK[:, :, k] == hashes_ALK[:, -1:, k]) & (hashes_ALK[:, -1:, k] != 0)
        columns.append(same_AL.any(axis=1).astype(np.float64))
    for h, horizon in enumerate(layout.pipeline.window.horizons_ms):
        within_AL = earlier_AL & (age_AL <= horizon)
        # the window holds L - 1 earlier events: all there are, or enough to reach past the horizon
        exact_A = (total_A < layout.length) | (age_AL[:, 0] > horizon)
        count_A = np.where(exact_A, within_AL.sum(axis=1), before_AHS[:, h, 0])
        columns.append(np.log1p(count_A + 1.0))
        for v, name in enumerate(layout.number_names):
            decayed_A3 = before_AHS[:, h, 1 + 3 * v : 4 + 3 * v]
            columns += _number_stats(layout, name, values_ALV[:, :, v], within_AL, exact_A, decayed_A3)
        for latest_AL in latest_KAL:
            distinct_A = (latest_AL & (aged_AL <= horizon)).sum(axis=1)
            columns.append(np.log1p(distinct_A.astype(np.float64)))
    return columns


def _over_median(
    layout: Layout, name: str, x_AL: NDArray[np.float64], earlier_AL: NDArray[np.bool_]
) -> NDArray[np.float64]:
    known_AL = earlier_AL & ~np.isnan(x_AL)
    count_A = known_AL.sum(axis=1)
    sorted_AL = np.sort(np.where(known_AL, x_AL, np.inf), axis=1)
    rows = np.arange(len(x_AL))
    low_A, high_A = sorted_AL[rows, np.maximum(count_A - 1, 0) // 2], sorted_AL[rows, count_A // 2]
    usable_A = (count_A > 0) & ~np.isnan(x_AL[:, -1])
    median_A = np.where(usable_A, (np.where(usable_A, low_A, 0.0) + np.where(usable_A, high_A, 0.0)) / 2, 0.0)
    now_A = np.where(usable_A, x_AL[:, -1], 0.0)
    return np.where(usable_A, transform(layout, name, now_A) - transform(layout, name, median_A), 0.0)


def _number_stats(
    layout: Layout,
    name: str,
    x_AL: NDArray[np.float64],
    within_AL: NDArray[np.bool_],
    exact_A: NDArray[np.bool_],
    decayed_A3: NDArray[np.float64],
) -> list[NDArray[np.float64]]:
    """sum, mean, deviation, zscore of one number over one horizon."""
    known_AL = within_AL & ~np.isnan(x_AL)
    x0_AL = np.where(known_AL, x_AL, 0.0)
    count_A = np.where(exact_A, known_AL.sum(axis=1), decayed_A3[:, 0])
    sum_A = np.where(exact_A, x0_AL.sum(axis=1), decayed_A3[:, 1])
    square_A = np.where(exact_A, (x0_AL * x0_AL).sum(axis=1), decayed_A3[:, 2])
    some_A = count_A > 1e-9  # a decayed count never quite reaches 0
    divisor_A = np.where(some_A, count_A, 1.0)
    mean_A = np.where(some_A, sum_A / divisor_A, 0.0)
    deviation_A = np.sqrt(np.maximum(square_A / divisor_A - mean_A * mean_A, 0.0))
    floor_A = DEVIATION_FLOOR * np.maximum(np.abs(mean_A), 1.0)
    now_A = x_AL[:, -1]
    known_A = ~np.isnan(now_A)
    z_A = np.clip(
        (np.where(known_A, now_A, 0.0) - mean_A) / np.maximum(deviation_A, floor_A), -ZSCORE_LIMIT, ZSCORE_LIMIT
    )
    return [
        transform(layout, name, sum_A + np.where(known_A, now_A, 0.0)),
        transform(layout, name, mean_A),
        np.where(some_A, deviation_A / np.maximum(np.abs(mean_A), floor_A), 0.0),
        np.where(some_A & known_A & (deviation_A > floor_A), z_A, 0.0),
    ]


def _latest_by_age(
    age_AL: NDArray[np.int64], hashes_ALK: NDArray[np.uint32], mask_AL: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Each window's ages, oldest first, and True where a (known) value occurs for the last time: (A, L), (K, A, L).

    This event is last however late it is. Of equal values the youngest is marked, so that it decides whether the
    value lies within a horizon.
    """
    aged_AL = age_AL.copy()
    aged_AL[:, -1] = 0
    unordered = np.flatnonzero((aged_AL[:, 1:] > aged_AL[:, :-1]).any(axis=1))
    if len(unordered):  # windows with late events
        order = np.argsort(-aged_AL[unordered], axis=1, kind="stable")
        hashes_ALK, mask_AL = hashes_ALK.copy(), mask_AL.copy()
        for array in (aged_AL, mask_AL):
            array[unordered] = np.take_along_axis(array[unordered], order, axis=1)
        hashes_ALK[unordered] = np.take_along_axis(hashes_ALK[unordered], order[:, :, None], axis=1)
    # Places first: comparing with all places `d` later is one operation over contiguous memory.
    hashes_LAK = np.ascontiguousarray(hashes_ALK.transpose(1, 0, 2))
    latest_LAK = mask_AL.T[:, :, None] & (hashes_LAK != 0)
    for d in range(1, len(hashes_LAK)):
        latest_LAK[:-d] &= hashes_LAK[:-d] != hashes_LAK[d:]
    return aged_AL, np.ascontiguousarray(latest_LAK.transpose(2, 1, 0))
