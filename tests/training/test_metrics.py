"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.clock import DAY_MS
from training.metrics import (
    average_precision,
    card_precision_at_k,
    expected_calibration_error,
    known_frauds_left_out,
    roc_auc,
)


def test_average_precision_and_auc_by_hand() -> None:
    """Frauds at ranks 1 and 3 of 4: AP = (1/1 + 2/3) / 2, AUC = 3 of 4 pairs."""
    fraud = np.array([False, True, False, True])
    score = np.array([0.1, 0.4, 0.5, 0.9])
    assert average_precision(fraud, score) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc(fraud, score) == pytest.approx(3 / 4)


def test_undefined_metrics_are_nan() -> None:
    """Without a fraud there is no precision to average, and the metric says so."""
    none = np.zeros(3, dtype=bool)
    score = np.array([0.1, 0.2, 0.3])
    assert math.isnan(average_precision(none, score))
    assert math.isnan(roc_auc(none, score))
    assert math.isnan(card_precision_at_k([], np.array([], dtype=np.int64), none[:0], score[:0]))


def test_card_precision_removes_cards_found_on_an_earlier_day() -> None:
    """k = 2: day one finds card a (1/2); on day two a is gone, so b and c are looked at and c is found (1/2)."""
    entity = ["a", "b", "c", "a", "b", "c"]
    time = np.array([0, 0, 0, DAY_MS, DAY_MS, DAY_MS], dtype=np.int64)
    fraud = np.array([True, False, True, True, False, True])
    score = np.array([0.9, 0.8, 0.1, 0.9, 0.7, 0.6])
    assert card_precision_at_k(entity, time, fraud, score, k=2) == pytest.approx(0.5)
    # without the removal day two would look at a and b: one hit as well, but over three days it shows
    third = np.array([2 * DAY_MS, 2 * DAY_MS], dtype=np.int64)
    longer = card_precision_at_k(
        [*entity, "a", "c"], np.concatenate([time, third]), np.append(fraud, [True, True]),
        np.append(score, [0.9, 0.9]), k=2,
    )  # fmt: skip
    assert longer == pytest.approx((0.5 + 0.5 + 0.0) / 3)


def test_card_precision_takes_each_cards_greatest_score_of_the_day() -> None:
    """A card counts once a day, with its most suspicious event, and is defrauded by any of its events."""
    entity = ["a", "a", "b"]
    time = np.array([0, 1000, 2000], dtype=np.int64)
    fraud = np.array([True, False, False])
    score = np.array([0.1, 0.9, 0.5])
    assert card_precision_at_k(entity, time, fraud, score, k=1) == pytest.approx(1.0)


def test_known_frauds_leave_on_the_eighth_day_after() -> None:
    """With labels 7 days late a fraud on day 0 removes its card from day 8 on, and no other card."""
    time = np.array([7, 8, 9, 8], dtype=np.int64) * DAY_MS
    stays = known_frauds_left_out(["a", "a", "a", "b"], time, ["a"], np.array([5], dtype=np.int64), 7 * DAY_MS)
    assert stays.tolist() == [True, False, False, True]


def test_calibration_error_by_hand() -> None:
    """Two bins of two: |0.1 - 0| and |0.8 - 0.5| weigh alike, whatever the order of the input."""
    fraud = np.array([True, False, False, False])
    probability = np.array([0.8, 0.1, 0.8, 0.1])
    assert expected_calibration_error(fraud, probability, bins=2) == pytest.approx((0.1 + 0.3) / 2)
