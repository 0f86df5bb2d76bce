"""Calibration curves: what they give, and which are refused."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibration import Calibration


def test_between_knots_the_curve_is_straight_and_outside_flat():
    """Linear between knots; below the first and above the last the nearest knot's probability."""
    curve = Calibration((0.2, 0.4, 0.8), (0.1, 0.1, 0.5))
    got = curve.apply(np.array([0.0, 0.2, 0.3, 0.6, 0.8, 1.0], np.float32))
    np.testing.assert_allclose(got, [0.1, 0.1, 0.1, 0.3, 0.5, 0.5], atol=1e-6)
    assert got.dtype == np.float32


def test_identity_changes_nothing():
    """Without a fitted curve the probability is the score."""
    scores = np.linspace(0, 1, 17, dtype=np.float32)
    np.testing.assert_array_equal(Calibration.identity().apply(scores), scores)


def test_a_single_knot_is_a_constant():
    """Isotonic regression on labels of one class gives one knot."""
    assert Calibration((0.3,), (0.01,)).apply(np.array([0.0, 1.0], np.float32)).tolist() == pytest.approx([0.01, 0.01])


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=9, unique=True).map(sorted),
    data=st.data(),
)
def test_order_is_kept_and_probabilities_stay_probabilities(scores, data):
    """A higher score never gets a lower probability, whatever the knots."""
    size = len(scores)
    probabilities = sorted(data.draw(st.lists(st.floats(0, 1), min_size=size, max_size=size)))
    got = Calibration(tuple(scores), tuple(probabilities)).apply(np.linspace(0, 1, 101, dtype=np.float32))
    assert (np.diff(got) >= 0).all()
    assert got.min() >= 0
    assert got.max() <= 1


@pytest.mark.parametrize(
    ("scores", "probabilities", "message"),
    [
        ((), (), "0 scores and 0 probabilities"),
        ((0.1, 0.2), (0.5,), "2 scores and 1 probabilities"),
        ((0.2, 0.2), (0.1, 0.2), "strictly increasing"),
        ((0.2, float("nan")), (0.1, 0.2), "finite"),
        ((0.1, 0.2), (0.5, 0.4), "non-decreasing"),
        ((0.1, 0.2), (0.5, 1.1), r"within \[0, 1\]"),
        ((0.1, 0.2), (-0.1, 0.4), r"within \[0, 1\]"),
        ((0.1, 0.2), (float("nan"), 0.4), r"within \[0, 1\]"),
    ],
)
def test_a_curve_that_is_none_is_refused(scores, probabilities, message):
    """Knots out of order or out of range are an error that says what was expected."""
    with pytest.raises(ValueError, match=message):
        Calibration(scores, probabilities)


def test_using_a_curve_does_not_change_what_is_written():
    """A bundle's description is the same before and after its curve was applied."""
    curve = Calibration((0.0, 1.0), (0.0, 0.5))
    before = msgspec.json.encode(curve)
    curve.apply(np.array([0.5], np.float32))
    assert msgspec.json.encode(curve) == before == b'{"scores":[0.0,1.0],"probabilities":[0.0,0.5]}'
