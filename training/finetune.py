"""From a history to a verified bundle: replay, train, calibrate, set the threshold, measure, write.

`fit` has the optimisation and `dataset` the choice of events; publishing is a separate step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle, load_bundle
from models.bundle_write import write_bundle
from models.clock import DAY_MS
from models.detectors import SequenceDetector
from models.engines.torch_engine import detector_of
from models.errors import BundleError
from models.features.layout import Layout
from models.pipeline.spec import Pipeline, without_labels
from models.policy import decide, threshold_for_budget
from training.archive import Archive
from training.calibrate import calibrate, cross_calibrated
from training.dataset import Dataset, Part, Split, build_dataset, plan_split
from training.errors import TrainingError
from training.fit import Fitted, Recipe, score
from training.group import ALONE, Group
from training.metrics import (
    CARDS,
    average_precision,
    brier_score,
    card_precision_at_k,
    expected_calibration_error,
    log_loss,
    roc_auc,
    top_percentile,
)
from training.pretrained import load_pretrained
from training.source import Source
from training.stored import open_history
from training.together import CHECKPOINTS, teach
from training.unlabelled import from_past

__all__ = ["Start", "assist", "finetune", "finetune_history", "new_detector", "split_history", "write_trained"]

GOLDEN_EACH = 16  # frauds and legitimate windows in the golden case

# report(stage, done, total, note): stages are "replay" (events), "train" and "refit" (epochs)
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Start:
    """What training starts from instead of random weights: the folder of a bundle or of a pre-trained detector."""

    bundle: Path | None = None
    pretrained: Path | None = None

    def __post_init__(self) -> None:
        if self.bundle is not None and self.pretrained is not None:
            raise TrainingError(f"{self.bundle} and {self.pretrained}: expected one to start from, not both")


def finetune(
    pipeline: Pipeline,
    history_root: Path,
    out: Path,
    *,
    end_ms: int | None = None,
    days: float | None = None,
    warm_up_ms: int | None = None,
    gap_ms: int | None = None,
    validation_ms: int = 3 * DAY_MS,
    holdout_ms: int = 4 * DAY_MS,
    recipe: Recipe | None = None,
    start: Start | None = None,
    refit: bool = False,
    checkpoint: Path | None = None,
    group: Group = ALONE,
    report: Report | None = None,
) -> Bundle:
    """Train on the history below `history_root` as it was known at `end_ms` and write a bundle to `out`.

    end_ms: None stands for the end of the history. days: how many days to train on, None for all. warm_up_ms: how long
    before these the replay begins, which builds the state; None stands for the history's beginning. Of architecture
    `surprise` only these three matter. gap_ms: None stands for the labels' maturity. refit: train once more, on
    everything before the holdout. checkpoint: a folder for what a killed training goes on from; emptied when the bundle
    is written. group: of processes that train together; the first calls this, the others `assist`. The history stays on
    disk: memory holds the chosen windows, not the events.
    Raises HistoryError, TrainingError, CheckpointError, PretrainedError and BundleError.
    """
    _check_free(out)
    history = open_history(Archive(history_root, pipeline))
    if without_labels(pipeline.detector.architecture):
        _check_alone(pipeline, group)
        known = history if end_ms is None else history.known_by(end_ms)
        first = None if start is None or start.bundle is None else load_bundle(start.bundle, pipeline)
        return from_past(
            known, out, days=days, warm_up_ms=warm_up_ms, recipe=recipe or Recipe(), start=first, report=report
        )
    split = split_history(
        history, end_ms=end_ms, days=days, gap_ms=gap_ms, validation_ms=validation_ms, holdout_ms=holdout_ms
    )
    return finetune_history(
        history, split, out, recipe=recipe or Recipe(), start=start, refit=refit, warm_up_ms=warm_up_ms,
        checkpoint=checkpoint, group=group, report=report,
    )  # fmt: skip


def split_history(
    history: Source, *, end_ms: int | None, days: float | None, gap_ms: int | None, validation_ms: int, holdout_ms: int
) -> Split:
    """The split of `finetune`'s arguments. The end of the history is its latest clock, of events or labels."""
    maturity_ms, latest = history.pipeline.labels.maturity_ms, history.end_ms()
    return plan_split(
        latest if end_ms is None else min(end_ms, latest), history.first_event_ms(), maturity_ms,
        train_ms=None if days is None else round(days * DAY_MS),
        gap_ms=maturity_ms if gap_ms is None else gap_ms, validation_ms=validation_ms, holdout_ms=holdout_ms,
    )  # fmt: skip


def finetune_history(
    history: Source,
    split: Split,
    out: Path,
    *,
    recipe: Recipe,
    start: Start | None = None,
    refit: bool = False,
    warm_up_ms: int | None = None,
    checkpoint: Path | None = None,
    group: Group = ALONE,
    report: Report | None = None,
) -> Bundle:
    """As `finetune`, for a history that is open and split."""
    began, pipeline = time.monotonic(), history.pipeline
    tell, start = report or (lambda *_: None), start or Start()
    dataset = build_dataset(
        history, split, max_legit=recipe.max_legit, seed=recipe.seed, newest=refit, warm_up_ms=warm_up_ms,
        report=lambda done, total: tell("replay", done, total, ""),
    )  # fmt: skip
    taught = teach(
        lambda part: new_detector(pipeline, part, recipe.seed, start), recipe, train=dataset.train,
        validation=dataset.validation, newest=dataset.newest, again=refit, checkpoint=checkpoint, group=group,
        report=tell,
    )  # fmt: skip
    detector, fitted = taught.detector, taught.fitted
    score_N = score(detector, dataset.holdout.encoded)
    facts = _facts(dataset, fitted, recipe, taught.origin) | {
        "processes": group.size, "device": group.device.type,
        "warm_up_days": None if warm_up_ms is None else warm_up_ms / DAY_MS,
        "refit_events": None if dataset.newest is None else len(dataset.train) + len(dataset.newest),
        "best_validation_ap": max(fitted.validation_ap), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    bundle = write_trained(out, pipeline, detector, dataset.holdout, score_N, split.holdout_days, facts)
    if checkpoint is not None:
        for name in CHECKPOINTS:
            (checkpoint / name).unlink(missing_ok=True)
    return bundle


def assist(
    pipeline: Pipeline,
    recipe: Recipe,
    *,
    start: Start | None = None,
    refit: bool = False,
    checkpoint: Path | None = None,
    group: Group,
) -> None:
    """What the other processes of a group do while the first is in `finetune`: help to train, with the same arguments.
    Nothing is read but what training starts from, and nothing written. Raises as `finetune`."""
    if without_labels(pipeline.detector.architecture):
        _check_alone(pipeline, group)
    teach(
        lambda part: new_detector(pipeline, part, recipe.seed, start), recipe, train=None, validation=None, newest=None,
        again=refit, checkpoint=checkpoint, group=group,
    )  # fmt: skip


def write_trained(
    out: Path,
    pipeline: Pipeline,
    detector: SequenceDetector,
    holdout: Part,
    score_N: NDArray[np.float32],
    days: float,
    facts: dict[str, Any],
) -> Bundle:
    """A bundle with the calibration, threshold and metrics that the holdout gives.

    score_N: of the holdout, by a detector that was not trained on it. days: that the holdout spans, of a share of the
    entities as much less. facts: of the training. The golden events are named, so that anybody with the history can
    make their windows again.
    """
    threshold = threshold_for_budget(score_N, days, pipeline.policy.alerts_per_day)
    found = calibrate(score_N, holdout.fraud_N)
    golden = _golden(holdout)
    if holdout.event_id is not None:
        facts |= {
            "golden_events": [holdout.event_id[i] for i in golden],
            "golden_frauds": holdout.fraud_N[golden].tolist(),
        }
    return write_bundle(
        out, pipeline, detector, calibration=found.curve, threshold=threshold,
        training=facts | {"calibration": found.family, "calibration_log_loss": found.log_loss},
        metrics=_metrics(holdout, score_N, threshold, days), golden=holdout.encoded.take(golden),
    )  # fmt: skip


def new_detector(
    pipeline: Pipeline, train: Part, seed: int, start: Start | None = None
) -> tuple[SequenceDetector, dict[str, str | None]]:
    """The detector to train, and the versions of what it starts from.

    Another bundle's as it is; or a new one, scaled on these windows, whose logit begins at the prior, and which
    may be pre-trained but for what reads verdicts.
    """
    start = start or Start()
    if start.bundle is not None:
        bundle = load_bundle(start.bundle, pipeline)
        detector = detector_of(bundle)
        if not isinstance(detector, SequenceDetector):
            raise TrainingError(
                f"{bundle.version} has architecture {bundle.info.architecture}: expected one that learns from labels, "
                f"as the pipeline's {pipeline.detector.architecture}, to start from"
            )
        return detector, {"started_from": bundle.version, "pretrained": None}
    torch.manual_seed(seed)
    spec = pipeline.detector
    detector = SequenceDetector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    detector.fit_scaler(train.encoded)
    prior = min(max(train.prior, 1e-6), 0.5)
    with torch.no_grad():
        cast(nn.Linear, detector.head[-1]).bias.fill_(math.log(prior / (1.0 - prior)))
    version = None if start.pretrained is None else load_pretrained(start.pretrained, pipeline, detector)
    return detector, {"started_from": None, "pretrained": version}


def _check_alone(pipeline: Pipeline, group: Group) -> None:
    if group.size > 1:
        raise TrainingError(
            f"{group.size} processes for detector.architecture = {pipeline.detector.architecture!r}: expected one, as "
            "several train only what learns from labels"
        )


def _check_free(out: Path) -> None:
    """Before minutes of work, not after."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError("exists", f"{out} is not empty: expected a new or empty folder")


def _metrics(part: Part, score_N: NDArray[np.float32], threshold: float, days: float) -> dict[str, Any]:
    alert_N = decide(score_N, threshold)
    hits = int((alert_N & part.fraud_N).sum())
    return {
        "average_precision": average_precision(part.fraud_N, score_N),
        "roc_auc": roc_auc(part.fraud_N, score_N),
        f"card_precision_at_{CARDS}": card_precision_at_k(part.entity, part.time_N, part.fraud_N, score_N, CARDS),
        **_calibration_metrics(part.fraud_N, score_N),
        "alerts_per_day": int(alert_N.sum()) / days,
        "alert_precision": hits / max(int(alert_N.sum()), 1),
        "alert_recall": hits / max(int(part.fraud_N.sum()), 1),
        "events": len(part),
        "frauds": int(part.fraud_N.sum()),
    }


def _calibration_metrics(fraud_N: NDArray[np.bool_], score_N: NDArray[np.float32]) -> dict[str, Any]:
    """Of each half under the curve fitted on the other; `score_…` is of the detector's own probabilities, no curve."""
    probability_N = cross_calibrated(score_N, fraud_N)
    mean, rate = top_percentile(fraud_N, probability_N)
    return {
        "expected_calibration_error": expected_calibration_error(fraud_N, probability_N),
        "score_calibration_error": expected_calibration_error(fraud_N, score_N),
        "log_loss": log_loss(fraud_N, probability_N),
        "brier_score": brier_score(fraud_N, probability_N),
        "top_percentile_probability": mean,
        "top_percentile_fraud_rate": rate,
    }


def _facts(dataset: Dataset, fitted: Fitted, recipe: Recipe, origin: dict[str, str | None]) -> dict[str, Any]:
    return {
        **dataset.split.describe(),
        "events": len(dataset.train),
        "frauds": int(dataset.train.fraud_N.sum()),
        "legit_share": dataset.train.legit_share,
        **origin,
        "best_epoch": fitted.best_epoch,
        "loss": fitted.loss,
        "validation_average_precision": fitted.validation_ap,
        **asdict(recipe),
    }


def _golden(part: Part) -> NDArray[np.int64]:
    """Places of some of both kinds, so that the case covers more than empty histories and low scores."""
    return np.concatenate([np.flatnonzero(part.fraud_N)[:GOLDEN_EACH], np.flatnonzero(~part.fraud_N)[:GOLDEN_EACH]])
