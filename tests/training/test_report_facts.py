"""The numbers behind the figures: against scikit-learn, by hand, and at the edges where data says nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from models.clock import DAY_MS
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from training.bootstrap import ap_interval, mean_interval, weighted_ap
from training.drift import LARGE, SOME, drift, stability_index
from training.report_facts import by_deciles, by_values, days_of, money_curve, precision_recall, segments


def test_average_precision_is_that_of_sklearn_also_with_ties_and_weights() -> None:
    """Events of one score count together, and a weight is so many events."""
    rng = np.random.default_rng(0)
    fraud, score = rng.random(500) < 0.1, np.round(rng.random(500), 1).astype(np.float32)
    weight = rng.integers(1, 5, 500).astype(np.float64)
    assert ap_interval(fraud, score, ["c"] * 500).value == pytest.approx(average_precision_score(fraud, score))
    expected = average_precision_score(fraud, score, sample_weight=weight)
    assert weighted_ap(fraud, score, weight) == pytest.approx(expected)
    repeated = [np.repeat(a, weight.astype(int)) for a in (fraud, score)]
    assert weighted_ap(fraud, score, weight) == pytest.approx(average_precision_score(*repeated))


def test_intervals_draw_entities() -> None:
    """A hundred copies of ten values know no more than the ten; a mean of many entities is known well."""
    values = np.tile(np.random.default_rng(0).normal(size=10), 100)
    together = mean_interval(values, [f"c{i % 10}" for i in range(1000)])
    apart = mean_interval(values, [f"c{i}" for i in range(1000)])
    assert together.value == apart.value == pytest.approx(values.mean())
    assert together.high - together.low > 5 * (apart.high - apart.low)
    assert together.low < together.value < together.high


def test_what_the_data_does_not_say_is_nan() -> None:
    """No fraud: no value. One: no interval. No event: nothing."""
    score = np.array([0.9, 0.1], dtype=np.float32)
    none = ap_interval(np.array([False, False]), score, ["a", "b"])
    assert math.isnan(none.value)
    one = ap_interval(np.array([True, False]), score, ["a", "b"])
    assert one.value == 1.0
    assert math.isnan(one.low)
    assert math.isnan(mean_interval(np.empty(0), []).value)


def test_the_curve_passes_through_the_threshold() -> None:
    """By hand: three alerts of which two are frauds, of three."""
    fraud, score = np.array([1, 0, 1, 0, 1], dtype=bool), np.array([0.9, 0.8, 0.7, 0.6, 0.5], dtype=np.float32)
    curve = precision_recall(fraud, score, 0.7)
    assert curve.at == pytest.approx((2 / 3, 2 / 3))
    np.testing.assert_allclose(curve.x, [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.y, [1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])
    assert precision_recall(fraud, score, 2.0).at is None
    assert len(precision_recall(~fraud & fraud, score, 0.5).x) == 0


def test_money_is_summed_over_frauds_alone() -> None:
    """Legitimate events are worth nothing here, nor is a fraud without an amount."""
    amount, fraud = np.array([10.0, 500.0, 30.0, np.nan, 60.0]), np.array([1, 0, 1, 1, 1], dtype=bool)
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5], dtype=np.float32)
    money = money_curve(amount, fraud, score, 0.7, 0.9, days=2)
    assert (money.total, money.caught, money.at_budget, money.missing) == (100.0, 40.0, 10.0, 1)
    assert money.share(money.caught) == 0.4
    assert money.curve.at == (1.5, 0.4)
    assert money.curve.y[-1] == 1.0
    nothing = money_curve(amount, ~fraud & fraud, score, 0.7, 0.9, days=2)
    assert math.isnan(nothing.share(nothing.caught))


def test_days_without_an_alert_are_days() -> None:
    """Of four days the third has none, and the last one event only."""
    time = np.array([0, 1, DAY_MS, 3 * DAY_MS]) + 5 * DAY_MS
    alert, fraud = np.array([1, 1, 0, 1], dtype=bool), np.array([1, 0, 1, 0], dtype=bool)
    found = [(d.start_ms // DAY_MS, d.alerts, d.hits) for d in days_of(time, alert, fraud)]
    assert found == [(5, 2, 1), (6, 0, 0), (7, 0, 0), (8, 1, 0)]


def test_segments_take_every_event_once() -> None:
    """Frequent values alone, the others and the missing together; deciles of a number with many equal values."""
    values = [*["a"] * 50, *["b"] * 30, *[f"rare {i}" for i in range(40)], None]
    names, place = by_values(values)
    assert names[:2] == ["a", "b"]
    assert names[-2:] == ["(others)", "(missing)"]
    assert np.bincount(place).tolist() == [50, 30, *[1] * 8, 32, 1]
    amounts = np.concatenate([np.zeros(500), np.linspace(1, 100, 500), [np.nan] * 3])
    names, place = by_deciles(amounts)
    assert len(names) == len(np.bincount(place))
    assert int(np.bincount(place).sum()) == 1003
    assert names[-1] == "(missing)"
    assert by_deciles(np.full(4, np.nan))[0] == ["(missing)"]
    assert by_deciles(np.full(4, 7.0))[0] == ["7"]
    fraud = np.zeros(len(values), dtype=bool)
    fraud[:5] = True
    found = segments(*by_values(values), fraud, np.arange(len(values), dtype=np.float32), ["c"] * len(values))
    assert [s.frauds for s in found][:2] == [5, 0]
    assert math.isnan(found[1].ap.value)


def test_the_index_is_that_of_the_definition() -> None:
    """By hand for two bins; an empty bin does not make it infinite; the same counts give 0."""
    index, by_chance = stability_index(np.array([50, 50]), np.array([80, 20]))
    assert index == pytest.approx(0.3 * math.log(1.6) - 0.3 * math.log(0.4))
    assert by_chance == pytest.approx((1 / 100 + 1 / 100) * 3.841, rel=1e-3)
    assert stability_index(np.array([5, 5]), np.array([5, 5]))[0] == 0.0
    assert math.isfinite(stability_index(np.array([10, 0]), np.array([0, 10]))[0])


def windows(rng: np.random.Generator, rows: int, moved: float) -> Encoded:
    """x: a number that moves, one that does not, a flag; a category; a context feature; verdicts of one profile."""
    x_BLF = np.stack([rng.normal(moved, 1, rows), rng.normal(size=rows), rng.random(rows) < 0.2], axis=1)
    verdicts = np.zeros((rows, 1, 2, len(VERDICT_FEATURES)), dtype=np.float32)
    verdicts[:, 0, 1, 0] = rng.random(rows) < 0.5
    rate_BC = np.where(rng.random((rows, 1)) < 0.7, 0, rng.random((rows, 1)))
    return Encoded(
        x_BLF[:, None].astype(np.float32), rng.integers(0, 5, (rows, 1, 1)).astype(np.int32),
        np.ones((rows, 1), dtype=bool), rate_BC.astype(np.float32), verdicts,
    )  # fmt: skip


def test_drift_is_found_where_it_is_and_nowhere_else() -> None:
    """An input that moved by a deviation stands first; the others stay within what chance gives."""
    rng = np.random.default_rng(3)
    inputs = InputSpec(("moves", "stays", "flag"), (("kind", 5),), ("rate.1d",), 1, ("shop",), 2)
    found = drift(inputs, windows(rng, 4000, 0.0), windows(rng, 4000, 1.0))
    assert {d.name for d in found} == {"moves", "stays", "flag", "kind", "rate.1d", "shop.newest_verdicts",
                                       "shop.newest_frauds"}  # fmt: skip
    assert found[0].name == "moves"
    assert found[0].index > LARGE
    assert found[0].judgement == "large"
    assert all(d.index < SOME and d.judgement == "stable" for d in found[1:])
    assert all(d.index < 3 * d.by_chance for d in found[1:] if d.name != "shop.newest_frauds")
    for d in found:
        assert len(d.labels) == len(d.reference) == len(d.now)
        assert sum(d.reference) == pytest.approx(1.0)
        assert sum(d.now) == pytest.approx(1.0)
    rate = next(d for d in found if d.name == "rate.1d")
    assert rate.reference[0] == pytest.approx(0.7, abs=0.03)  # the many zeros stand alone
