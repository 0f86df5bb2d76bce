"""From a history to a verified bundle: replay, train, calibrate, set the threshold, measure, write.

`fit` has the optimisation and `dataset` the choice of events; publishing is a separate step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle
from models.bundle_write import write_bundle
from models.clock import DAY_MS
from models.detectors import Detector, build_detector
from models.engines.torch_engine import detector_of
from models.errors import BundleError
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from models.policy import decide, threshold_for_budget
from training.archive import Archive
from training.dataset import Dataset, Part, Split, build_dataset, plan_split
from training.fit import Fitted, Recipe, fit, fit_calibration, score
from training.metrics import CARDS, average_precision, card_precision_at_k, expected_calibration_error, roc_auc
from training.replay import History, load_history

__all__ = ["finetune", "finetune_history", "split_history"]

GOLDEN_EACH = 16  # frauds and legitimate windows in the golden case

# report(stage, done, total, note): stages are "replay" (events) and "train" (epochs)
Report = Callable[[str, int, int, str], None]


def finetune(
    pipeline: Pipeline,
    history_root: Path,
    out: Path,
    *,
    end_ms: int | None = None,
    days: float | None = None,
    gap_ms: int | None = None,
    validation_ms: int = 3 * DAY_MS,
    holdout_ms: int = 4 * DAY_MS,
    recipe: Recipe | None = None,
    start_from: Path | None = None,
    report: Report | None = None,
) -> Bundle:
    """Train on the history below `history_root` as it was known at `end_ms` and write a bundle to `out`.

    end_ms: None stands for the end of the history. days: how many days to train on, None for all; the state
    is always replayed from the history's beginning. gap_ms: None stands for the labels' maturity. start_from:
    a bundle whose weights and scaling to start from. Raises HistoryError, TrainingError and BundleError.
    """
    _check_free(out)
    history = load_history(Archive(history_root, pipeline))
    split = split_history(
        history, end_ms=end_ms, days=days, gap_ms=gap_ms, validation_ms=validation_ms, holdout_ms=holdout_ms
    )
    return finetune_history(history, split, out, recipe=recipe or Recipe(), start_from=start_from, report=report)


def split_history(
    history: History, *, end_ms: int | None, days: float | None, gap_ms: int | None, validation_ms: int, holdout_ms: int
) -> Split:
    """The split of `finetune`'s arguments. The end of the history is its latest clock, of events or labels."""
    maturity_ms = history.pipeline.labels.maturity_ms
    latest = int(max(clock.max() for clock in (history.event_clock_M, history.label_clock_M) if len(clock))) + 1
    return plan_split(
        latest if end_ms is None else min(end_ms, latest), int(history.event_time_M.min()), maturity_ms,
        train_ms=None if days is None else round(days * DAY_MS),
        gap_ms=maturity_ms if gap_ms is None else gap_ms, validation_ms=validation_ms, holdout_ms=holdout_ms,
    )  # fmt: skip


def finetune_history(
    history: History, split: Split, out: Path, *, recipe: Recipe, start_from: Path | None, report: Report | None
) -> Bundle:
    """As `finetune`, for a history that is loaded and split."""
    began, pipeline = time.monotonic(), history.pipeline
    tell = report or (lambda *_: None)
    dataset = build_dataset(
        history, split, max_legit=recipe.max_legit, seed=recipe.seed,
        report=lambda done, total: tell("replay", done, total, ""),
    )  # fmt: skip
    detector, parent = _detector(pipeline, dataset, recipe, start_from)
    fitted = fit(
        detector, dataset.train, dataset.validation, recipe,
        lambda epoch, note: tell("train", epoch, recipe.epochs, note),
    )  # fmt: skip
    holdout, score_N = dataset.holdout, score(detector, dataset.holdout.encoded)
    threshold = threshold_for_budget(score_N, split.holdout_days, pipeline.policy.alerts_per_day)
    return write_bundle(
        out, pipeline, detector,
        calibration=fit_calibration(score_N, holdout.fraud_N), threshold=threshold,
        metrics=_metrics(holdout, score_N, threshold, split) | {"best_validation_ap": max(fitted.validation_ap)},
        training=_facts(dataset, fitted, recipe, parent) | {"seconds": round(time.monotonic() - began, 1)},
        golden=_golden(holdout),
    )  # fmt: skip


def _check_free(out: Path) -> None:
    """Before minutes of work, not after."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("exists", f"{out} is not empty: expected a new or empty folder")


def _detector(
    pipeline: Pipeline, dataset: Dataset, recipe: Recipe, start_from: Path | None
) -> tuple[Detector, str | None]:
    """A new detector scaled on the training windows, or another bundle's as it is; and that bundle's version."""
    if start_from is not None:
        bundle = load_bundle(start_from, pipeline)
        return detector_of(bundle), bundle.version
    torch.manual_seed(recipe.seed)
    spec = pipeline.detector
    detector = build_detector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    detector.fit_scaler(dataset.train.encoded)
    return detector, None


def _metrics(part: Part, score_N: NDArray[np.float32], threshold: float, split: Split) -> dict[str, Any]:
    alert_N = decide(score_N, threshold)
    hits = int((alert_N & part.fraud_N).sum())
    return {
        "average_precision": average_precision(part.fraud_N, score_N),
        "roc_auc": roc_auc(part.fraud_N, score_N),
        f"card_precision_at_{CARDS}": card_precision_at_k(part.entity, part.time_N, part.fraud_N, score_N, CARDS),
        "expected_calibration_error": _cross_calibration_error(score_N, part.fraud_N),
        "alerts_per_day": int(alert_N.sum()) / split.holdout_days,
        "alert_precision": hits / max(int(alert_N.sum()), 1),
        "alert_recall": hits / max(int(part.fraud_N.sum()), 1),
        "events": len(part),
        "frauds": int(part.fraud_N.sum()),
    }


def _cross_calibration_error(score_N: NDArray[np.float32], fraud_N: NDArray[np.bool_]) -> float:
    """Of each half under the curve fitted on the other: on its own data a curve is always right."""
    halves = [slice(0, None, 2), slice(1, None, 2)]
    errors = []
    for own, other in (halves, halves[::-1]):
        curve = fit_calibration(score_N[other], fraud_N[other])
        errors.append(expected_calibration_error(fraud_N[own], curve.apply(score_N[own])))
    return float(np.mean(errors))


def _facts(dataset: Dataset, fitted: Fitted, recipe: Recipe, parent: str | None) -> dict[str, Any]:
    return {
        **dataset.split.describe(),
        "events": len(dataset.train),
        "frauds": int(dataset.train.fraud_N.sum()),
        "legit_share": dataset.legit_share,
        "started_from": parent,
        "best_epoch": fitted.best_epoch,
        "loss": fitted.loss,
        "validation_average_precision": fitted.validation_ap,
        **asdict(recipe),
    }


def _golden(part: Part) -> Encoded:
    """Some of both kinds, so that the case covers more than empty histories and low scores."""
    index = np.concatenate([np.flatnonzero(part.fraud_N)[:GOLDEN_EACH], np.flatnonzero(~part.fraud_N)[:GOLDEN_EACH]])
    return part.encoded.take(index)
