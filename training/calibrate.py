"""From scores of held-back days to probabilities: which curve, and how it is fitted.

Three families, from stiff to free; all are monotone, and are stored as the knots of a piecewise linear curve:

    platt     sigmoid(a·z + b) of the score's logit z (Platt 1999)
    beta      sigmoid(a·ln s − b·ln(1 − s) + c) of the score s (Kull, Silva Filho and Flach, AISTATS 2017)
    isotonic  steps, each of which holds at least MIN_FRAUDS frauds and MIN_FRAUDS other events

The stiffest is taken unless a freer one has the lower cross-validated log loss by more than the standard error of
the difference: a hundred frauds rarely tell isotonic steps from noise, and the top step decides about alerts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from models.calibration import Calibration
from training.metrics import LEAST

__all__ = ["Calibrated", "calibrate", "cross_calibrated", "fit_calibration"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

FOLDS = 5
MIN_FRAUDS = 20  # of an isotonic step: the standard error of its rate is then below a quarter of the rate
LOGIT_LIMIT = 16.0  # where float32 scores end below 1
KNOTS = 513  # of a parametric curve before those that a straight line replaces are left out
STRAIGHT = 1e-3  # relative error of a probability that this may cost
RIDGE = 1e-3  # on the parameters, against separable data


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A curve, its family, and the cross-validated log loss of every family that was tried, in nats an event."""

    curve: Calibration
    family: str
    log_loss: dict[str, float]


def fit_calibration(score_N: NDArray[np.float32], fraud_N: Bools) -> Calibration:
    """The curve alone of `calibrate`."""
    return calibrate(score_N, fraud_N).curve


def calibrate(score_N: NDArray[np.float32], fraud_N: Bools, families: tuple[str, ...] = ()) -> Calibrated:
    """Fit every family and choose as the module says; `families` restricts them.

    The highest probability stays below 1 by what so many frauds can tell: 1 - 1 / (frauds + 2). Scores of one class
    only give a constant. Raises ValueError for no scores, for scores outside [0, 1], and for an unknown family.
    """
    if len(score_N) == 0 or not ((score_N >= 0) & (score_N <= 1)).all():
        raise ValueError(f"calibrate: {len(score_N)} scores: expected at least one, all within [0, 1]")
    unknown = set(families) - FAMILIES.keys()
    if unknown:
        raise ValueError(f"calibrate: {sorted(unknown)}: expected some of {list(FAMILIES)}")
    frauds, events = int(fraud_N.sum()), len(fraud_N)
    if frauds in (0, events):
        rate = (frauds + 0.5) / (events + 1)
        return Calibrated(Calibration((0.0,), (min(rate, 1.0 - 1.0 / (frauds + 2)),)), "constant", {})
    wanted = families or tuple(FAMILIES)
    if min(frauds, events - frauds) < FOLDS:  # nothing to choose by
        return Calibrated(FAMILIES[wanted[0]](score_N, fraud_N), wanted[0], {})
    losses = {name: _cross_losses(score_N, fraud_N, name) for name in wanted}
    chosen = next(iter(losses))
    for name, loss_N in losses.items():
        gain_N = losses[chosen] - loss_N
        if float(gain_N.mean()) > float(gain_N.std()) / np.sqrt(events):
            chosen = name
    means = {name: float(loss_N.mean()) for name, loss_N in losses.items()}
    return Calibrated(FAMILIES[chosen](score_N, fraud_N), chosen, means)


def cross_calibrated(score_N: NDArray[np.float32], fraud_N: Bools, folds: int = 2) -> NDArray[np.float32]:
    """probability_N of each part under the curve fitted on the others: on its own data a curve is always right."""
    probability_N = np.empty(len(score_N), np.float32)
    fold_N = _folds(fraud_N, folds)
    for fold in range(folds):
        own = fold_N == fold
        probability_N[own] = fit_calibration(score_N[~own], fraud_N[~own]).apply(score_N[own])
    return probability_N


def platt(score_N: NDArray[np.float32], fraud_N: Bools) -> Calibration:
    """Slope and offset of the logit; the slope is not negative."""
    logit_N = _logit(score_N)
    slope, offset = _logistic(np.stack([logit_N, np.ones_like(logit_N)], axis=1), fraud_N, free=1)
    grid = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, KNOTS)
    return _curve(grid, slope * grid + offset, fraud_N)


def beta(score_N: NDArray[np.float32], fraud_N: Bools) -> Calibration:
    """Other slopes for low and for high scores; neither is negative."""
    columns = _beta_columns(_logit(score_N))
    weights = _logistic(columns, fraud_N, free=1)
    grid = np.linspace(-LOGIT_LIMIT, LOGIT_LIMIT, KNOTS)
    return _curve(grid, _beta_columns(grid) @ weights, fraud_N)


def isotonic(score_N: NDArray[np.float32], fraud_N: Bools) -> Calibration:
    """Isotonic steps, neighbours merged until each holds enough of both kinds, and rates drawn a little to the mean."""
    steps = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(score_N.astype(np.float64), fraud_N)
    order = np.argsort(score_N, kind="stable")
    ordered_N, fraud_N = score_N[order].astype(np.float64), fraud_N[order]
    borders = np.flatnonzero(np.diff(steps[order]) > 0) + 1
    parts = _merged([(int(p[0]), int(p[-1]) + 1) for p in np.split(np.arange(len(order)), borders)], fraud_N)
    mean = float(fraud_N.mean())
    scores: list[float] = []
    probabilities: list[float] = []
    for start, stop in parts:
        rate = (float(fraud_N[start:stop].sum()) + mean) / (stop - start + 1)
        for score in sorted({float(ordered_N[start]), float(ordered_N[stop - 1])}):
            scores.append(score)
            probabilities.append(rate)
    most = 1.0 - 1.0 / (int(fraud_N.sum()) + 2)
    return Calibration(tuple(scores), tuple(np.minimum(np.maximum.accumulate(probabilities), most).tolist()))


FAMILIES: dict[str, Callable[[NDArray[np.float32], Bools], Calibration]] = {
    "platt": platt, "beta": beta, "isotonic": isotonic,
}  # fmt: skip


def _merged(parts: list[tuple[int, int]], fraud_N: Bools) -> list[tuple[int, int]]:
    """From the top down, as the top matters most; what is left at the bottom joins the last."""
    merged: list[tuple[int, int]] = []
    stop = parts[-1][1]
    for start, _ in reversed(parts):
        frauds = int(fraud_N[start:stop].sum())
        if min(frauds, stop - start - frauds) >= MIN_FRAUDS:
            merged.append((start, stop))
            stop = start
    if stop > 0 and merged and int(fraud_N[:stop].sum()) == 0:
        merged.append((0, stop))  # the many events below the lowest fraud: they hold none, and enough others
    elif stop > 0:
        merged = [*merged[:-1], (0, merged[-1][1] if merged else stop)]
    return merged[::-1]


def _cross_losses(score_N: NDArray[np.float32], fraud_N: Bools, family: str) -> Floats:
    """Negative log likelihood of each event under the family's curve of the other folds."""
    loss_N, fold_N = np.empty(len(score_N)), _folds(fraud_N, FOLDS)
    for fold in range(FOLDS):
        own = fold_N == fold
        probability = FAMILIES[family](score_N[~own], fraud_N[~own]).apply(score_N[own]).astype(np.float64)
        loss_N[own] = -np.log(np.clip(np.where(fraud_N[own], probability, 1.0 - probability), LEAST, 1.0))
    return loss_N


def _folds(fraud_N: Bools, folds: int) -> NDArray[np.int64]:
    """Every k-th of each kind, in the order of time."""
    fold_N = np.empty(len(fraud_N), np.int64)
    for kind in (fraud_N, ~fraud_N):
        fold_N[kind] = np.arange(int(kind.sum())) % folds
    return fold_N


def _logit(score_N: NDArray[np.float32]) -> Floats:
    least = 1.0 / (1.0 + np.exp(LOGIT_LIMIT))
    clipped = np.clip(score_N.astype(np.float64), least, 1.0 - least)
    return np.asarray(np.log(clipped / (1.0 - clipped)))


def _beta_columns(logit_N: Floats) -> Floats:
    """ln s, −ln(1 − s) and 1, of s = sigmoid(logit)."""
    return np.stack([-np.logaddexp(0, -logit_N), np.logaddexp(0, logit_N), np.ones_like(logit_N)], axis=1)


def _logistic(columns_NW: Floats, fraud_N: Bools, free: int) -> Floats:
    """Logistic regression whose weights, but for the last `free` ones, are not negative."""
    many, weights = columns_NW.shape
    # Platt's targets: as if one more of each kind had been seen.
    frauds = int(fraud_N.sum())
    target_N = np.where(fraud_N, (frauds + 1) / (frauds + 2), 1 / (many - frauds + 2))
    ones = np.array([1.0] * (weights - free) + [0.0] * free)

    def loss(weight_W: Floats) -> tuple[float, Floats]:
        logit_N = columns_NW @ weight_W
        excess_N = 1.0 / (1.0 + np.exp(-logit_N)) - target_N
        away_W = (weight_W - ones) * RIDGE * (ones > 0)
        value = float(np.logaddexp(0, logit_N).sum() - target_N @ logit_N) + 0.5 * float(away_W @ (weight_W - ones))
        return value / many, (columns_NW.T @ excess_N + away_W) / many

    bounds = [(0.0, None)] * (weights - free) + [(None, None)] * free
    found = minimize(loss, ones, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-14})
    return np.asarray(found.x)


def _curve(grid_Q: Floats, logit_Q: Floats, fraud_N: Bools) -> Calibration:
    """Knots at these logits of the score, without those that a straight line replaces."""
    most = 1.0 - 1.0 / (int(fraud_N.sum()) + 2)
    score_Q = 1.0 / (1.0 + np.exp(-grid_Q))
    probability_Q = np.minimum(1.0 / (1.0 + np.exp(-logit_Q)), most)
    kept = [0]
    for q in range(2, len(grid_Q)):
        between = np.arange(kept[-1] + 1, q)
        line = np.interp(score_Q[between], score_Q[[kept[-1], q]], probability_Q[[kept[-1], q]])
        if (np.abs(line - probability_Q[between]) > STRAIGHT * probability_Q[between]).any():
            kept.append(q - 1)
    kept.append(len(grid_Q) - 1)
    return Calibration(tuple(score_Q[kept].tolist()), tuple(np.maximum.accumulate(probability_Q[kept]).tolist()))
