"""Calibration curves fitted to scores that are wrong in known ways."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.calibrate import MIN_FRAUDS, calibrate, cross_calibrated, fit_calibration, isotonic
from training.metrics import expected_calibration_error, log_loss, top_percentile

Scored = tuple[NDArray[np.float32], NDArray[np.bool_]]


def sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-z)))


def scored(events: int, seed: int, slope: float = 1.0, offset: float = 0.0) -> Scored:
    """Events of which 2 % are fraud; the score's logit is `slope` times the true one, and `offset` above it."""
    rng = np.random.default_rng(seed)
    true_N = rng.normal(-6.0, 2.0, events)
    return sigmoid(slope * true_N + offset).astype(np.float32), rng.random(events) < sigmoid(true_N)


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 3.0), (2.0, 0.0), (0.5, -1.0)])
def test_a_shifted_or_stretched_score_becomes_a_probability(slope: float, offset: float) -> None:
    """On other events ECE is at most .01 and the top percentile within 10 % of its fraud rate."""
    curve = fit_calibration(*scored(60_000, 0, slope, offset))
    score_N, fraud_N = scored(400_000, 1, slope, offset)
    assert expected_calibration_error(fraud_N, score_N) > 0.005
    probability_N = curve.apply(score_N)
    assert expected_calibration_error(fraud_N, probability_N) < 0.01
    mean, rate = top_percentile(fraud_N, probability_N)
    assert mean == pytest.approx(rate, rel=0.1)


def test_few_frauds_get_the_stiffest_curve() -> None:
    """Forty frauds cannot show that a straight logit is wrong; its loss on others is near that of the truth."""
    score_N, fraud_N = scored(6_000, 2, 1.5)
    assert 20 < fraud_N.sum() < 120
    found = calibrate(score_N, fraud_N)
    assert found.family == "platt"
    assert set(found.log_loss) == {"platt", "beta", "isotonic"}
    fresh_score_N, fresh_N = scored(200_000, 3, 1.5)
    truth = scored(200_000, 3)[0]
    assert log_loss(fresh_N, found.curve.apply(fresh_score_N)) < 1.05 * log_loss(fresh_N, truth)


def test_a_shape_no_sigmoid_has_gets_steps() -> None:
    """Rates that jump once, with frauds enough to see it: isotonic has the lower loss and is taken."""
    rng = np.random.default_rng(4)
    score_N = rng.random(40_000).astype(np.float32)
    fraud_N = rng.random(40_000) < np.where(score_N > 0.9, 0.4, 0.01)
    found = calibrate(score_N, fraud_N)
    assert found.family == "isotonic"
    assert found.curve.apply(np.array([0.2, 0.99], np.float32)).tolist() == pytest.approx([0.01, 0.4], abs=0.03)


def test_every_isotonic_step_holds_enough_frauds() -> None:
    """The top step of plain isotonic regression is often one fraud with probability one; here it is a rate."""
    score_N, fraud_N = scored(30_000, 5)
    curve = isotonic(score_N, fraud_N)
    probability_N = curve.apply(score_N)
    assert (np.diff(curve.apply(np.sort(score_N))) >= 0).all()
    for probability in np.unique(probability_N)[1:]:
        step = probability_N == probability
        if step.sum() > 1:  # one event may lie between two steps
            assert fraud_N[step].sum() >= MIN_FRAUDS
    assert probability_N.max() < 0.99


def test_scores_of_zero_and_one_and_of_one_class_are_no_trouble() -> None:
    """Curves are finite, monotone and never certain, whatever the scores; without a fraud they are constant."""
    score_N = np.array([0.0, 0.0, 1.0, 1.0] * 30, np.float32)
    fraud_N = np.array([False, False, False, True] * 30)
    for family in ("platt", "beta", "isotonic"):
        curve = calibrate(score_N, fraud_N, (family,)).curve
        low, high = curve.apply(np.array([0.0, 1.0], np.float32)).tolist()
        assert 0 <= low < 0.1
        assert high == pytest.approx(0.5, abs=0.06)
    none = calibrate(score_N, np.zeros(120, dtype=bool))
    assert (none.family, len(none.curve.scores)) == ("constant", 1)
    assert calibrate(score_N, np.ones(120, dtype=bool)).curve.probabilities[0] < 1
    assert calibrate(score_N[:3], np.array([True, False, True])).family == "platt"


def test_a_reversed_score_is_not_turned_round() -> None:
    """A detector worse than chance gets the base rate, as the curve must not fall."""
    score_N, fraud_N = scored(20_000, 6)
    curve = fit_calibration(1 - score_N, fraud_N)
    assert curve.apply(1 - score_N) == pytest.approx(fraud_N.mean(), rel=0.1)


def test_wrong_scores_and_families_are_refused() -> None:
    """The message says what was expected."""
    fraud = np.array([True, False])
    with pytest.raises(ValueError, match=r"within \[0, 1\]"):
        calibrate(np.array([0.1, 1.5], np.float32), fraud)
    with pytest.raises(ValueError, match="0 scores"):
        calibrate(np.array([], np.float32), fraud[:0])
    with pytest.raises(ValueError, match="some of"):
        calibrate(np.array([0.1, 0.5], np.float32), fraud, ("spline",))


def test_cross_calibrated_probabilities_come_from_other_events() -> None:
    """A curve fitted on its own labels would call pure noise informative; across halves it is the base rate."""
    rng = np.random.default_rng(7)
    score_N, fraud_N = rng.random(4000).astype(np.float32), rng.random(4000) < 0.05
    probability_N = cross_calibrated(score_N, fraud_N)
    assert log_loss(fraud_N, probability_N) == pytest.approx(log_loss(fraud_N, np.full(4000, 0.05)), rel=0.02)
