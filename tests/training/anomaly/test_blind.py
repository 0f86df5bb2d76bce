"""Random prefixes: normal rows only, no hint of a position, and means over draws worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.anomaly.blind import blind_figures, draw_blind, score_blind
from training.anomaly.points import Confusion
from training.anomaly.series import Series, runs_of
from training.errors import TrainingError


def experiment(name: str, rows: int = 700, first: int = 400, last: int = 599) -> Series:
    """Values are the numbers of the rows, so that a cut shows."""
    label_T = (np.arange(rows) >= first) & (np.arange(rows) <= last)
    values_TC = np.column_stack([np.arange(rows), -np.arange(rows)]).astype(np.float64)
    time_T = 5000 + np.arange(rows, dtype=np.int64) * 1000
    return Series(name, "valve1", ("x", "y"), values_TC, time_T, label_T, 100, runs_of(label_T))


@given(st.integers(0, 2**31), st.booleans())
def test_prefixes_are_normal_and_what_follows_is_whole(seed: int, from_first: bool) -> None:
    """At least 200 normal rows, 30 more before the anomaly, and every row of the file behind the cut, in order."""
    whole = experiment("valve1/0")
    (cut,) = draw_blind([whole], seed, from_first=from_first)
    begin = len(whole) - len(cut)
    assert 200 <= cut.prefix <= 370
    assert not cut.label_T[: cut.prefix + 30].any()
    assert begin == 0 or not from_first
    assert cut.values_TC.tolist() == whole.values_TC[begin:].tolist()
    assert cut.time_T.tolist() == whole.time_T[begin:].tolist()
    assert cut.windows_W2.tolist() == [[400 - begin, 599 - begin]]
    assert cut.label_T[cut.scored].sum() == 200


def test_neither_row_nor_distance_tells_where_the_anomaly_is() -> None:
    """Over 40 draws of one experiment its first row and its distance from the prefix both spread over the range."""
    draws = [draw_blind([experiment("valve1/0")], seed)[0] for seed in range(40)]
    firsts = [int(draw.label_T.argmax()) for draw in draws]
    distances = [int(draw.label_T.argmax()) - draw.prefix for draw in draws]
    assert min(firsts) < 270
    assert max(firsts) > 370
    assert min(distances) < 60
    assert max(distances) > 170


def test_draws_differ_between_experiments_and_seeds_but_not_between_runs() -> None:
    both = [experiment("valve1/0"), experiment("valve1/1")]
    once, again, other = (draw_blind(both, seed) for seed in (3, 3, 4))
    assert [len(s) for s in once] == [len(s) for s in again]
    assert [s.prefix for s in once] == [s.prefix for s in again]
    assert len({(len(s), s.prefix) for s in (*once, *other)}) == 4
    (alone,) = draw_blind(both[1:], 3)
    assert (len(alone), alone.prefix) == (len(once[1]), once[1].prefix)


def test_runs_without_an_anomaly_are_left_out() -> None:
    free = experiment("anomaly-free/anomaly-free", first=700, last=800)
    assert [series.name for series in draw_blind([free, experiment("valve1/0")], 0)] == ["valve1/0"]


def test_an_anomaly_that_begins_too_early_is_named() -> None:
    with pytest.raises(TrainingError, match=r"valve1/0: first anomaly at row 229: expected 200 \+ 30 rows before"):
        draw_blind([experiment("valve1/0", first=229)], 0)
    (only,) = draw_blind([experiment("valve1/0", first=230)], 0)
    assert (only.prefix, len(only)) == (200, 700)


def scored(label: list[int], score: list[float], prefix: int) -> tuple[Series, np.ndarray]:
    label_T = np.array(label, bool)
    rows = len(label)
    series = Series("valve1/0", "g", ("x",), np.zeros((rows, 1)), np.arange(rows), label_T, prefix, runs_of(label_T))
    return series, np.array(score)


DRAWS = [
    # rows behind the prefixes: anomalous .9 and .2; normal .6, .1 and .1
    [scored([0, 0, 1, 1, 0], [1.0, 0.6, 0.9, 0.2, 0.1], 1), scored([0, 0], [1.0, 0.1], 1)],
    # anomalous .8; normal .7
    [scored([0, 0, 1], [1.0, 0.7, 0.8], 1)],
]


def test_figures_are_means_over_draws_by_hand() -> None:
    """At .6: first draw TP 1, FP 1, FN 1, TN 2: F1 2/4, FAR 1 of 3, MAR 1 of 2. Second: TP 1, FP 1: F1 2/3, FAR 1 of
    1, MAR 0. Rows of the prefixes, which reach it, are not counted."""
    found = blind_figures(DRAWS, 0.6)
    assert found.draws == (Confusion(1, 1, 1, 2), Confusion(1, 1, 0, 0))
    assert found.f1 == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found.false_alarm_rate == pytest.approx((100 / 3 + 100) / 2)
    assert found.missed_alarm_rate == pytest.approx((50 + 0) / 2)
    assert found.spread == pytest.approx((2 / 3 - 1 / 2) / 2)


def test_the_best_threshold_is_one_for_all_draws() -> None:
    """At .8: F1 2/3 and 1. At .9 the second draw finds nothing, at .7 the first is as good, the second worse."""
    found = blind_figures(DRAWS)
    assert found.threshold == 0.8
    assert found.f1 == pytest.approx((2 / 3 + 1) / 2)


@given(st.integers(0, 2**32 - 1))
def test_the_best_threshold_is_that_of_trying_all(seed: int) -> None:
    random = np.random.default_rng(seed)
    draws = []
    for _ in range(3):
        label = [0, *(random.random(12) < 0.4).astype(int).tolist(), 1]
        draws.append([scored(label, np.round(random.random(14), 1).tolist(), 1)])
    tried = [blind_figures(draws, threshold).f1 for threshold in np.unique([draw[0][1][1:] for draw in draws])]
    assert blind_figures(draws).f1 == pytest.approx(max(tried))


def test_a_detector_is_run_on_each_draw() -> None:
    """One that alarms where the file's own row number is anomalous is perfect, wherever the cuts are."""
    both = [experiment("valve1/0"), experiment("valve1/1", first=500)]

    def knows(series: Series) -> np.ndarray:
        return np.where(series.label_T, 0.75, 0.25)

    draws = score_blind(both, knows, range(3))
    found = blind_figures(draws)
    assert (len(draws), found.threshold) == (3, 0.75)
    assert (found.f1, found.false_alarm_rate, found.missed_alarm_rate, found.spread) == (1.0, 0.0, 0.0, 0.0)
    assert all(count.true_positives == 200 + 100 for count in found.draws)


def test_bad_input_is_named() -> None:
    series, score_T = DRAWS[1][0]
    with pytest.raises(TrainingError, match=r"valve1/0: scores of shape \(2,\): expected \(3,\)"):
        blind_figures([[(series, score_T[1:])]])
    with pytest.raises(TrainingError, match="valve1/0: a score is not finite"):
        blind_figures([[(series, score_T * np.nan)]])
    with pytest.raises(TrainingError, match="0 draws"):
        blind_figures([])
