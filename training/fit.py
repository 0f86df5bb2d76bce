"""The optimisation itself: a detector, windows and verdicts in; the weights of the best epoch out.

AdamW with a one-cycle rate and binary cross-entropy; the weights that count are an exponential moving average of those
that are trained. After every epoch it scores the validation part the way the worker scores; the epoch with the highest
average precision is kept. Seeded: the same data, seed, torch build and thread count give the same weights, also when
the training was killed and went on from a checkpoint. In a group of processes (`training.group`) all call `fit`; the
first alone scores and writes.

Legitimate events are a sample, all frauds are there: the odds of fraud are 1/share times what they are in the stream.
The loss therefore sees the logit plus log(1/share), and the detector's own logit is that of the stream (prior
correction: King and Zeng, Political Analysis 2001; Menon et al., arXiv:2007.07314). Weights of 1/share would aim at the
same, but let few events move the gradient by much.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from models.detectors import SequenceDetector
from models.detectors.base import tensors
from models.engines.base import scores_of
from models.engines.torch_engine import TorchEngine
from models.features.encoded import Encoded
from training.augment import Augmenter
from training.checkpoint import Checkpoint, digest_of
from training.dataset import Part
from training.epochs import Loop
from training.errors import TrainingError
from training.group import ALONE, Group
from training.metrics import average_precision
from training.pretrained import in_trunk

__all__ = ["Fitted", "Recipe", "fit", "refit", "score"]

Report = Callable[[int, str], None]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Raises TrainingError for values that cannot work."""

    epochs: int = 6
    batch: int = 512  # smaller learns more an epoch, larger is faster on the CPU
    learning_rate: float = 4e-3  # the peak of the cycle
    trunk_rate: float = 1.0  # times that for what reads the events: below 1 it stays nearer to where it was pre-trained
    weight_decay: float = 1e-2
    average: float = 0.998  # share of the old average in the new one at each step; 0 takes the weights as they are
    augment: bool = False  # windows as they might have been: `training.augment`
    patience: int = 4  # epochs without a better average precision after which training stops
    max_legit: int = 300_000  # legitimate events kept for training: time and memory grow with it
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "trunk_rate", "patience", "max_legit", "threads"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} = {getattr(self, name)}: expected above zero")
        if not 0 <= self.average < 1:
            raise TrainingError(f"average = {self.average}: expected at least 0 and below 1")


@dataclass
class Fitted:
    """What happened: the kept epoch (from 1), and loss and validation average precision of every epoch."""

    best_epoch: int = 0
    loss: list[float] = field(default_factory=list)
    validation_ap: list[float] = field(default_factory=list)


def fit(
    detector: SequenceDetector,
    train: Part,
    validation: Part | None,
    recipe: Recipe,
    report: Report | None = None,
    *,
    checkpoint: Path | None = None,
    group: Group = ALONE,
) -> Fitted:
    """Train in place and leave the weights of the best epoch, in eval mode. report(epoch, note) after each.

    checkpoint: a file, written after every epoch, gone on from where there is one, and left when all is done. group:
    only its first process has a validation part, and ends with the best weights. Raises CheckpointError for the
    checkpoint of another training.
    """
    saved = _checkpoint(checkpoint, detector, recipe, [train, validation], group)
    loop = _loop(detector, train, recipe, group)
    fitted, best = Fitted(), _copy(detector)
    if saved is not None and (found := saved.load()) is not None:
        kept, facts = found
        loop.restore(kept, facts["loop"])
        fitted = Fitted(**facts["fitted"])
        best = {name: kept[f"best.{name}"] for name in best}
    loss_of = _loss(detector, train, recipe, group)
    while loop.epoch < recipe.epochs and loop.epoch - fitted.best_epoch < recipe.patience:
        fitted.loss.append(loop.run_epoch(loss_of))
        if validation is not None:
            average = copy.deepcopy(loop.average.model).cpu()
            found_ap = average_precision(validation.fraud_N, score(average, validation.encoded))
            if fitted.best_epoch == 0 or found_ap > fitted.validation_ap[fitted.best_epoch - 1]:
                fitted.best_epoch, best = loop.epoch, average.state_dict()
            fitted.validation_ap.append(found_ap)
        fitted = Fitted(**group.tell(asdict(fitted)))
        if saved is not None and group.first:
            _save(saved, loop, best, fitted)
        if report is not None:
            report(loop.epoch, f"loss {fitted.loss[-1]:.4f}, validation AP {fitted.validation_ap[-1]:.4f}")
    detector.cpu().load_state_dict(best)
    detector.eval()
    return fitted


def refit(
    detector: SequenceDetector,
    train: Part,
    recipe: Recipe,
    epochs: int,
    report: Report | None = None,
    *,
    checkpoint: Path | None = None,
    group: Group = ALONE,
) -> Fitted:
    """Train in place without validation for the epochs that `fit` chose, on the same cycle; as `fit` otherwise."""
    saved = _checkpoint(checkpoint, detector, recipe, [train, train], group, f"refit {epochs}")
    loop = _loop(detector, train, recipe, group)
    fitted = Fitted()
    if saved is not None and (found := saved.load()) is not None:
        loop.restore(found[0], found[1]["loop"])
        fitted = Fitted(**found[1]["fitted"])
    loss_of = _loss(detector, train, recipe, group)
    while loop.epoch < epochs:
        fitted.loss.append(loop.run_epoch(loss_of))
        fitted.best_epoch = loop.epoch
        if saved is not None and group.first:
            _save(saved, loop, {}, fitted)
        if report is not None:
            report(loop.epoch, f"loss {fitted.loss[-1]:.4f}")
    detector.cpu().load_state_dict(loop.average.model.state_dict())
    detector.eval()
    return fitted


def score(detector: SequenceDetector, encoded: Encoded) -> NDArray[np.float32]:
    """score_B as `models.scorer` gives it."""
    detector.eval()
    return scores_of(TorchEngine(detector).logits(encoded))


def _copy(detector: SequenceDetector) -> dict[str, Tensor]:
    return {name: tensor.cpu().clone() for name, tensor in detector.state_dict().items()}


def _loop(detector: SequenceDetector, train: Part, recipe: Recipe, group: Group) -> Loop[SequenceDetector]:
    detector.to(group.device)
    named = list(detector.named_parameters())
    trunk = [p for name, p in named if in_trunk(name)]
    rest = [p for name, p in named if not in_trunk(name)]
    return Loop(
        detector, [(rest, recipe.learning_rate), (trunk, recipe.learning_rate * recipe.trunk_rate)],
        items=len(train), batch=recipe.batch, epochs=recipe.epochs, weight_decay=recipe.weight_decay,
        average=recipe.average, seed=recipe.seed, threads=recipe.threads, group=group,
    )  # fmt: skip


def _loss(
    detector: SequenceDetector, train: Part, recipe: Recipe, group: Group
) -> Callable[[Tensor, Generator], Tensor]:
    inputs, fraud_N = tensors(train.encoded), torch.from_numpy(train.fraud_N.astype(np.float32))
    offset = -math.log(train.legit_share)
    weight_N = None if train.weight_N is None else torch.from_numpy(train.weight_N)
    augmenter = Augmenter(detector.inputs) if recipe.augment else None

    def loss_of(index: Tensor, generator: Generator) -> Tensor:
        share = group.share(len(index))
        if augmenter is None:
            batch = [tensor[index[share]] for tensor in inputs]
        else:  # drawn for all of the batch, or processes would draw apart
            batch = [tensor[share] for tensor in augmenter([tensor[index] for tensor in inputs], generator)]
        logits = detector(*(tensor.to(group.device) for tensor in batch)) + offset
        expected = fraud_N[index[share]].to(group.device)
        weights = None if weight_N is None else weight_N[index[share]].to(group.device)
        total = nn.functional.binary_cross_entropy_with_logits(logits, expected, weights, reduction="sum")
        return total / len(index)

    return loss_of


def _checkpoint(
    path: Path | None, detector: SequenceDetector, recipe: Recipe, parts: list[Part | None], group: Group,
    what: str = "fit",
) -> Checkpoint | None:  # fmt: skip
    """The same in all processes of a group; only the first has the data that its identity is made of."""
    if path is None:
        return None
    identity: dict[str, str] = {}
    if group.first:
        start, how = detector.weights(), msgspec.json.encode(asdict(recipe)).decode()
        identity = {
            "kind": what, "torch": str(torch.__version__), "recipe": digest_of(how),
            "data": digest_of(*(array for part in parts if part is not None for array in _arrays(part))),
            "start": digest_of(detector.architecture, *(start[name] for name in sorted(start))),
        }  # fmt: skip
        if (group.size, group.device.type) != (1, "cpu"):
            identity["processes"] = f"{group.size} on {group.device.type}"
    return Checkpoint(path, group.tell(identity))


def _arrays(part: Part) -> list[NDArray[Any]]:
    encoded = part.encoded
    share = np.array([part.legit_share])
    weights = [] if part.weight_N is None else [part.weight_N]
    return [*(getattr(encoded, name) for name in Encoded.__slots__), part.fraud_N, share, *weights]


def _save(saved: Checkpoint, loop: Loop[SequenceDetector], best: dict[str, Tensor], fitted: Fitted) -> None:
    tensors, facts = loop.state()
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    saved.save(tensors, {"loop": facts, "fitted": asdict(fitted)})
