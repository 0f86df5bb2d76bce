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
from training.errors import TrainingError
from training.fit import Recipe
from training.loop import Loop

__all__ = ["MOST_WINDOWS", "fit_forecast", "scale_evidence"]

MOST_WINDOWS = 100_000  # a forecast is learnt at every event of a window: more windows add little
CHECKED = 0.1  # of the windows, the newest: measured, not learnt from
HIGH = 0.95  # quantile at which both levels are made equal; higher ones are of the faults that nobody has labelled
SPREADS = 2.5  # mean absolute deviations, as in `models.surprise.level`
LEAST_SPREAD, LEAST_LEVEL = 1e-3, 1e-6
AT_ONCE = 4096  # windows

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
    known_B = context_BC[:, detector.known] >= 1.0
    if not bool(known_B.any()):
        raise TrainingError("0 windows of entities that surprise knows: expected a history longer than surprise.learn")
    new_B = ~known_B if bool((~known_B).any()) else known_B
    for place, of_B in enumerate((known_B, new_B)):
        usual_R2 = evidence[of_B].median(dim=0).values
        detector.usual_2R2[place] = usual_R2
        detector.spread_2R2[place] = SPREADS * (evidence[of_B] - usual_R2).abs().mean(0) + LEAST_SPREAD
    surprise, forecast = level_of(context_BC[:, detector.score]), detector.forecast_level(evidence, known_B)
    detector.gain_2[0] = _high(surprise[known_B]) / _high(forecast[known_B])
    both = 0.5 * (surprise + detector.gain_2[0] * forecast)
    detector.gain_2[1] = _high(both[known_B]) / _high(forecast[new_B])


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
