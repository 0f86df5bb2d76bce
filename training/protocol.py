"""The Fraud Detection Handbook's protocol (its chapters 5 to 7) on any history: test weeks, one after the other.

Each system learns from what had matured when a test week began, and scores the week before anything of it is learnt.
Customers whose fraud was known by then are left out, as analysts have no use for another alert about them. Every run
first checks, by changing the future, that neither windows nor the baselines' features know of it (`leaks`), and has
each fold decide by its own verdicts what it learns from (`folds`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.clock import to_iso
from models.pipeline.spec import Pipeline
from training.calibrate import fit_calibration
from training.errors import TrainingError
from training.evaluate import METRICS, Scored, metrics_of
from training.finetune import new_detector, write_trained
from training.fit import Recipe, fit, refit, score
from training.folds import Fold, Outcome, Plan, System, Verdicts, folds_of, keep_windows, splits_of
from training.leaks import Make, View, check_no_leaks, windows_seen
from training.metrics import known_frauds_left_out, top_percentile
from training.replay import History, replay

__all__ = ["HANDBOOK", "Neural", "run_protocol"]

# Means of the four test weeks from 2018-08-08 on the handbook's simulated transactions, as its chapters 5 to 7 have
# them: https://fraud-detection-handbook.github.io/fraud-detection-handbook/
HANDBOOK = {
    "XGBoost, chosen on validation": {"roc_auc": 0.872, "average_precision": 0.687, "card_precision_at_100": 0.302},
    "LSTM": {"roc_auc": 0.876, "average_precision": 0.665, "card_precision_at_100": 0.297},
    "LSTM with attention": {"roc_auc": 0.874, "average_precision": 0.667, "card_precision_at_100": 0.295},
    "1D-CNN": {"roc_auc": 0.872, "average_precision": 0.599, "card_precision_at_100": 0.288},
}

Report = Callable[[str, int, int, str], None]


class Neural:
    """A detector of the project, trained as `training.fit` does.

    out: a folder for each fold's bundle. checkpoint: a folder from which a killed evaluation goes on, also past folds
    that were trained to their end.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        architecture: str,
        recipe: Recipe,
        *,
        refit: bool = True,
        out: Path | None = None,
        checkpoint: Path | None = None,
        report: Report | None = None,
    ) -> None:
        chosen = msgspec.structs.replace(pipeline.detector, architecture=architecture)
        self.pipeline, self.recipe, self.refit = msgspec.structs.replace(pipeline, detector=chosen), recipe, refit
        self.name, self.out, self.checkpoint = architecture, out, checkpoint
        self.tell = report or (lambda *_: None)

    def __call__(self, fold: Fold) -> Outcome:
        began = time.monotonic()
        detector, _ = new_detector(self.pipeline, fold.train, self.recipe.seed)
        stage = f"{self.name}, fold {fold.number}"
        fitted = fit(
            detector, fold.train, fold.validation, self.recipe,
            lambda epoch, note: self.tell(stage, epoch, self.recipe.epochs, note),
            checkpoint=self._kept("fit", fold),
        )  # fmt: skip
        held_N = score(detector, fold.holdout.encoded)
        calibration = fit_calibration(held_N, fold.holdout.fraud_N)
        facts = {"best_epoch": fitted.best_epoch, "validation_average_precision": max(fitted.validation_ap)}
        if self.refit:
            matured = fold.matured  # made anew at each look
            detector, _ = new_detector(self.pipeline, matured, self.recipe.seed)
            refit(
                detector, matured, self.recipe, fitted.best_epoch,
                lambda epoch, note: self.tell(f"{stage}, again", epoch, fitted.best_epoch, note),
                checkpoint=self._kept("refit", fold),
            )  # fmt: skip
        seconds = time.monotonic() - began
        if self.out is not None:
            described = fold.split.describe() | asdict(self.recipe) | {
                "best_epoch": fitted.best_epoch, "best_validation_ap": max(fitted.validation_ap),
                "calibrated_before_refit": self.refit, "seconds": round(seconds, 1),
            }  # fmt: skip
            folder = self.out / f"bundle-{self.name}-{fold.number}"
            write_trained(folder, self.pipeline, detector, fold.holdout, held_N, fold.split.holdout_days, described)
        score_N = score(detector, fold.test.encoded)
        return Outcome(score_N, calibration.apply(score_N), seconds, facts)

    def _kept(self, stage: str, fold: Fold) -> Path | None:
        return self.checkpoint and self.checkpoint / f"{stage}-{self.name}-{fold.number}.safetensors"


def run_protocol(
    history: History,
    systems: Sequence[System],
    plan: Plan,
    *,
    views: dict[str, View] | None = None,
    make: Make | None = None,
    out: Path | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Metrics of every system by fold, and their means, in the order of the systems; JSON values.

    views: what else the systems read of a history, beside windows, to be checked for leaks. make: what makes windows,
    `replay` unless it is to be tested. out: a folder for `results.json` and the scores of each system and fold.
    Raises TrainingError: for a leak, and where a fold has too little to learn from.
    """
    if out is not None and out.exists() and any(out.iterdir()):  # before minutes of work, not after
        raise TrainingError(f"{out} is not empty: expected a new or empty folder for results")
    tell = report or (lambda *_: None)
    seconds: dict[str, float] = {}
    verdicts, splits = Verdicts(history), splits_of(history, plan)
    with _Timed(seconds, "leak_check"):
        check_no_leaks(history, {"windows": windows_seen(make or replay), **(views or {})}, seed=plan.seed)
    with _Timed(seconds, "replay"):
        shown = partial(replay, report=lambda done, total: tell("replay", done, total, ""))
        kept = keep_windows(history, splits, verdicts, plan, make or shown)
    said_M = verdicts.first_said()
    results: dict[str, list[dict[str, Any]]] = {system.name: [] for system in systems}
    folds = []
    for fold in folds_of(history, splits, kept, verdicts):
        stays_N = _not_known(history, fold, said_M, plan.known_ms)
        folds.append(_described(fold, stays_N))
        for system in systems:
            outcome = system(fold)
            scored = _scored(fold, outcome)
            results[system.name].append(_measured(scored.take(stays_N), outcome))
            tell(f"fold {fold.number}", fold.number, plan.folds, f"{system.name} {_brief(results[system.name][-1])}")
            if out is not None:
                _write_scores(out, system.name, fold, scored, stays_N)
    facts = {
        "folds": folds,
        "systems": {name: {"mean": _means(found), "folds": found} for name, found in results.items()},
        "published": HANDBOOK,
        "plan": msgspec.to_builtins(plan), "seconds": seconds,
    }  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
    return facts


class _Timed:
    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = round(time.monotonic() - self.began, 1)


def _not_known(history: History, fold: Fold, said_M: NDArray[np.int64], known_ms: int) -> NDArray[np.bool_]:
    """Which events of the test week stay. Frauds count as known a maturity after their day, and not before a verdict
    says so; from `known_ms` before what had matured at the week's start on."""
    maturity_ms = history.pipeline.labels.maturity_ms
    since_ms = fold.start_ms - maturity_ms - known_ms
    row_N = np.flatnonzero(fold.truth_M & (fold.time_M >= since_ms) & (fold.time_M < fold.end_ms))
    entity = history.events[history.pipeline.entity].take(pa.array(row_N)).to_pylist()
    time_N = np.maximum(fold.time_M[row_N], said_M[row_N] - maturity_ms)
    return known_frauds_left_out(fold.test.entity, fold.test.time_N, entity, time_N, maturity_ms)


def _scored(fold: Fold, outcome: Outcome) -> Scored:
    test = fold.test
    if not (np.isfinite(outcome.score_N).all() and len(outcome.score_N) == len(test)):
        raise TrainingError(f"fold {fold.number}: expected one finite score for each of {len(test)} events")
    return Scored(fold.test_ids, test.entity, test.time_N, test.fraud_N, outcome.score_N, outcome.probability_N)


def _measured(scored: Scored, outcome: Outcome) -> dict[str, Any]:
    said, were = top_percentile(scored.fraud_N, scored.probability_N, scored.score_N)
    top = {"top_percentile_probability": said, "top_percentile_fraud_rate": were}
    return metrics_of(scored) | top | {"seconds": round(outcome.seconds, 1)} | outcome.facts


def _means(found: list[dict[str, Any]]) -> dict[str, float]:
    names = [*METRICS, "top_percentile_probability", "top_percentile_fraud_rate", "seconds"]
    return {name: float(np.mean([metrics[name] for metrics in found])) for name in names}


def _described(fold: Fold, stays_N: NDArray[np.bool_]) -> dict[str, Any]:
    borders = fold.split.describe()
    del borders["end"]  # of what was known: the start of the test week
    return {
        "start": to_iso(fold.start_ms), "end": to_iso(fold.end_ms), "events": int(stays_N.sum()),
        "frauds": int(fold.test.fraud_N[stays_N].sum()), "events_left_out": int((~stays_N).sum()),
        "train": len(fold.train), "train_frauds": int(fold.train.fraud_N.sum()), **borders,
    }  # fmt: skip


def _brief(metrics: dict[str, Any]) -> str:
    return f"AP {metrics['average_precision']:.3f}, AUC {metrics['roc_auc']:.3f}, {metrics['seconds']:.0f} s"


def _write_scores(out: Path, name: str, fold: Fold, scored: Scored, stays_N: NDArray[np.bool_]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    times = pa.array(scored.time_N, pa.timestamp("ms", "UTC"))
    table = pa.table({
        "event_id": scored.event_id, "entity": scored.entity, "time": times,
        "fraud": scored.fraud_N, "score": scored.score_N, "probability": scored.probability_N, "measured": stays_N,
    })  # fmt: skip
    plain = "".join(c if c.isalnum() else "-" for c in name.lower()).replace("--", "-")
    pq.write_table(table, out / f"scores-{plain}-{fold.number}.parquet", compression="zstd")
