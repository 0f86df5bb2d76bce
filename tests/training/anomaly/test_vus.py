"""VUS-PR against cases worked out by hand, reference values of two other programs, and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.anomaly.series import Series, runs_of
from training.anomaly.vus import period, range_auc_pr, tsbad_vus_pr, vus_pr
from training.errors import TrainingError

Windows = list[tuple[int, int]]


def labels(rows: int, windows: Windows) -> NDArray[np.bool_]:
    label_T = np.zeros(rows, bool)
    for first, last in windows:
        label_T[first : last + 1] = True
    return label_T


def alarmed_in_order(rows: int, first: list[int]) -> NDArray[np.float64]:
    """Scores that put these rows first, and the others behind them."""
    score_T = -np.arange(rows, dtype=np.float64)
    score_T[first] = np.arange(len(first), 0, -1)
    return score_T


def test_a_detection_beside_the_anomaly_by_hand() -> None:
    """Row 2 of 6 is anomalous; row 3 is alarmed before it.

    Buffers 0 and 1 reach no row: row 3 finds nothing, then recall 1 at precision 1/2. Buffer 2 gives rows 1 and 3 a
    label of r = √(1 - 1/2). Row 3: found r of 1 + r/2, precision r. Rows 3 and 2: found 1 + r of 1 + r/2, which is
    recall 1, at precision (1 + r)/2.
    """
    label_T, score_T = labels(6, [(2, 2)]), alarmed_in_order(6, [3, 2])
    r = math.sqrt(0.5)
    first = r / (1 + r / 2)
    area = first * r + (1 - first) * (1 + r) / 2
    assert range_auc_pr(label_T, score_T, 0, thresholds=6) == pytest.approx(0.5)
    assert range_auc_pr(label_T, score_T, 1, thresholds=6) == pytest.approx(0.5)
    assert range_auc_pr(label_T, score_T, 2, thresholds=6) == pytest.approx(area)
    assert vus_pr(label_T, score_T, 2, thresholds=6) == pytest.approx((0.5 + 0.5 + area) / 3)


def test_anomalies_of_which_no_row_is_alarmed_weigh_twice() -> None:
    """Rows 1 and 8 of 10; alarmed are 1, 5, 8. Recall 1/2 of one of two anomalies: 1/4 at precision 1; row 5 adds
    nothing; then the rest of 1 at precision 2/3."""
    label_T, score_T = labels(10, [(1, 1), (8, 8)]), alarmed_in_order(10, [1, 5, 8])
    assert range_auc_pr(label_T, score_T, 0, thresholds=10) == pytest.approx(1 / 4 + 3 / 4 * 2 / 3)


def test_buffers_that_meet_are_one_anomaly() -> None:
    """Rows 1 and 4 of 8; alarmed are 1, 7, 4. Buffer 2 keeps them apart (rows 0 to 2 and 3 to 5), buffer 4 does not
    (-1 to 3 and 2 to 6), so that row 1 has found all of the one anomaly: recall is 1/2, not 1/4.

    Neither alarms a row of a buffer before all anomalous rows are: row 7 lies 3 behind row 4. So the areas are
    1/4 + 3/4 · 2/3 and 1/2 + 1/2 · 2/3.
    """
    label_T, score_T = labels(8, [(1, 1), (4, 4)]), alarmed_in_order(8, [1, 7, 4])
    assert range_auc_pr(label_T, score_T, 2, thresholds=8) == pytest.approx(1 / 4 + 3 / 4 * 2 / 3)
    assert range_auc_pr(label_T, score_T, 4, thresholds=8) == pytest.approx(1 / 2 + 1 / 2 * 2 / 3)


@pytest.mark.parametrize(
    ("rows", "windows", "longest", "reference"),
    [
        (120, [(30, 41)], 10, 0.5978576544009437),
        (120, [(30, 41), (50, 50), (90, 99)], 24, 0.7209489594821544),
        (300, [(0, 7), (100, 130), (140, 149), (290, 299)], 33, 0.6171931366270342),
    ],
)
def test_reference_values(rows: int, windows: Windows, longest: int, reference: float) -> None:
    """What TSB-AD 1.5 (`generate_curve`, 250 thresholds) and vus 0.0.6 both give for these scores."""
    label_T, t = labels(rows, windows), np.arange(rows)
    score_T = ((t * t * 37) % 101) / 101 + 0.3 * label_T
    assert vus_pr(label_T, score_T, longest) == pytest.approx(reference, abs=1e-12)


T600 = np.arange(600)


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        (np.sin(2 * np.pi * T600 / 24), 24),
        (np.sin(2 * np.pi * T600 / 60) + 0.8 * np.cos(2 * np.pi * T600 / 17), 119),
        (((T600 // 7) % 5).astype(float), 35),
        (((T600 % 48) * (T600 % 7)).astype(float), 49),
        (np.sin(2 * np.pi * T600 / 350), 125),  # too long a period
        (np.sin(2 * np.pi * T600 / 4), 125),  # too short a one
        (T600.astype(float), 125),  # no peak
    ],
)
def test_reference_periods(values: NDArray[np.float64], reference: int) -> None:
    """What TSB-AD 1.5 (`find_length_rank` of rank 1) gives for these series."""
    assert period(values) == reference


def test_a_constant_or_very_short_series_has_no_period() -> None:
    assert period(np.full(500, 0.1)) == 125
    assert period(np.array([0.0, 1.0, 0.0])) == 125
    assert period(np.zeros(0)) == 125


def test_the_period_comes_from_the_first_rows() -> None:
    """A period that changes from 24 to 40 after 20,000 rows."""
    t = np.arange(60_000)
    assert period(np.where(t < 20_000, np.sin(2 * np.pi * t / 24), np.sin(2 * np.pi * t / 40))) == 24


def naive(label_T: NDArray[np.bool_], score_T: NDArray[np.float64], longest: int, thresholds: int) -> float:
    """Each buffer and threshold by itself, row by row, as the module's docstring says it."""
    rows, anomalies = len(label_T), runs_of(label_T).tolist()
    falling = sorted(score_T.tolist(), reverse=True)
    areas = []
    for buffer in range(longest + 1):
        half, label = buffer // 2, [0.0] * rows
        for first, last in anomalies:
            for t in range(rows):
                away = max(first - t, t - last, 0)
                label[t] += 1.0 if away == 0 else math.sqrt(1 - away / buffer) if away <= half else 0.0
        label = [min(x, 1.0) for x in label]
        merged: list[list[int]] = []
        for first, last in anomalies:
            if merged and merged[-1][1] >= first - half:
                merged[-1][1] = last + half
            else:
                merged.append([first - half, last + half])
        area, before = 0.0, 0.0
        for k in range(thresholds):
            alarmed = [t for t in range(rows) if score_T[t] >= falling[int(k * (rows - 1) / (thresholds - 1))]]
            found = sum(label[t] for t in alarmed)
            possible = int(label_T.sum()) + sum(label[t] for t in alarmed if not label_T[t]) / 2
            exists = sum(any(a <= t <= b for t in alarmed) for a, b in merged) / len(merged)
            recall = min(found / possible, 1.0) * exists
            area += (recall - before) * found / len(alarmed)
            before = recall
        areas.append(area)
    return sum(areas) / len(areas)


@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.sampled_from([2, 5, 9]))
def test_the_surface_is_that_of_a_naive_loop(seed: int, longest: int, thresholds: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(random.integers(8, 40))
    label_T = random.random(rows) < random.choice([0.05, 0.3, 0.9])
    label_T[int(random.integers(rows))] = True
    score_T = np.round(random.random(rows), 1) if seed % 2 else random.random(rows)
    expected = naive(label_T, score_T, longest, thresholds)
    assert vus_pr(label_T, score_T, longest, thresholds) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_only_the_order_of_scores_counts(seed: int) -> None:
    random = np.random.default_rng(seed)
    label_T, score_T = labels(50, [(10, 14), (40, 41)]), random.random(50)
    assert vus_pr(label_T, 3.0 * score_T - 7.0, 8) == pytest.approx(vus_pr(label_T, score_T, 8), abs=1e-12)


def test_scores_that_are_the_labels_are_perfect_without_a_buffer_and_forgiven_little_with_one() -> None:
    """A buffer's rows, alarmed last, are no longer missing once all anomalous rows are found."""
    label_T = labels(100, [(20, 39), (70, 79)])
    assert range_auc_pr(label_T, label_T.astype(float), 0) == pytest.approx(1.0)
    assert vus_pr(label_T, label_T.astype(float), 20) == pytest.approx(1.0)
    assert vus_pr(label_T, 1.0 - label_T, 20) < 0.5


def test_a_whole_series() -> None:
    """All rows count, those of the prefix too, and the first channel's period of 24 is the longest buffer."""
    rows = 400
    t = np.arange(rows)
    values_TC = np.column_stack([np.sin(2 * np.pi * t / 24), np.sin(2 * np.pi * t / 50)])
    label_T = labels(rows, [(300, 310)])
    score_T = ((t * t * 37) % 101) / 101
    series = Series("a", "g", ("x", "y"), values_TC, t, label_T, 100, runs_of(label_T))
    found = tsbad_vus_pr(series, score_T)
    assert found == vus_pr(label_T, score_T, 24)
    assert found != pytest.approx(vus_pr(label_T[100:], score_T[100:], 24))
    assert found != pytest.approx(vus_pr(label_T, score_T, 50))


def test_bad_input_is_named() -> None:
    label_T, score_T = labels(5, [(2, 2)]), np.arange(5.0)
    assert math.isnan(vus_pr(labels(5, []), score_T, 3))
    assert math.isnan(range_auc_pr(labels(5, []), score_T, 3))
    with pytest.raises(TrainingError, match=r"scores of \(4,\): expected the same rows"):
        vus_pr(label_T, score_T[1:], 3)
    with pytest.raises(TrainingError, match=r"score of row 4 = inf"):
        vus_pr(label_T, np.append(score_T[:4], np.inf), 3)
    with pytest.raises(TrainingError, match="buffer -1, 250 thresholds"):
        vus_pr(label_T, score_T, -1)
    with pytest.raises(TrainingError, match="1 values are missing"):
        period(np.array([0.0, np.nan, 1.0]))
