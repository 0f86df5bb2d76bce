"""Volume under the surface of precision and recall: average precision that forgives a detection a little off.

Paparrizos et al., "Volume Under the Surface: A New Accuracy Evaluation Measure for Time-Series Anomaly Detection",
PVLDB 15(11), 2022; with the choices of TSB-AD (Liu and Paparrizos 2024): buffers of 0 to the series' period, 250
thresholds, and buffers that merge when they meet. A buffer of w rows surrounds each anomaly by w // 2 rows on either
side, whose label falls from 1 with the square root of the distance. For each buffer and threshold

    found     = sum of the labels of the alarmed rows
    possible  = anomalous rows + half the labels of the alarmed rows in buffers
    recall    = min(found / possible, 1) · share of the buffered anomalies with an alarmed row
    precision = found / alarmed rows

The area under precision over recall, as steps, is range-AUC-PR; its mean over the buffers is VUS-PR. Nothing is
adjusted by the scores of other rows.

Legend: T rows, A anomalies, K thresholds, R rows within reach of an anomaly, E those once for each such anomaly,
S anomalies with their buffers, merged.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.anomaly.series import Series, runs_of
from training.errors import TrainingError

__all__ = ["period", "range_auc_pr", "tsbad_vus_pr", "vus_pr"]

THRESHOLDS = 250
ROWS, LAGS = 20_000, 400  # that the autocorrelation is taken from, and up to
FIRST_LAG = 3  # nearer ones are high in every smooth series
LEAST_PERIOD, MOST_PERIOD = FIRST_LAG + 3, FIRST_LAG + 300
NO_PERIOD = 125  # rows of the longest buffer where a series has no period, as TSB-AD has it

Scores = NDArray[np.float32] | NDArray[np.float64]


def vus_pr(label_T: NDArray[np.bool_], score_T: Scores, longest: int, thresholds: int = THRESHOLDS) -> float:
    """VUS-PR in [0, 1] over buffers of 0, 1, … `longest` rows. label_T: bool. score_T: float, higher is stranger.

    thresholds: how many rows, evenly spread over the ranks of the scores, say where alarms begin. NaN without an
    anomaly. Raises TrainingError: other lengths, a score that is not finite, a negative buffer.
    """
    if not label_T.any():
        return float("nan")
    surface = _surface(label_T, score_T, longest, thresholds)
    return float(np.mean([surface.area(buffer) for buffer in range(longest + 1)]))


def range_auc_pr(label_T: NDArray[np.bool_], score_T: Scores, buffer: int, thresholds: int = THRESHOLDS) -> float:
    """Range-AUC-PR: one slice of `vus_pr`, with which it shares the rest."""
    if not label_T.any():
        return float("nan")
    return _surface(label_T, score_T, buffer, thresholds).area(buffer)


def tsbad_vus_pr(series: Series, score_T: Scores) -> float:
    """VUS-PR as TSB-AD publishes it: of all rows, those of the prefix too, up to the period of the first channel."""
    return vus_pr(series.label_T, score_T, period(series.values_TC[:, 0]))


def period(values_T: NDArray[np.float64]) -> int:
    """Rows after which a series resembles itself most: the highest peak of its autocorrelation, by TSB-AD's rule.

    Looks at the first 20,000 rows and at lags of 4 to 399; 125 where there is no peak, or it is at a lag of less than 6
    or more than 303. Raises TrainingError for a value that is not finite.
    """
    head_T = values_T[:ROWS]
    if not np.isfinite(head_T).all():
        raise TrainingError(f"{int((~np.isfinite(head_T)).sum())} values are missing: expected all, for a period")
    correlation = _autocovariance(head_T)[FIRST_LAG : LAGS + 1]
    middle = correlation[1:-1]
    peaks = 1 + np.flatnonzero((middle > correlation[:-2]) & (middle > correlation[2:]))
    if len(peaks) == 0:
        return NO_PERIOD
    lag = FIRST_LAG + int(peaks[np.argmax(correlation[peaks])])
    return lag if LEAST_PERIOD <= lag <= MOST_PERIOD else NO_PERIOD


def _autocovariance(values_T: NDArray[np.float64]) -> NDArray[np.float64]:
    """Up to a factor, which does not move a peak. Padded, as a Fourier transform goes round in a circle."""
    rows = len(values_T)
    if rows == 0 or (values_T == values_T[0]).all():
        return np.zeros(rows)  # what rounding leaves of a constant would have peaks
    size = 1 << (2 * rows - 1).bit_length()
    spectrum = np.fft.rfft(values_T - values_T.mean(), size)
    return np.asarray(np.fft.irfft(spectrum * spectrum.conj(), size)[:rows])


@dataclass(frozen=True, slots=True)
class _Surface:
    """What all buffers share.

    rank_T: number of the first threshold that alarms a row. alarmed_K, found_K: rows that each threshold alarms, of
    them anomalous. begin_A, end_A: first and last rows. distance_E (ascending), side_E, rank_E: of each row of the
    longest buffer: how far from its anomaly, which one of `rank_R` it is, and that one's rank.
    """

    rank_T: NDArray[np.int64]
    alarmed_K: NDArray[np.int64]
    found_K: NDArray[np.int64]
    begin_A: NDArray[np.int64]
    end_A: NDArray[np.int64]
    distance_E: NDArray[np.int64]
    row_E: NDArray[np.int64]
    rank_R: NDArray[np.int64]

    def area(self, buffer: int) -> float:
        """Range-AUC-PR for one buffer."""
        near_K, thresholds = self._near(buffer), len(self.alarmed_K)
        first_S = self._first_found(buffer)
        exists_K = np.cumsum(np.bincount(first_S, minlength=thresholds)) / len(first_S)
        found_K = self.found_K + near_K
        possible_K = self.found_K[-1] + near_K / 2  # the last threshold alarms all rows
        recall_K = np.minimum(found_K / possible_K, 1.0) * exists_K
        return float(np.diff(recall_K, prepend=0.0) @ (found_K / self.alarmed_K))

    def _near(self, buffer: int) -> NDArray[np.float64]:
        """Sum of the labels of the alarmed rows in buffers, by threshold. Where buffers overlap, labels add up to 1."""
        entries = int(np.searchsorted(self.distance_E, buffer // 2, side="right"))
        if entries == 0:
            return np.zeros(len(self.alarmed_K))
        worth_E = np.sqrt(1.0 - self.distance_E[:entries] / buffer)
        label_R = np.minimum(np.bincount(self.row_E[:entries], worth_E, len(self.rank_R)), 1.0)
        return np.cumsum(np.bincount(self.rank_R, label_R, len(self.alarmed_K)))

    def _first_found(self, buffer: int) -> NDArray[np.int64]:
        """Of each anomaly with its buffer, merged with those that it meets: the first threshold that alarms a row."""
        half = buffer // 2
        apart = self.end_A[:-1] + half < self.begin_A[1:] - half
        begin_S = np.maximum(self.begin_A[np.append(True, apart)] - half, 0)
        behind_S = np.minimum(self.end_A[np.append(apart, True)] + half + 1, len(self.rank_T))
        padded_T = np.append(self.rank_T, len(self.alarmed_K))  # so that the last one may end behind the last row
        edges = np.column_stack([begin_S, behind_S]).ravel()
        return np.asarray(np.minimum.reduceat(padded_T, edges)[::2])


def _surface(label_T: NDArray[np.bool_], score_T: Scores, longest: int, thresholds: int) -> _Surface:
    rows = len(label_T)
    if score_T.shape != (rows,) or label_T.ndim != 1:
        raise TrainingError(f"labels of shape {label_T.shape}, scores of {score_T.shape}: expected the same rows")
    if not np.isfinite(score_T).all():
        row = int(np.flatnonzero(~np.isfinite(score_T))[0])
        raise TrainingError(f"score of row {row} = {score_T[row]}: expected a finite number for each row")
    if longest < 0 or thresholds < 2:
        raise TrainingError(f"buffer {longest}, {thresholds} thresholds: expected at least 0 rows, and 2 thresholds")
    rank_T = _ranks(score_T, thresholds)
    windows = runs_of(label_T)
    begin_A, end_A = windows[:, 0], windows[:, 1]
    distance_E, place_E = _buffers(label_T, begin_A, end_A, longest // 2)
    place_R, row_E = np.unique(place_E, return_inverse=True)
    alarmed_K = np.cumsum(np.bincount(rank_T, minlength=thresholds))
    found_K = np.cumsum(np.bincount(rank_T[label_T], minlength=thresholds))
    return _Surface(rank_T, alarmed_K, found_K, begin_A, end_A, distance_E, row_E, rank_T[place_R])


def _ranks(score_T: Scores, thresholds: int) -> NDArray[np.int64]:
    """Number of the first threshold, from the highest down, that each row reaches; all reach the last."""
    height_T = -np.asarray(score_T, np.float64)  # searchsorted wants its table to rise
    at_K = np.linspace(0, len(height_T) - 1, thresholds).astype(np.int64)
    return np.searchsorted(np.sort(height_T)[at_K], height_T, side="left").astype(np.int64)


def _buffers(
    label_T: NDArray[np.bool_], begin_A: NDArray[np.int64], end_A: NDArray[np.int64], reach: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distance and row of each normal row within `reach` of an anomaly, once for each such anomaly; nearest first."""
    away = np.arange(1, reach + 1)
    place = np.concatenate([begin_A[None, :] - away[:, None], end_A[None, :] + away[:, None]], axis=1)
    distance = np.broadcast_to(away[:, None], place.shape)
    inside = (place >= 0) & (place < len(label_T))
    kept = inside & ~label_T[np.clip(place, 0, len(label_T) - 1)]
    return distance[kept], place[kept]
