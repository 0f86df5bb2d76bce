"""Row-wise figures against counts worked out by hand and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.anomaly.points import Confusion, auc_pr, best_f1, confusion
from training.errors import TrainingError

LABEL = np.array([0, 0, 0, 1, 1, 0, 1, 0, 0, 0], dtype=bool)
ALARM = np.array([0, 1, 0, 1, 1, 0, 0, 1, 0, 0], dtype=bool)


def test_rates_by_hand() -> None:
    """Rows 3 and 4 found, 6 missed, 1 and 7 alarmed wrongly, five rightly silent: F1 4/7, FAR 2 of 7, MAR 1 of 3."""
    counts = confusion(LABEL, ALARM)
    assert counts == Confusion(2, 2, 1, 5)
    assert counts.precision == pytest.approx(1 / 2)
    assert counts.recall == pytest.approx(2 / 3)
    assert counts.f1 == pytest.approx(4 / 7)
    assert counts.false_alarm_rate == pytest.approx(200 / 7)
    assert counts.missed_alarm_rate == pytest.approx(100 / 3)


def test_series_are_counted_together() -> None:
    """With three found rows of another series: TP 5, FP 2, FN 1; not the mean of F1 4/7 and 1."""
    both = confusion(LABEL, ALARM) + confusion(np.ones(3, bool), np.ones(3, bool))
    assert both == Confusion(5, 2, 1, 5)
    assert both.f1 == pytest.approx(10 / 13)


def test_always_anomalous_misses_nothing_and_alarms_always() -> None:
    """Of SKAB's shape, 35 % anomalies: precision .35, recall 1, F1 = .7 / 1.35."""
    label = np.arange(100) < 35
    counts = confusion(label, np.ones(100, bool))
    assert (counts.false_alarm_rate, counts.missed_alarm_rate) == (100.0, 0.0)
    assert counts.f1 == pytest.approx(0.7 / 1.35)


def test_a_rate_without_rows_is_nan() -> None:
    none = confusion(np.zeros(4, bool), np.zeros(4, bool))
    assert math.isnan(none.f1)
    assert math.isnan(none.missed_alarm_rate)
    assert none.false_alarm_rate == 0.0
    assert math.isnan(confusion(np.ones(4, bool), np.ones(4, bool)).false_alarm_rate)
    assert math.isnan(best_f1(np.zeros(4, bool), np.arange(4.0)).f1)
    assert math.isnan(auc_pr(np.zeros(4, bool), np.arange(4.0)))


def test_best_f1_by_hand() -> None:
    """From the top: hit 2/3 of 2+1, miss 2/4, hit 4/5, miss 4/6. The best threshold is the third score."""
    label = np.array([False, True, False, True])
    score = np.array([0.1, 0.5, 0.7, 0.9])
    found = best_f1(label, score)
    assert found.f1 == pytest.approx(4 / 5)
    assert found.threshold == 0.5
    assert confusion(label, score >= found.threshold).f1 == pytest.approx(found.f1)


def test_equal_scores_cannot_be_told_apart() -> None:
    """One anomaly among five rows of the same score: all are alarmed, F1 2/6, wherever the anomaly stands."""
    for row in range(5):
        assert best_f1(np.arange(5) == row, np.full(5, 0.3)).f1 == pytest.approx(2 / 6)


def test_auc_pr_by_hand() -> None:
    """Anomalies at ranks 1 and 3 of 4: (1/1 + 2/3) / 2."""
    assert auc_pr(np.array([False, True, False, True]), np.array([0.1, 0.4, 0.5, 0.9])) == pytest.approx(5 / 6)


def best_by_trying(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    best = 0.0
    for threshold in set(score.tolist()):
        found = sum(1 for a, s in zip(label, score, strict=True) if a and s >= threshold)
        alarms = sum(1 for s in score if s >= threshold)
        best = max(best, 2 * found / (alarms + int(label.sum())))
    return best


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=30))
def test_the_sweep_finds_what_trying_every_threshold_finds(rows: list[tuple[bool, int]]) -> None:
    label, score = np.array([a for a, _ in rows]), np.array([s for _, s in rows], np.float64)
    found = best_f1(label, score)
    if not label.any():
        assert math.isnan(found.f1)
        return
    assert found.f1 == pytest.approx(best_by_trying(label, score))
    assert confusion(label, score >= found.threshold).f1 == pytest.approx(found.f1)


def test_bad_input_is_named() -> None:
    with pytest.raises(TrainingError, match=r"score of row 1 = nan"):
        best_f1(np.array([True, False]), np.array([0.0, np.nan]))
    with pytest.raises(TrainingError, match=r"shape \(2,\), scores of \(3,\)"):
        confusion(np.array([True, False]), np.array([True, False, True]))
