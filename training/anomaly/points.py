"""Row by row: how many anomalous rows an alarm covers, and how many normal ones it should not have.

F1, false alarm rate and missed alarm rate are those of the Skoltech Anomaly Benchmark (Katser and Kozitsin 2020), where
the rows of all experiments are counted together before a rate is taken: add up `Confusion`s. Nothing is adjusted: an
anomaly of which one row was found is not found whole, as with point adjustment random scores look excellent (Kim et al.
2022, arXiv:2109.05257). A rate that the data does not define is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import TrainingError
from training.metrics import average_precision

__all__ = ["BestF1", "Confusion", "auc_pr", "best_f1", "confusion"]

Scores = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many rows were alarmed (positive) or not, rightly (true) or not. Those of several series add up."""

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(
            self.true_positives + other.true_positives, self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives, self.true_negatives + other.true_negatives,
        )  # fmt: skip

    @property
    def precision(self) -> float:
        return _share(self.true_positives, self.false_positives)

    @property
    def recall(self) -> float:
        return _share(self.true_positives, self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, in [0, 1]; NaN with neither anomalies nor alarms."""
        return _share(2 * self.true_positives, self.false_positives + self.false_negatives)

    @property
    def false_alarm_rate(self) -> float:
        """FAR: alarmed share of normal rows, in percent."""
        return 100.0 * _share(self.false_positives, self.true_negatives)

    @property
    def missed_alarm_rate(self) -> float:
        """MAR: share of anomalous rows without an alarm, in percent."""
        return 100.0 * _share(self.false_negatives, self.true_positives)


@dataclass(frozen=True, slots=True)
class BestF1:
    """The best F1 that any threshold reaches; rows that reach the threshold are alarmed."""

    threshold: float
    f1: float


def confusion(label_T: NDArray[np.bool_], alarm_T: NDArray[np.bool_]) -> Confusion:
    """label_T, alarm_T: bool, of the same rows. Raises TrainingError where they differ in length."""
    _same_length(label_T, alarm_T)
    found, alarms, anomalies = int((label_T & alarm_T).sum()), int(alarm_T.sum()), int(label_T.sum())
    return Confusion(found, alarms - found, anomalies - found, len(label_T) - alarms - anomalies + found)


def best_f1(label_T: NDArray[np.bool_], score_T: Scores) -> BestF1:
    """Over all thresholds that differ, in one sweep; the highest of those that are equally good.

    It knows the labels, so it is an upper bound for a threshold chosen beforehand. NaN without an anomaly. Raises
    TrainingError for different lengths, and a score that is not finite.
    """
    _finite(label_T, score_T)
    if not label_T.any():
        return BestF1(float("nan"), float("nan"))
    order = np.argsort(-score_T, kind="stable")
    score_T = score_T[order]
    last_T = np.append(score_T[1:] != score_T[:-1], True)  # equal scores are alarmed together
    alarms_M = np.flatnonzero(last_T) + 1
    f1_M = 2 * np.cumsum(label_T[order])[last_T] / (alarms_M + label_T.sum())
    best = int(np.argmax(f1_M))
    return BestF1(float(score_T[alarms_M[best] - 1]), float(f1_M[best]))


def auc_pr(label_T: NDArray[np.bool_], score_T: Scores) -> float:
    """Area under precision over recall, as steps (average precision), which TSB-AD calls AUC-PR.

    NaN without an anomaly. Raises TrainingError for different lengths, and a score that is not finite.
    """
    _finite(label_T, score_T)
    return average_precision(label_T, score_T)


def _finite(label_T: NDArray[np.bool_], score_T: Scores) -> None:
    _same_length(label_T, score_T)
    if not np.isfinite(score_T).all():
        row = int(np.flatnonzero(~np.isfinite(score_T))[0])
        raise TrainingError(f"score of row {row} = {score_T[row]}: expected a finite number for each row")


def _same_length(label_T: NDArray[np.bool_], other_T: NDArray[np.bool_] | Scores) -> None:
    if label_T.shape != other_T.shape or label_T.ndim != 1:
        raise TrainingError(f"labels of shape {label_T.shape}, scores of {other_T.shape}: expected the same rows")


def _share(part: int, rest: int) -> float:
    return part / (part + rest) if part + rest else float("nan")
