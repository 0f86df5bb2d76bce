"""The detector for surprise over a labelled series: one pass, each row scored before it is learnt."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.surprise.memory import places_of
from models.surprise.reading import ONSET, OUT, SCORE, advance_readings
from training.anomaly.series import Series

__all__ = ["Surprise", "surprise_of"]

HOUR_MS, HOURS = 3_600_000, 24


class Surprise(NamedTuple):
    """Of T rows. score_T: float64 in [0, 1), higher is stranger, 0 in the prefix. onset_T: float64 in [0, 1), how
    strongly something new begins. carried_TC: how much of the evidence each channel has carried lately, in spreads."""

    score_T: NDArray[np.float64]
    onset_T: NDArray[np.float64]
    carried_TC: NDArray[np.float32]


def surprise_of(series: Series) -> Surprise:
    """Scores of all rows. Of the series it sees values, times, and the length of the prefix, nothing else."""
    places, rows = places_of(len(series.channels)), len(series)
    state_W = np.zeros(places.words, np.float32)
    out_TO = np.empty((rows, len(OUT)), np.float32)
    carried_TC, expected_TC = (np.empty((rows, len(series.channels)), np.float32) for _ in range(2))
    hour_T = series.time_T // HOUR_MS % HOURS
    values_TC = np.ascontiguousarray(series.values_TC, np.float64)
    learning_T = np.arange(rows) < series.prefix
    advance_readings(places, state_W, values_TC, hour_T, learning_T, out_TO, carried_TC, expected_TC)
    return Surprise(out_TO[:, SCORE].astype(np.float64), out_TO[:, ONSET].astype(np.float64), carried_TC)
