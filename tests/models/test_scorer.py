"""The scorer: scores that do not depend on company, and their calibration."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import numpy as np
import pytest

from models.scorer import Scorer, load_scorer


@pytest.fixture
def scorer(make_bundle, pipeline) -> Scorer:
    return load_scorer(make_bundle().folder, pipeline)


@pytest.mark.parametrize("seed", range(4))
def test_a_score_is_bitwise_independent_of_its_batch(scorer, make_windows, seed):
    """Whatever micro-batches events come in, and in whatever order, each gets the same bits."""
    rng = np.random.default_rng(seed)
    encoded = make_windows(333, seed=seed)
    together = scorer.score(encoded)
    order = rng.permutation(333)
    cuts = np.sort(rng.choice(np.arange(1, 333), size=int(rng.integers(1, 40)), replace=False))
    for index in np.split(order, cuts):
        alone = scorer.score(encoded.take(index))
        np.testing.assert_array_equal(alone.score_B, together.score_B[index])
        np.testing.assert_array_equal(alone.probability_B, together.probability_B[index])


def test_single_events_get_the_bits_of_the_batch(scorer, make_windows):
    """A batch of one, the usual case of a quiet stream, is no exception."""
    encoded = make_windows(90, seed=8)
    together = scorer.score(encoded).score_B
    alone = [scorer.score(encoded.take(slice(i, i + 1))).score_B[0] for i in range(90)]
    assert np.array(alone, np.float32).tobytes() == together.tobytes()


def test_scores_are_the_sigmoid_and_probabilities_its_calibration(scorer, make_windows):
    """score = sigmoid(logit); probability = the bundle's curve at the score; both float32 in [0, 1]."""
    scores = scorer.score(make_windows(70))
    curve = np.interp(scores.score_B, [0.0, 0.5, 1.0], [0.0, 0.02, 0.9])
    np.testing.assert_allclose(scores.probability_B, curve, atol=1e-6)
    assert scores.score_B.dtype == scores.probability_B.dtype == np.float32
    assert 0 <= scores.score_B.min() < scores.score_B.max() <= 1


def test_no_events_give_no_scores(scorer, make_windows):
    """An empty batch is a batch."""
    scores = scorer.score(make_windows(0))
    assert (len(scores.score_B), len(scores.probability_B)) == (0, 0)
    assert scorer.explain(make_windows(0), 3) == []


def test_scoring_changes_neither_input_nor_model(scorer, make_windows):
    """A detector is a pure function: explaining and scoring leave windows and weights as they were."""
    encoded = make_windows(20)
    copy = deepcopy(encoded)
    weights = {name: array.copy() for name, array in scorer.bundle.weights.items()}
    first = scorer.score(encoded).score_B
    scorer.explain(encoded, 3)
    np.testing.assert_array_equal(scorer.score(encoded).score_B, first)
    for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
        np.testing.assert_array_equal(getattr(encoded, name), getattr(copy, name))
    assert all(np.array_equal(array, weights[name]) for name, array in scorer.bundle.weights.items())


def test_a_reloaded_bundle_gives_the_same_bits(scorer, make_windows, pipeline):
    """A restart or a swap to the same version changes no score."""
    again = load_scorer(scorer.bundle.folder, pipeline, scorer.engine)
    encoded = make_windows(100, seed=2)
    np.testing.assert_array_equal(again.score(encoded).score_B, scorer.score(encoded).score_B)
    assert (again.version, again.threshold) == (scorer.version, 0.75)


def test_threads_that_score_at_once_get_the_same_bits(scorer, make_windows):
    """A batch may be explained in one thread while the next is scored in another: neither sees the other's numbers."""
    parts = [make_windows(150, seed=seed) for seed in range(8)]
    expected = [scorer.score(part).score_B for part in parts]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(5):
            for scores, score_B in zip(threads.map(scorer.score, parts), expected, strict=True):
                np.testing.assert_array_equal(scores.score_B, score_B)
