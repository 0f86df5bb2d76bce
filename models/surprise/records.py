"""What never happened before: a channel's value, averages, movement and season outside the range of all before.

A range is the greatest and the least value so far, drawn to its middle by a little with each reading, so that a record
is forgotten after some thousands. Excess is how far a value is outside, in half ranges.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.compiled import inlined
from models.surprise.memory import CHANNEL, RECORDS, SCALE, Places

__all__ = ["LEAST", "advance_records", "learn_season"]

LEAST = 100.0  # readings before which a record means nothing
MOST_EXCESS = 3.0  # half ranges
FAST, MIDDLE, SLOW = 3.0, 10.0, 40.0  # readings
MOVEMENT = 10.0
SEASON_DAYS = 60.0  # values that the usual one of an hour is the mean of, at most
# of value, fast and middle average, fast above slow, above the hour's usual, log of the movement
FORGET = np.array([1e-4, 3e-4, 3e-4, 3e-4, 0.0, 1e-4])
WEIGHT = np.array([0.5, 0.25, 0.5, 0.25, 0.25, 0.25])
VARIANCE, LAST = 1, 6  # words of a channel's scale


@inlined
def advance_records(
    places: Places, state_W: NDArray[np.float32], channel: int, value: float, hour: int, seen: float,
    record_R: NDArray[np.float64],
) -> tuple[float, float]:  # fmt: skip
    """Excess of the value, and weighted sum of all excesses; then the ranges take the reading in."""
    at, scale = places.records + channel * CHANNEL, places.scales + channel * SCALE
    first = seen == 0.0
    if first:
        state_W[at] = state_W[at + 1] = state_W[at + 2] = value
    state_W[at] += (value - state_W[at]) / FAST
    state_W[at + 1] += (value - state_W[at + 1]) / MIDDLE
    state_W[at + 2] += (value - state_W[at + 2]) / SLOW
    step = 0.0 if first else value - state_W[scale + LAST]
    state_W[at + 3] += (step * step - state_W[at + 3]) / MOVEMENT
    season = places.seasons + hour * (places.channels + 1)
    usual = state_W[season + 1 + channel] if state_W[season] > 0.0 else state_W[at + 2]
    record_R[0] = value
    record_R[1] = state_W[at]
    record_R[2] = state_W[at + 1]
    record_R[3] = state_W[at] - state_W[at + 2]
    record_R[4] = value - usual
    record_R[5] = math.log(state_W[at + 3] + 1e-6 * state_W[scale + VARIANCE] + 1e-12)
    own, total = 0.0, 0.0
    for r in range(RECORDS):
        excess = _take_in(state_W, at + 4 + 2 * r, record_R[r], FORGET[r], first)
        if seen >= LEAST:
            own += excess if r == 0 else 0.0
            total += WEIGHT[r] * excess
    return own, total


@inlined
def _take_in(state_W: NDArray[np.float32], at: int, value: float, forget: float, first: bool) -> float:
    if first:
        state_W[at] = state_W[at + 1] = value
        return 0.0
    greatest, least = float(state_W[at]), float(state_W[at + 1])
    half, middle = 0.5 * (greatest - least), 0.5 * (greatest + least)
    off = abs(value - middle)
    excess = 0.0
    if off > half:
        excess = min(off / half - 1.0, MOST_EXCESS) if half > 0.0 else MOST_EXCESS
        if half > 0.0:  # an absurd value widens the range by no more than counts
            reach = (1.0 + MOST_EXCESS) * half
            value = min(middle + reach, max(middle - reach, value))
        greatest, least = max(greatest, value), min(least, value)
        middle = 0.5 * (greatest + least)
    state_W[at] = greatest + (middle - greatest) * forget
    state_W[at + 1] = least + (middle - least) * forget
    return excess


@inlined
def learn_season(places: Places, state_W: NDArray[np.float32], reading_C: NDArray[np.float64], hour: int) -> None:
    """The usual values of this hour of the day move towards the reading; missing channels stay."""
    at = places.seasons + hour * (places.channels + 1)
    seen = min(np.float64(state_W[at]) + 1.0, SEASON_DAYS)
    state_W[at] = seen
    for c in range(places.channels):
        if not np.isnan(reading_C[c]):
            state_W[at + 1 + c] += (reading_C[c] - state_W[at + 1 + c]) / seen
