"""The benchmark's scoring rule against cases worked out by hand and a naive loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.anomaly.nab import PROFILES, Profile, ScoredFile, best_threshold, nab_scores, score_at, scored
from training.anomaly.series import Series, runs_of
from training.errors import TrainingError

STANDARD = PROFILES["standard"]


def sigmoid(place: float) -> float:
    return 2.0 / (1.0 + math.exp(5.0 * place)) - 1.0


def one_file(detections: list[int], windows: list[tuple[int, int]], rows: int = 100, probation: int = 0) -> ScoredFile:
    score_T = np.zeros(rows)
    score_T[detections] = 1.0
    return ScoredFile("made up", score_T, np.array(windows, np.int64).reshape(-1, 2), probation)


def test_no_detections_are_worth_0_and_perfect_ones_100() -> None:
    windows = [(20, 29), (60, 79)]
    for profile in PROFILES.values():
        assert score_at([one_file([], windows)], profile, 0.5) == 0.0
        assert score_at([one_file([20, 60], windows)], profile, 0.5) == pytest.approx(100.0)


def test_a_detection_half_way_through_a_window() -> None:
    """Row 25 of 20..29 lies 5 of 10 rows before the end: σ(-0.5) of σ(-1). The miss is spared, too: (1 + .8597) / 2."""
    expected = 100 * (1 + sigmoid(-0.5) / sigmoid(-1.0)) / 2
    assert expected == pytest.approx(92.99, abs=0.01)
    assert score_at([one_file([25], [(20, 29)])], STANDARD, 0.5) == pytest.approx(expected)


def test_only_the_earliest_detection_of_a_window_counts() -> None:
    alone, many = one_file([22], [(20, 29)]), one_file([22, 23, 24, 29], [(20, 29)])
    assert score_at([many], STANDARD, 0.5) == pytest.approx(score_at([alone], STANDARD, 0.5))


@pytest.mark.parametrize(
    ("row", "worth"),
    [
        (10, -1.0),  # before any window
        (31, sigmoid(2 / 9)),  # two rows behind a window of ten, whose span is nine
        (38, sigmoid(1.0)),
        (90, -1.0),  # more than three widths behind
    ],
)
def test_false_positives(row: int, worth: float) -> None:
    file = one_file([20, row], [(20, 29)])
    assert score_at([file], STANDARD, 0.5) == pytest.approx(100 + 100 * 0.11 * worth / 2)
    assert score_at([file], PROFILES["low FP"], 0.5) == pytest.approx(100 + 100 * 0.22 * worth / 2)
    assert score_at([file], PROFILES["low FN"], 0.5) == pytest.approx(100 + 100 * 0.11 * worth / 3)


def test_rows_on_probation_do_not_count() -> None:
    windows = [(20, 29)]
    assert score_at([one_file([5, 20], windows, probation=15)], STANDARD, 0.5) == pytest.approx(100.0)
    in_part = score_at([one_file([20, 25], windows, probation=23)], STANDARD, 0.5)
    assert in_part == pytest.approx(score_at([one_file([25], windows)], STANDARD, 0.5))


def naive(files: list[ScoredFile], profile: Profile, threshold: float) -> float:
    """Row by row, as the paper says it."""
    raw, windows = 0.0, 0
    for file in files:
        pairs = file.windows_W2.reshape(-1, 2).tolist()
        windows += len(pairs)
        best = [-profile.miss] * len(pairs)
        for t in range(file.probation, len(file.score_T)):
            if file.score_T[t] < threshold:
                continue
            inside = [w for w, (a, b) in enumerate(pairs) if a <= t <= b]
            before = [w for w, (_, b) in enumerate(pairs) if b < t]
            if inside:
                a, b = pairs[inside[0]]
                best[inside[0]] = max(best[inside[0]], sigmoid(-(b - t + 1) / (b - a + 1)) / sigmoid(-1.0))
            elif before:
                a, b = pairs[before[-1]]
                place = (t - b) / max(b - a, 1)
                raw += profile.false_positive * (-1.0 if place > 3 else sigmoid(place))
            else:
                raw -= profile.false_positive
        raw += sum(best)
    null = -profile.miss * windows
    return 100 * (raw - null) / (windows - null)


@given(st.integers(0, 2**32 - 1))
def test_the_sweep_finds_what_trying_every_threshold_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    files = []
    for number in range(3):
        rows = int(random.integers(20, 60))
        cuts = np.sort(random.choice(rows, 4, replace=False))
        windows = np.array([[cuts[0], cuts[1]], [cuts[2], cuts[3]]])
        score_T = np.round(random.random(rows), 1)  # with ties
        files.append(ScoredFile(str(number), score_T, windows, int(random.integers(0, 10))))
    for profile in PROFILES.values():
        thresholds = np.unique(np.concatenate([file.score_T for file in files]))
        scores = [naive(files, profile, threshold) for threshold in [*thresholds, 2.0]]
        found = best_threshold(files, profile)
        assert found.score == pytest.approx(max(scores), abs=1e-9)
        assert score_at(files, profile, found.threshold) == pytest.approx(found.score, abs=1e-9)
        assert [score_at(files, profile, threshold) for threshold in thresholds] == pytest.approx(scores[:-1], abs=1e-9)


def test_bad_input_is_named() -> None:
    with pytest.raises(TrainingError, match="made up: windows"):
        one_file([], [(20, 29), (25, 40)])
    with pytest.raises(TrainingError, match="made up: windows"):
        one_file([], [(90, 100)])
    with pytest.raises(TrainingError, match="a score is not finite"):
        ScoredFile("x", np.array([0.0, np.nan]), np.zeros((0, 2), np.int64), 0)
    with pytest.raises(TrainingError, match="expected at least one window"):
        best_threshold([one_file([], [])], STANDARD)


@pytest.mark.parametrize(
    ("rows", "windows", "detections", "standard", "low_fp"),
    [
        # realAdExchange/exchange-3_cpm_results.csv: 77 rows before the end of 153, counting both
        (1538, [(1045, 1197)], [1197 - 76], 0.862098587352162, 0.862098587352162),
        # realAWSCloudwatch/ec2_cpu_utilization_5f5533.csv: one window of two missed
        (4032, [(1171, 1371), (2830, 3030)], [1371 - 60], -0.3509982435695854, -0.3509982435695854),
        # realAWSCloudwatch/ec2_cpu_utilization_ac20cd.csv: one wrong detection 23 rows behind the window
        (4032, [(3374, 3776)], [3776 - 178, 3776 + 23], 0.799495036546, 0.7838676340989654),
        # realKnownCause/rogue_agent_key_hold.csv: both windows missed, and two wrong detections far from them
        (1882, [(669, 763), (1240, 1334)], [300, 301], -2.22, -2.44),
    ],
)
def test_published_figures_of_single_files(
    rows: int, windows: list[tuple[int, int]], detections: list[int], standard: float, low_fp: float
) -> None:
    """Raw scores that the benchmark publishes of one detector (its results/twitterADVec/*_scores.csv, at 38b9ff1 and
    487c0f9). It says how many detections were right and wrong; how far they lay from the end of the window follows from
    the two figures, and comes out as whole rows, to nine digits, only because the formula is the published one."""
    file = one_file(detections, windows, rows, probation=min(750, int(0.15 * rows)))
    for profile, published in ((STANDARD, standard), (PROFILES["low FP"], low_fp)):
        null, perfect = -profile.miss * len(windows), len(windows)
        expected = 100 * (published - null) / (perfect - null)
        assert score_at([file], profile, 0.5) == pytest.approx(expected, abs=1e-9)


def test_a_series_brings_its_windows_and_probation() -> None:
    """Only the detection behind the probation counts, at the window's beginning; each profile finds it."""
    label_T = (np.arange(100) >= 20) & (np.arange(100) < 30)
    series = Series("a", "g", ("v",), np.zeros((100, 1)), np.arange(100), label_T, 0, runs_of(label_T), 15)
    score_T = np.zeros(100)
    score_T[[3, 20]] = 0.8
    results = nab_scores([scored(series, score_T)])
    assert list(results) == ["standard", "low FP", "low FN"]
    assert [result.threshold for result in results.values()] == [0.8] * 3
    assert [result.score for result in results.values()] == pytest.approx([100.0] * 3)
    with pytest.raises(TrainingError, match=r"a: scores of shape \(99,\): expected \(100,\)"):
        scored(series, score_T[1:])


def test_no_threshold_is_better_than_one_that_costs() -> None:
    """Where every row scores alike, 90 wrong detections cost more than a window earns, so nothing is detected."""
    found = best_threshold([one_file([], [(20, 29)])], STANDARD)
    assert found.score == 0.0
    assert found.threshold > 0.0
