"""The optimisation itself: a detector, windows and verdicts in; the weights of the best epoch out.

AdamW with a one-cycle rate and binary cross-entropy. After every epoch the validation part is scored the way
the worker scores; the epoch with the highest average precision is kept. Seeded: the same data, seed, torch
build and thread count give the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

from models.calibration import Calibration
from models.detectors import Detector
from models.detectors.base import tensors
from models.engines.base import scores_of
from models.engines.torch_engine import TorchEngine
from models.features.encoded import Encoded
from training.dataset import Part
from training.errors import TrainingError
from training.metrics import average_precision

__all__ = ["Fitted", "Recipe", "fit", "fit_calibration", "score"]

WARM_UP = 0.3  # share of the steps on which the rate rises
CLIP = 1.0  # gradient norm: one odd batch must not undo an epoch


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train. Raises TrainingError for values that cannot work."""

    epochs: int = 8
    batch: int = 512  # smaller learns more an epoch, larger is faster on the CPU
    learning_rate: float = 4e-3  # the peak of the cycle
    weight_decay: float = 1e-2
    patience: int = 4  # epochs without a better average precision after which training stops
    max_legit: int = 120_000  # legitimate events kept for training: time and memory grow with it
    seed: int = 0
    threads: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "patience", "max_legit", "threads"):
            if getattr(self, name) <= 0:
                raise TrainingError(f"{name} = {getattr(self, name)}: expected above zero")


@dataclass
class Fitted:
    """What happened: the kept epoch (from 1), and loss and validation average precision of every epoch."""

    best_epoch: int = 0
    loss: list[float] = field(default_factory=list)
    validation_ap: list[float] = field(default_factory=list)


def fit(
    detector: Detector, train: Part, validation: Part, recipe: Recipe, report: Callable[[int, str], None] | None = None
) -> Fitted:
    """Train in place and leave the weights of the best epoch, in eval mode. report(epoch, note) after each."""
    torch.set_num_threads(recipe.threads)
    generator = torch.Generator().manual_seed(recipe.seed)
    inputs, fraud_N = tensors(train.encoded), torch.from_numpy(train.fraud_N.astype(np.float32))
    steps = -(-len(train) // recipe.batch)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=steps * recipe.epochs, pct_start=WARM_UP
    )
    fitted, best = Fitted(), copy.deepcopy(detector.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        order = torch.randperm(len(train), generator=generator)
        detector.train()
        total = 0.0
        for index in torch.split(order, recipe.batch):
            total += _step(detector, optimizer, [t[index] for t in inputs], fraud_N[index]) * len(index)
            schedule.step()
        fitted.loss.append(total / len(train))
        fitted.validation_ap.append(average_precision(validation.fraud_N, score(detector, validation.encoded)))
        if fitted.best_epoch == 0 or fitted.validation_ap[-1] > fitted.validation_ap[fitted.best_epoch - 1]:
            fitted.best_epoch, best = epoch, copy.deepcopy(detector.state_dict())
        if report is not None:
            report(epoch, f"loss {fitted.loss[-1]:.4f}, validation AP {fitted.validation_ap[-1]:.4f}")
        if epoch - fitted.best_epoch >= recipe.patience:
            break
    detector.load_state_dict(best)
    detector.eval()
    return fitted


def score(detector: Detector, encoded: Encoded) -> NDArray[np.float32]:
    """score_B as `models.scorer` gives it."""
    detector.eval()
    return scores_of(TorchEngine(detector).logits(encoded))


def fit_calibration(score_N: NDArray[np.float32], fraud_N: NDArray[np.bool_]) -> Calibration:
    """Isotonic regression of the verdicts on the scores.

    The highest probability stays below 1 by what so many frauds can tell: 1 - 1 / (frauds + 2).
    """
    most = 1.0 - 1.0 / (int(fraud_N.sum()) + 2)
    curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score_N.astype(np.float64), fraud_N)
    scores, first = np.unique(curve.X_thresholds_, return_index=True)
    probabilities = np.minimum(np.maximum.accumulate(curve.y_thresholds_[first]), most)
    return Calibration(tuple(scores.tolist()), tuple(probabilities.tolist()))


def _step(detector: Detector, optimizer: torch.optim.Optimizer, inputs: list[Tensor], fraud_B: Tensor) -> float:
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.binary_cross_entropy_with_logits(detector(*inputs), fraud_B)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(detector.parameters(), CLIP)
    optimizer.step()
    return float(loss.item())
