"""Baselines read what they say they read, repeat themselves, and say what is missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from training import baselines
from training.baselines import LightGBM, flat_inputs, flat_names
from training.dataset import Part
from training.errors import TrainingError
from training.metrics import roc_auc

INPUTS = InputSpec(("amount", "gap"), (("channel", 8),), ("history", "merchant.frauds.7d"), 3, ("merchant",), 10)


def encoded(count: int, seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    return Encoded(
        rng.normal(size=(count, 3, 2)).astype(np.float32), rng.integers(1, 8, (count, 3, 1)).astype(np.int32),
        np.ones((count, 3), bool), rng.normal(size=(count, 2)).astype(np.float32),
        (rng.random((count, 1, 10, len(VERDICT_FEATURES))) < 0.5).astype(np.float32),
    )  # fmt: skip


def part(count: int, seed: int) -> Part:
    windows = encoded(count, seed)
    noise = np.random.default_rng(seed + 100).normal(size=count)
    return Part(windows, windows.x_BLF[:, -1, 0] + 0.5 * noise > 1.0, ["c"] * count, np.arange(count, dtype=np.int64))


def test_trees_read_the_current_event_and_the_newest_verdicts() -> None:
    """Columns have names, as many as there are, and each is what its name says."""
    windows, names = encoded(5), flat_names(INPUTS)
    values_BF = flat_inputs(windows)
    assert values_BF.shape == (5, len(names))
    assert len(set(names)) == len(names)
    np.testing.assert_array_equal(values_BF[:, names.index("gap")], windows.x_BLF[:, -1, 1])
    np.testing.assert_array_equal(values_BF[:, names.index("channel")], windows.codes_BLK[:, -1, 0])
    np.testing.assert_array_equal(values_BF[:, names.index("merchant.frauds.7d")], windows.context_BC[:, 1])
    fraud = VERDICT_FEATURES.index("fraud")
    np.testing.assert_array_equal(values_BF[:, names.index("merchant.1.fraud")], windows.verdicts_BJSG[:, 0, -1, fraud])
    np.testing.assert_array_equal(values_BF[:, names.index("merchant.8.fraud")], windows.verdicts_BJSG[:, 0, -8, fraud])
    counted = windows.verdicts_BJSG[:, 0, :, fraud].sum(axis=1)
    np.testing.assert_array_equal(values_BF[:, names.index("merchant.verdicts.fraud")], counted)


def test_a_pipeline_without_verdicts_has_no_columns_of_them() -> None:
    """J = 0: nothing is missing and nothing is named."""
    inputs = InputSpec(INPUTS.x, INPUTS.codes, INPUTS.context, 3)
    windows = encoded(4)
    plain = Encoded(windows.x_BLF, windows.codes_BLK, windows.mask_BL, windows.context_BC, windows.verdicts_BJSG[:, :0])
    assert flat_inputs(plain).shape == (4, len(flat_names(inputs)))


@pytest.mark.parametrize("refit", [True, False])
def test_the_same_seed_gives_the_same_scores(refit: bool) -> None:
    """A difference between two runs is one of the data; and the trees have learnt something."""
    fold: Any = SimpleNamespace(
        train=part(2000, 1), validation=part(500, 2), holdout=part(500, 3), test=part(500, 4), matured=part(3000, 5)
    )
    outcomes = [LightGBM(INPUTS, seed=3, threads=1, refit=refit)(fold) for _ in range(2)]
    np.testing.assert_array_equal(outcomes[0].score_N, outcomes[1].score_N)
    fraud_N = fold.test.fraud_N
    assert roc_auc(fraud_N, outcomes[0].score_N) > 0.9
    assert 0 <= outcomes[0].probability_N.min() <= outcomes[0].probability_N.max() < 1


def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a traceback after an hour of work."""

    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(baselines.importlib, "import_module", absent)
    with pytest.raises(TrainingError, match=r"lightgbm is not installed: expected .*\[baselines\].*--no-baselines"):
        LightGBM(INPUTS)
