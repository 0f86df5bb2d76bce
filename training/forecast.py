"""Teaching a trunk without labels what comes next in a fleet, and how unlikely what comes usually is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Generator, Tensor

from models.detectors import ForecastDetector
from models.detectors.base import tensors
from models.detectors.surprise import level_of
from models.features.encoded import Encoded
from models.weights import AGES
from training.epochs import Loop
from training.errors import TrainingError
from training.fit import Recipe

__all__ = ["MOST_WINDOWS", "fit_forecast", "scale_evidence"]

MOST_WINDOWS = 100_000  # a forecast is learnt at every event of a window: more windows add little
CHECKED = 0.1  # of the windows, the newest: measured, not learnt from
HIGH = 0.95  # quantile at which both levels are made equal; higher ones are of the faults that nobody has labelled
SPREADS = 2.5  # mean absolute deviations, as in `models.surprise.level`
LEAST_SPREAD, LEAST_LEVEL = 1e-3, 1e-6
AT_ONCE = 4096  # windows
FEW = 100  # windows of an age from which nothing can be said of it

Report = Callable[[int, str], None]


def fit_forecast(
    detector: ForecastDetector, windows: Encoded, recipe: Recipe, report: Report
) -> dict[str, list[float]]:
    """Train in place, to averaged weights in eval mode; losses by epoch, nats a number, of what is learnt from and of
    the newest tenth, which is not. Raises TrainingError for fewer than ten windows."""
    checked = int(CHECKED * len(windows))
    if not checked:
        raise TrainingError(f"{len(windows)} windows to learn forecasts from: expected at least {round(1 / CHECKED)}")
    learnt, newest = tensors(windows.take(slice(0, -checked))), windows.take(slice(-checked, None))
    loop = Loop(
        detector, [(list(detector.parameters()), recipe.learning_rate)], items=len(learnt[0]), batch=recipe.batch,
        epochs=recipe.epochs, weight_decay=recipe.weight_decay, average=recipe.average, seed=recipe.seed,
        threads=recipe.threads,
    )  # fmt: skip

    def loss_of(index: Tensor, _: Generator) -> Tensor:
        nats_BLN, there_BLN = detector.unlikelihood(*(tensor[index] for tensor in learnt[:3]))
        return nats_BLN.sum() / there_BLN.sum().clamp(min=1)

    losses: dict[str, list[float]] = {"loss": [], "checked_loss": []}
    for epoch in range(1, recipe.epochs + 1):
        losses["loss"].append(loop.run_epoch(loss_of))
        losses["checked_loss"].append(_loss(loop.average.model, newest))
        report(epoch, f"loss {losses['loss'][-1]:.4f}, of the newest {losses['checked_loss'][-1]:.4f}")
    detector.load_state_dict(loop.average.model.state_dict())
    detector.eval()
    return losses


@torch.no_grad()
def scale_evidence(detector: ForecastDetector, windows: Encoded) -> None:
    """Set what is usual in the fleet, and the gains by which forecasts reach what surprise reaches.

    Raises TrainingError when surprise knows none of the windows' entities.
    """
    detector.eval()
    evidence = torch.cat([
        detector.evidence(*tensors(windows.take(slice(first, first + AT_ONCE)))[:3])
        for first in range(0, len(windows), AT_ONCE)
    ])  # fmt: skip
    context_BC = torch.from_numpy(windows.context_BC)
    age_B, oldest = detector.ages(context_BC), len(AGES)
    if not bool((age_B == oldest).any()):
        raise TrainingError("0 windows of entities that surprise knows: expected a history longer than surprise.learn")
    of = {age: _alike(age_B, age) for age in range(oldest + 1)}
    for age, alike_B in of.items():
        usual_R2 = evidence[alike_B].median(dim=0).values
        detector.usual_AR2[age] = usual_R2
        detector.spread_AR2[age] = SPREADS * (evidence[alike_B] - usual_R2).abs().mean(0) + LEAST_SPREAD
    surprise, forecast = level_of(context_BC[:, detector.score]), detector.forecast_level(evidence, age_B)
    detector.gain_A[oldest] = _high(surprise[of[oldest]]) / _high(forecast[of[oldest]])
    high = _high(0.5 * (surprise + detector.gain_A[oldest] * forecast)[of[oldest]])
    for age in range(oldest):
        detector.gain_A[age] = high / _high(forecast[of[age]])


def _alike(age_B: Tensor, age: int) -> Tensor:
    """Windows of this age, or, where there are too few, of the next that has enough."""
    while age < len(AGES) and int((age_B == age).sum()) < FEW:
        age += 1
    return age_B == age


def _high(level: Tensor) -> float:
    return max(float(np.quantile(level.numpy(), HIGH)), LEAST_LEVEL)


@torch.no_grad()
def _loss(detector: ForecastDetector, windows: Encoded) -> float:
    detector.eval()
    total, count = 0.0, 0
    for first in range(0, len(windows), AT_ONCE):
        part = tensors(windows.take(slice(first, first + AT_ONCE)))
        nats_BLN, there_BLN = detector.unlikelihood(*part[:3])
        total, count = total + float(nats_BLN.sum()), count + int(there_BLN.sum())
    return total / max(count, 1)
