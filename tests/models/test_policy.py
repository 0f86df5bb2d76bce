"""Policy: thresholds keep to their budget, and alerts have lasting names."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.policy import alert_id, decide, threshold_for_budget

SCORES = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32))


@given(scores=SCORES, days=st.floats(0.5, 30), alerts_per_day=st.floats(0, 5))
def test_the_budget_is_never_exceeded_and_used_as_far_as_ties_allow(scores, days, alerts_per_day):
    """At the threshold the alerts fit the budget; one distinct score lower they would not."""
    threshold = threshold_for_budget(scores, days, alerts_per_day)
    budget = days * alerts_per_day
    alerts = int(decide(scores, threshold).sum())
    assert alerts <= budget
    quiet = scores[~decide(scores, threshold)]
    if len(quiet):
        assert (scores >= quiet.max()).sum() > int(budget)


def test_threshold_by_hand():
    """Ten events in two days, three alerts a day: the six highest."""
    scores = np.arange(10, dtype=np.float32) / 10
    assert threshold_for_budget(scores, days=2, alerts_per_day=3) == pytest.approx(0.4)


def test_ties_at_the_border_are_left_out_together():
    """Two alerts fit, but second and third place tie: only the first is one."""
    scores = np.array([0.5, 0.9, 0.5, 0.1], np.float32)
    assert decide(scores, threshold_for_budget(scores, 1, 2)).tolist() == [False, True, False, False]


def test_a_budget_of_nothing_alerts_on_nothing():
    """Even when every score is 1."""
    ones = np.ones(4, np.float32)
    assert not decide(ones, threshold_for_budget(ones, 1, 0)).any()
    assert not decide(ones, threshold_for_budget(ones, 1, 3)).any()


@pytest.mark.parametrize(
    ("scores", "days", "alerts"),
    [([], 1, 1), ([np.nan], 1, 1), ([0.1], 0, 1), ([0.1], float("nan"), 1), ([0.1], 1, -1)],
)
def test_senseless_budgets_are_refused(scores, days, alerts):
    """No scores, NaN, no days, negative budgets."""
    with pytest.raises(ValueError, match="threshold_for_budget"):
        threshold_for_budget(np.array(scores, np.float32), days, alerts)


def test_the_score_at_the_threshold_is_an_alert_after_a_json_round_trip():
    """A threshold is a float32 score; written as a Python float and read back it still decides alike."""
    scores = np.array([0.1, 0.3, 0.7], np.float32)
    threshold = float(repr(threshold_for_budget(scores, 1, 2)))
    assert decide(scores, threshold).tolist() == [False, True, True]


def test_alert_ids_last():
    """The id of an alert is the same on every machine, in every run and version: consumers keep them."""
    assert alert_id("payments", "t-1", "gru") == "41845438c82f0cf04c19510769f80a86"


def test_alert_ids_tell_pipelines_events_and_detectors_apart():
    """No two different triples share an id, however their parts run together."""
    triples = [
        ("a", "bc", "d"),
        ("ab", "c", "d"),
        ("a", "b", "cd"),
        ("a", "bc", "e"),
        ("d", "bc", "a"),
        ("a", "bcd", ""),
    ]
    assert len({alert_id(*t) for t in triples}) == len(triples)
    assert all(len(alert_id(*t)) == 32 for t in triples)
