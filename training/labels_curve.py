"""How many labels a detector needs: average precision with a small share of the training labels, up to all of them,
from random weights and from pre-trained ones, on one split.

An event that is not drawn is not trained on, whichever kind it is; a larger sample holds the smaller ones. Validation
and holdout keep all of their labels: the curve is about what is learnt from, not about what is measured with. A
pre-trained detector has seen the events before validation begins, and no label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from models.clock import to_iso
from training.dataset import Dataset, Part, Split, build_dataset
from training.errors import TrainingError
from training.finetune import Start, new_detector
from training.fit import Recipe, fit, score
from training.metrics import average_precision
from training.pretrain import PretrainRecipe, pretrain_history
from training.pretrained import pretrained_end
from training.source import Source

__all__ = ["SHARES", "label_sample", "labels_curve"]

Report = Callable[[str, int, int, str], None]  # as in `training.finetune`

SHARES = (0.01, 0.05, 0.2, 1.0)
MIN_STEPS = 1200  # of a training: few labels get smaller batches, then more epochs, not less training
MIN_BATCH, MOST_EPOCHS = 32, 10  # the second: times as many
RESULTS, PRETRAINED = "labels-curve.json", "pretrained"


def labels_curve(
    history: Source,
    split: Split,
    out: Path,
    *,
    recipe: Recipe,
    pretrain: PretrainRecipe | None = None,
    pretrained: Path | None = None,
    shares: tuple[float, ...] = SHARES,
    repeats: int = 1,
    min_steps: int = MIN_STEPS,
    report: Report | None = None,
) -> list[dict[str, Any]]:
    """Train with each share of the labels, from both starts, and write the results to `out`/labels-curve.json.

    pretrained: a pre-trained detector; None pre-trains one into `out`/pretrained, as `pretrain` says. repeats: seeds,
    of the sample and the weights alike, whose average precisions are averaged. min_steps: of a training with few
    labels, by smaller batches and more epochs. Returns one entry a share: labels and frauds (of the first seed),
    `scratch`, `pretrained` and `gain` (of the means), and each seed's values. Raises TrainingError for arguments out of
    range and for a pre-trained detector that knows events from validation on, HistoryError and PretrainedError.
    """
    if not shares or not all(0 < share <= 1 for share in shares) or repeats < 1 or min_steps < 1:
        raise TrainingError(
            f"shares = {shares}, repeats = {repeats}, min_steps = {min_steps}: expected shares above 0, up to 1, and "
            "at least one repeat and step"
        )
    tell = report or (lambda *_: None)
    out.mkdir(parents=True, exist_ok=True)
    if pretrained is None:
        pretrained, how = out / PRETRAINED, pretrain or PretrainRecipe()
        pretrain_history(history, split.validation_start_ms, pretrained, recipe=how, report=report)
    elif (end_ms := pretrained_end(pretrained)) > split.validation_start_ms:
        raise TrainingError(
            f"{pretrained} has learnt from events up to {to_iso(end_ms)}: expected none from "
            f"{to_iso(split.validation_start_ms)} on, where validation begins"
        )
    dataset = build_dataset(
        history, split, max_legit=recipe.max_legit, seed=recipe.seed,
        report=lambda done, total: tell("replay for training", done, total, ""),
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for share in shares:
        rows.append(_row(history, dataset, share, recipe, pretrained, repeats, min_steps))
        row = rows[-1]
        tell("shares", len(rows), len(shares), f"{share:g}: {row['scratch']:.4f}, pre-trained {row['pretrained']:.4f}")
        facts = {"split": split.describe(), "recipe": recipe, "repeats": repeats, "curve": rows}
        (out / RESULTS).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))
    return rows


def label_sample(part: Part, share: float, seed: int) -> Part:
    """A seeded share of the events of both kinds. Of one seed, a larger share holds the smaller one."""
    if share >= 1:
        return part
    return part.take(np.random.default_rng(seed).random(len(part)) < share)


def _row(
    history: Source, dataset: Dataset, share: float, recipe: Recipe, start: Path, repeats: int, min_steps: int
) -> dict[str, Any]:
    values: dict[str, list[float]] = {"scratch": [], "pretrained": []}
    for seed in range(recipe.seed, recipe.seed + repeats):
        train = label_sample(dataset.train, share, seed)
        if not train.fraud_N.any():
            raise TrainingError(f"share {share:g} of the labels, seed {seed}: no fraud among {len(train)} events")
        for name, begin in (("scratch", Start()), ("pretrained", Start(pretrained=start))):
            detector, _ = new_detector(history.pipeline, train, seed, begin)
            fit(detector, train, dataset.validation, _recipe(recipe, len(train), seed, min_steps))
            values[name].append(
                average_precision(dataset.holdout.fraud_N, score(detector, dataset.holdout.encoded))
            )  # fmt: skip
    first = label_sample(dataset.train, share, recipe.seed)
    means = {name: float(np.mean(found)) for name, found in values.items()}
    return {
        "share": share, "labels": len(first), "frauds": int(first.fraud_N.sum()), **means,
        "gain": means["pretrained"] - means["scratch"], "values": values,
    }  # fmt: skip


def _recipe(recipe: Recipe, events: int, seed: int, min_steps: int) -> Recipe:
    """The same for few events: smaller batches, then more epochs, up to `min_steps`."""
    batch = min(recipe.batch, max(MIN_BATCH, events * recipe.epochs // min_steps))
    steps = -(-events // batch)
    epochs = min(max(recipe.epochs, -(-min_steps // steps)), MOST_EPOCHS * recipe.epochs)
    return replace(recipe, batch=batch, epochs=epochs, patience=max(recipe.patience, epochs // 2), seed=seed)
