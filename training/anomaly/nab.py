"""The scoring rule of the Numenta Anomaly Benchmark, by its paper.

Lavin and Ahmad, "Evaluating Real-time Anomaly Detection Algorithms: the Numenta Anomaly Benchmark", ICMLA 2015,
arXiv:1510.03336. Each labelled anomaly is a window of rows. The earliest detection within a window earns up to 1,
more the earlier it is; later ones earn nothing and cost nothing. A detection outside costs up to the weight of a
false positive, less just behind a window. A window without a detection costs the weight of a miss. The first rows
of a file, in which a detector may learn, are not scored. One threshold holds for all files.

Legend: T rows of a file, W its windows, N scored rows of all files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.anomaly.series import Series
from training.errors import TrainingError

__all__ = ["PROFILES", "Profile", "Result", "ScoredFile", "best_threshold", "nab_scores", "score_at", "scored"]

STEEPNESS = 5.0
FAR = 3.0  # window widths behind a window from which a false positive costs all of its weight


@dataclass(frozen=True, slots=True)
class Profile:
    """What an application cares about: what a false positive and a missed window cost; a detection earns 1."""

    false_positive: float
    miss: float


PROFILES = {"standard": Profile(0.11, 1.0), "low FP": Profile(0.22, 1.0), "low FN": Profile(0.11, 2.0)}


@dataclass(frozen=True, slots=True)
class ScoredFile:
    """score_T: float, higher is stranger. windows_W2: first and last row of each window, in order; int. probation:
    how many rows at the beginning are not scored."""

    name: str
    score_T: NDArray[np.floating]
    windows_W2: NDArray[np.int64]
    probation: int

    def __post_init__(self) -> None:
        windows = self.windows_W2.reshape(-1, 2)
        rows = windows.ravel()
        if not np.isfinite(self.score_T).all():
            raise TrainingError(f"{self.name}: a score is not finite: expected a number for each row")
        if (np.diff(rows) < 0).any() or (len(rows) and not 0 <= rows[0] <= rows[-1] < len(self.score_T)):
            raise TrainingError(
                f"{self.name}: windows {windows.tolist()}: expected rows in order, of {self.score_T.size}"
            )


@dataclass(frozen=True, slots=True)
class Result:
    """score: 0 for no detections at all, 100 for one at the start of each window and no others; may be negative."""

    threshold: float
    score: float


def scored(series: Series, score_T: NDArray[np.floating]) -> ScoredFile:
    """A series of NAB with a detector's scores; float, one for each row. Raises TrainingError for another number."""
    if score_T.shape != (len(series),):
        raise TrainingError(f"{series.name}: scores of shape {score_T.shape}: expected ({len(series)},)")
    return ScoredFile(series.name, score_T, series.windows_W2, series.probation)


def nab_scores(files: Sequence[ScoredFile]) -> dict[str, Result]:
    """The benchmark's three figures, by profile, each at its own best threshold for all files, as it publishes them."""
    return {name: best_threshold(files, profile) for name, profile in PROFILES.items()}


def best_threshold(files: Sequence[ScoredFile], profile: Profile) -> Result:
    """The threshold for all files that scores best, over all that differ. Rows that reach it are detections."""
    score_N, gain_N = _gains(files, profile)
    windows = _windows(files)
    order = np.argsort(-score_N, kind="stable")
    score_N, raw_N = score_N[order], np.cumsum(gain_N[order])
    last_of_tie = np.append(score_N[1:] != score_N[:-1], True)
    raw_N, score_N = raw_N[last_of_tie], score_N[last_of_tie]
    best = int(np.argmax(raw_N))
    if raw_N[best] <= 0.0:  # no detections at all are better than any
        return Result(float(np.nextafter(score_N[0], np.inf)), 0.0)
    return Result(float(score_N[best]), _normalised(float(raw_N[best]), windows, profile))


def score_at(files: Sequence[ScoredFile], profile: Profile, threshold: float) -> float:
    """The score of all files at a threshold."""
    score_N, gain_N = _gains(files, profile)
    return _normalised(float(gain_N[score_N >= threshold].sum()), _windows(files), profile)


def _windows(files: Sequence[ScoredFile]) -> int:
    windows = sum(len(file.windows_W2.reshape(-1, 2)) for file in files)
    if not windows:
        raise TrainingError(f"{len(files)} files without a window: expected at least one window")
    return windows


def _normalised(raw: float, windows: int, profile: Profile) -> float:
    """raw: what the detections add to the score of the null detector, which misses all windows."""
    return 100.0 * raw / (windows * (1.0 + profile.miss))


def _gains(files: Sequence[ScoredFile], profile: Profile) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of all scored rows, and what lowering the threshold to each adds to the null detector's score.

    Within a window a row adds only what it has over the better ones among the rows with higher scores, and the first
    of them the miss that it spares.
    """
    scores, gains = [], []
    for file in files:
        worth_T = _worth(len(file.score_T), file.windows_W2, profile)
        for first, last in file.windows_W2.reshape(-1, 2).tolist():
            begin = max(first, file.probation)
            rows = begin + np.argsort(-file.score_T[begin : last + 1], kind="stable")
            earned = np.maximum.accumulate(worth_T[rows])
            worth_T[rows] = np.diff(earned, prepend=-profile.miss)
        scores.append(np.asarray(file.score_T[file.probation :], np.float64))
        gains.append(worth_T[file.probation :])
    return np.concatenate(scores), np.concatenate(gains)


def _worth(rows: int, windows_W2: NDArray[np.int64], profile: Profile) -> NDArray[np.float64]:
    """What a detection at each row is worth by itself: up to 1 in a window, down to minus a false positive outside."""
    worth_T = np.full(rows, -profile.false_positive)
    windows = windows_W2.reshape(-1, 2).tolist()
    for number, (first, last) in enumerate(windows):
        width = last - first + 1
        inside = np.arange(first, last + 1)
        worth_T[inside] = _sigmoid(-(last - inside + 1) / width) / _sigmoid(np.array(-1.0))
        end = windows[number + 1][0] if number + 1 < len(windows) else rows
        behind = np.arange(last + 1, end)
        worth_T[behind] = profile.false_positive * _sigmoid((behind - last) / max(width - 1, 1))
    return worth_T


def _sigmoid(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a place in window widths from the window's end: almost 1 at its start, 0 at its end, -1 far behind."""
    return np.where(place > FAR, -1.0, 2.0 / (1.0 + np.exp(STEEPNESS * np.minimum(place, FAR))) - 1.0)
