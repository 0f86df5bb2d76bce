"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.clock import DAY_MS
from training.metrics import (
    average_precision,
    brier_score,
    card_precision_at_k,
    expected_calibration_error,
    known_frauds_left_out,
    log_loss,
    reliability,
    roc_auc,
    top_percentile,
    wilson,
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


def test_log_loss_and_brier_by_hand() -> None:
    """Two events at .8 and .4, the first a fraud: -(ln .8 + ln .6) / 2, and (.04 + .16) / 2."""
    fraud, probability = np.array([True, False]), np.array([0.8, 0.4])
    assert log_loss(fraud, probability) == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    assert brier_score(fraud, probability) == pytest.approx(0.1)
    assert math.isfinite(log_loss(fraud, np.array([0.0, 1.0])))


def test_wilson_intervals_are_those_of_the_tables() -> None:
    """10 of 50 (Newcombe 1998 style): .112 to .330; none of 10 has a lower end of 0 and an upper one above 0."""
    assert wilson(10, 50) == pytest.approx((0.1124, 0.3304), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_reliability_has_bins_of_equal_counts_with_their_intervals() -> None:
    """Three bins of two from the lowest probability up; the interval holds the rate."""
    fraud = np.array([True, False, False, False, True, True])
    probability = np.array([0.9, 0.1, 0.5, 0.2, 0.6, 0.8])
    curve = reliability(fraud, probability, bins=3)
    assert [(b.probability, b.fraud_rate, b.events) for b in curve] == [
        (pytest.approx(0.15), 0.0, 2), (pytest.approx(0.55), 0.5, 2), (pytest.approx(0.85), 1.0, 2),
    ]  # fmt: skip
    assert all(b.low <= b.fraud_rate <= b.high for b in curve)
    assert reliability(fraud[:0], probability[:0]) == []


def test_the_top_percentile_is_compared_with_its_fraud_rate() -> None:
    """Of 200 events the two most suspicious: mean probability .85, one of two a fraud."""
    probability = np.concatenate([np.full(198, 0.01), [0.8, 0.9]])
    fraud = np.zeros(200, dtype=bool)
    fraud[199] = True
    assert top_percentile(fraud, probability) == (pytest.approx(0.85), 0.5)
    assert math.isnan(top_percentile(fraud[:0], probability[:0])[0])


def test_scores_say_who_is_first_within_a_step_of_a_curve() -> None:
    """All have the same probability; the two with the highest scores are frauds, the two first events are not."""
    score = np.linspace(0.1, 0.9, 200)
    assert top_percentile(score > 0.89, np.full(200, 0.5), score) == (0.5, 1.0)
    assert top_percentile(score > 0.89, np.full(200, 0.5)) == (0.5, 0.0)
