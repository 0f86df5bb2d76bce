"""What a detector has to beat: boosted trees on its own inputs, and on the handbook's fifteen features.

LightGBM (Ke et al. 2017) gets what the detector gets of the current event: its features, codes and context, and the
newest verdicts, flat. XGBoost (Chen and Guestrin 2016) gets the fifteen features and exact splits; with histograms of
few bins it is no baseline to be proud of beating. Both are seeded, and choose on the same validation part, calibrate
on the same holdout and are fitted again on everything matured as detectors are. The extra `baselines` has both.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from training.calibrate import fit_calibration
from training.errors import TrainingError
from training.folds import Fold, Outcome
from training.metrics import average_precision

__all__ = ["LightGBM", "XGBoost", "flat_inputs", "flat_names"]

NEWEST = 8  # verdicts of each profile that trees read one by one; the rest are counted
PRESENT, FRAUD = VERDICT_FEATURES.index("present"), VERDICT_FEATURES.index("fraud")
Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def flat_names(inputs: InputSpec) -> list[str]:
    """Names of the columns of `flat_inputs`."""
    names = [*inputs.x, *(name for name, _ in inputs.codes), *inputs.context]
    for profile in inputs.verdicts:
        names += [f"{profile}.verdicts", f"{profile}.verdicts.fraud"]
        newest = min(NEWEST, inputs.verdict_length)
        names += [f"{profile}.{back}.{name}" for back in range(newest, 0, -1) for name in VERDICT_FEATURES]
    return names


def flat_inputs(encoded: Encoded) -> NDArray[np.float32]:
    """float32 (B, columns): the current event, its context, and of each profile with verdicts how many it has, how many
    are frauds, and the newest."""
    parts = [encoded.x_BLF[:, -1], encoded.codes_BLK[:, -1].astype(np.float32), encoded.context_BC]
    for j in range(encoded.verdicts_BJSG.shape[1]):
        verdicts_BSG = encoded.verdicts_BJSG[:, j]
        parts.append(verdicts_BSG[:, :, [PRESENT, FRAUD]].sum(axis=1))
        parts.append(verdicts_BSG[:, -NEWEST:].reshape(len(encoded), -1))
    return np.concatenate(parts, axis=1, dtype=np.float32)


class LightGBM:
    """Gradient boosted trees on the detector's inputs, stopped by the validation part's average precision."""

    name = "LightGBM, same inputs"
    ROUNDS, PATIENCE = 1000, 50

    def __init__(self, inputs: InputSpec, *, seed: int = 0, threads: int = 2, refit: bool = True) -> None:
        self.lightgbm = _import("lightgbm")
        self.inputs, self.refit = inputs, refit
        self.parameters: dict[str, Any] = {
            "objective": "binary", "metric": "average_precision", "learning_rate": 0.05, "num_leaves": 31,
            "min_data_in_leaf": 40, "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1,
            "lambda_l2": 1.0, "seed": seed, "deterministic": True, "force_row_wise": True, "num_threads": threads,
            "verbose": -1,
        }  # fmt: skip

    def __call__(self, fold: Fold) -> Outcome:
        began = time.monotonic()
        validation = self._data(flat_inputs(fold.validation.encoded), fold.validation.fraud_N)
        stop = self.lightgbm.early_stopping(self.PATIENCE, verbose=False)
        data = self._data(flat_inputs(fold.train.encoded), fold.train.fraud_N)
        booster = self.lightgbm.train(self.parameters, data, self.ROUNDS, valid_sets=[validation], callbacks=[stop])
        calibration = fit_calibration(_scores(booster, fold.holdout.encoded), fold.holdout.fraud_N)
        rounds = max(int(booster.best_iteration), 1)
        if self.refit:
            every = fold.matured
            data = self._data(flat_inputs(every.encoded), every.fraud_N)
            booster = self.lightgbm.train(self.parameters, data, rounds)
        seconds = time.monotonic() - began
        score_N = _scores(booster, fold.test.encoded)
        return Outcome(score_N, calibration.apply(score_N), seconds, {"rounds": rounds})

    def _data(self, values_NF: NDArray[np.float32], fraud_N: NDArray[np.bool_]) -> Any:
        codes = [len(self.inputs.x) + k for k in range(len(self.inputs.codes))]
        return self.lightgbm.Dataset(
            values_NF, fraud_N.astype(np.float32), feature_name=_plain(flat_names(self.inputs)),
            categorical_feature=codes, free_raw_data=True, params=self.parameters,
        )  # fmt: skip


class XGBoost:
    """Boosted trees with exact splits on features of all events of the last days before the holdouts.

    features_MF: of every event of the history, as `training.rolling` makes them. depths: the one with the best average
    precision on the validation part is taken, in each fold; a single one is not tried.
    """

    name = "XGBoost, handbook features"
    TREES, DAYS = 100, 90

    def __init__(
        self,
        features_MF: NDArray[np.float32],
        *,
        depths: tuple[int, ...] = (5,),
        seed: int = 0,
        threads: int = 2,
        refit: bool = True,
    ) -> None:
        self.xgboost = _import("xgboost")
        self.features_MF, self.depths, self.refit = features_MF, depths, refit
        self.parameters = {"n_estimators": self.TREES, "tree_method": "exact", "learning_rate": 0.1,
                           "random_state": seed, "n_jobs": threads}  # fmt: skip

    def __call__(self, fold: Fold) -> Outcome:
        began, split = time.monotonic(), fold.split
        fits = {depth: self._fit(fold, split.train_end_ms, depth) for depth in self.depths}
        valid = fold.validation
        best = max(fits, key=lambda depth: average_precision(valid.fraud_N, self._score(fits[depth], valid.row_N)))
        calibration = fit_calibration(self._score(fits[best], fold.holdout.row_N), fold.holdout.fraud_N)
        model = self._fit(fold, split.holdout_end_ms, best) if self.refit else fits[best]
        seconds = time.monotonic() - began
        score_N = self._score(model, fold.test.row_N)
        return Outcome(score_N, calibration.apply(score_N), seconds, {"depth": best})

    def _fit(self, fold: Fold, end_ms: int, depth: int) -> Any:
        row_N, fraud_N = fold.every(end_ms, self.DAYS)
        model = self.xgboost.XGBClassifier(max_depth=depth, **self.parameters)
        return model.fit(self.features_MF[row_N], fraud_N)

    def _score(self, model: Any, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.asarray(model.predict_proba(self.features_MF[row_N])[:, 1], dtype=np.float32)


def _scores(booster: Any, encoded: Encoded) -> NDArray[np.float32]:
    return np.asarray(booster.predict(flat_inputs(encoded)), dtype=np.float32)


def _plain(names: list[str]) -> list[str]:
    """LightGBM takes no names with the characters of JSON; those of a pipeline have none, so only dots change."""
    return [name.replace(".", "_") for name in names]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TrainingError(
            f"{name} is not installed: expected `pip install -c constraints.txt -e '.[baselines]'`, or --no-baselines"
        ) from error
