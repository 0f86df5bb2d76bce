"""Forecasts of the next reading: linear in the last one and in two averages, all channels from all.

Moments are running means, so the weights are those of a ridge regression (Hoerl and Kennard 1970) over the readings
that count, solved anew every REFIT readings. The adaptive weights follow; the reference ones were learnt from normal
operation and move slowly. What is not seen in one is seen in the other: a slow drift in the reference, a new kind of
behaviour in both.

Legend: as in `models.surprise.memory`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.surprise.memory import SCALE, Places

__all__ = [
    "BRIEF", "BRIEF_MEAN", "ERROR", "LAST", "LEAST_ERROR", "LIMIT", "LONG", "LONG_MEAN", "MEAN", "REFERENCE", "REFIT",
    "VARIANCE", "fit_due", "learn_moments", "refit", "spread_of", "write_errors", "write_forecast", "write_inputs",
]  # fmt: skip

LIMIT = 20.0  # spreads; what is further off is no stranger
RIDGE = 3.0  # readings' worth of belief that nothing can be forecast
FIRST_FIT, FIRST_FITS, REFIT = 16.0, 256.0, 256.0  # readings: at first often, then as often as pays
BRIEF, LONG = 8.0, 64.0  # readings that the averages go back
LEAST_ERROR = 0.02  # spreads: what never varies must not make the smallest change infinite
FLAT = 1e-9
# Words of a channel: mean, variance and mean square of the error, of the adaptive and of the reference forecast; the
# last value, its brief and its long average.
MEAN, VARIANCE, ERROR, REFERENCE, LAST, BRIEF_MEAN, LONG_MEAN = 0, 1, 2, 3, 6, 7, 8


@inlined
def spread_of(mean: float, variance: float) -> float:
    """What a channel varies by; of one that has never varied a tenth of its value, at least 0.1."""
    spread = math.sqrt(max(variance, 0.0))
    return spread if spread > FLAT * (1.0 + abs(mean)) else max(0.1 * abs(mean), 0.1)


@inlined
def write_inputs(
    places: Places, state_W: NDArray[np.float32], which: int, reading_C: NDArray[np.float64],
    input_D: NDArray[np.float64], scaled_C: NDArray[np.float64],
) -> None:  # fmt: skip
    """The inputs of a forecast, and the reading in spreads; a missing channel is NaN there. which: 0 or REFERENCE."""
    channels = places.channels
    input_D[0] = 1.0
    for c in range(channels):
        at = places.scales + c * SCALE
        mean = np.float64(state_W[at + which + MEAN])
        spread = spread_of(mean, np.float64(state_W[at + which + VARIANCE]))
        scaled_C[c] = _cut((reading_C[c] - mean) / spread)
        input_D[1 + c] = _cut((state_W[at + LAST] - mean) / spread)
        input_D[1 + channels + c] = _cut((state_W[at + BRIEF_MEAN] - mean) / spread)
        input_D[1 + 2 * channels + c] = _cut((state_W[at + LONG_MEAN] - mean) / spread)


@inlined
def _cut(value: float) -> float:
    return value if np.isnan(value) else min(LIMIT, max(-LIMIT, value))


@inlined
def write_forecast(
    places: Places, weights_W: NDArray[np.float32], input_D: NDArray[np.float64], out_C: NDArray[np.float64]
) -> None:
    """The forecast reading, in spreads. weights_W: (D, C)."""
    channels = places.channels
    out_C[:] = 0.0
    for d in range(places.inputs):
        value, first = input_D[d], d * channels
        for c in range(channels):
            out_C[c] += value * weights_W[first + c]


@inlined
def write_errors(scaled_C: NDArray[np.float64], forecast_C: NDArray[np.float64], out_C: NDArray[np.float64]) -> None:
    """What the reading is above its forecast, in spreads; 0 where it is missing."""
    for c in range(len(out_C)):
        off = scaled_C[c] - forecast_C[c]
        out_C[c] = 0.0 if np.isnan(off) else _cut(off)


@inlined
def learn_moments(
    places: Places, state_W: NDArray[np.float32], input_D: NDArray[np.float64], scaled_C: NDArray[np.float64],
    rate: float,
) -> None:  # fmt: skip
    """Move the running moments towards this reading by `rate`. A missing channel counts as what was forecast."""
    channels, at = places.channels, places.moments
    for d in range(places.inputs):
        for e in range(d + 1):
            state_W[at + e] += rate * (input_D[d] * input_D[e] - state_W[at + e])
        at += d + 1
    for c in range(channels):
        if np.isnan(scaled_C[c]):
            value = 0.0
            for d in range(places.inputs):
                value += input_D[d] * state_W[places.adaptive + d * channels + c]
            scaled_C[c] = value
    for d in range(places.inputs):
        first = places.products + d * channels
        for c in range(channels):
            state_W[first + c] += rate * (input_D[d] * scaled_C[c] - state_W[first + c])


@inlined
def fit_due(seen: float, since: float) -> bool:
    return since >= REFIT or (seen < FIRST_FITS and since >= FIRST_FIT)


@compiled
def refit(places: Places, state_W: NDArray[np.float32], weight: float) -> None:
    """Solve for the adaptive weights by Cholesky's factors. weight: readings that the moments stand for."""
    inputs, channels = places.inputs, places.channels
    factor_DD = _factor(places, state_W, RIDGE / max(weight, 1.0))
    solved_DC = np.empty((inputs, channels))
    for d in range(inputs):
        first = places.products + d * channels
        for c in range(channels):
            solved_DC[d, c] = state_W[first + c]
        for k in range(d):
            for c in range(channels):
                solved_DC[d, c] -= factor_DD[d, k] * solved_DC[k, c]
        for c in range(channels):
            solved_DC[d, c] /= factor_DD[d, d]
    for d in range(inputs - 1, -1, -1):
        for k in range(d + 1, inputs):
            for c in range(channels):
                solved_DC[d, c] -= factor_DD[k, d] * solved_DC[k, c]
        for c in range(channels):
            solved_DC[d, c] /= factor_DD[d, d]
            state_W[places.adaptive + d * channels + c] = solved_DC[d, c]


@inlined
def _factor(places: Places, state_W: NDArray[np.float32], ridge: float) -> NDArray[np.float64]:
    """The lower factor of the moments with a ridge on their diagonal."""
    factor_DD = np.zeros((places.inputs, places.inputs))
    at = places.moments
    for d in range(places.inputs):
        for e in range(d + 1):
            value = np.float64(state_W[at + e])
            for k in range(e):
                value -= factor_DD[d, k] * factor_DD[e, k]
            if d == e:  # rounding must not make it negative
                factor_DD[d, d] = math.sqrt(max(value + ridge, 1e-9))
            else:
                factor_DD[d, e] = value / factor_DD[e, e]
        at += d + 1
    return factor_DD
