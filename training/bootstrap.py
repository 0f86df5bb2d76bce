"""How far a figure could be off: bootstrap intervals that draw entities, not events.

Events of one card resemble each other: drawing them one by one would promise more than the data holds (Field and
Welsh, "Bootstrapping clustered data", JRSS B 2007). Everything is seeded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Difference", "Interval", "ap_interval", "mean_interval", "paired_difference", "weighted_ap"]

DRAWS = 200
LEVEL = 0.95
MIN_FRAUDS = 2  # one fraud's interval would be that of its own rank

Scores = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95% interval; low and high are NaN where the data does not tell."""

    value: float
    low: float
    high: float


def mean_interval(value_N: NDArray[np.float64], entity_N: Sequence[str], *, seed: int = 0) -> Interval:
    """The mean of values, drawn by entity. NaN without values."""
    if len(value_N) == 0:
        return Interval(*(3 * (float("nan"),)))
    place_N, times = _entities(entity_N), len(value_N)
    means = [float(np.average(value_N, weights=w_N)) for w_N in _weights(place_N, seed) if w_N.any()]
    return _interval(float(value_N.sum() / times), means)


def ap_interval(
    fraud_N: NDArray[np.bool_], score_N: Scores, entity_N: Sequence[str], *, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Average precision, drawn by entity; NaN without a fraud, no interval for fewer than two."""
    if not fraud_N.any():
        return Interval(*(3 * (float("nan"),)))
    order, ends = _ranks(score_N)
    fraud_R, place_R = fraud_N[order].astype(np.float64), _entities(entity_N)[order]
    value = _ap(fraud_R, np.ones(len(order)), ends)
    if int(fraud_N.sum()) < MIN_FRAUDS:
        return Interval(value, float("nan"), float("nan"))
    return _interval(value, [_ap(fraud_R, w_R, ends) for w_R in _weights(place_R, seed, draws)])


def weighted_ap(fraud_N: NDArray[np.bool_], score_N: Scores, weight_N: NDArray[np.float64]) -> float:
    """Average precision of a sample whose events stand for `weight_N` events each. NaN without a fraud."""
    order, ends = _ranks(score_N)
    return _ap(fraud_N[order].astype(np.float64), weight_N[order], ends)


def _ranks(score_N: Scores) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order from the highest score, and where in it each distinct score ends."""
    order = np.argsort(-score_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    return order, ends


def _ap(fraud_R: NDArray[np.float64], weight_R: NDArray[np.float64], ends: NDArray[np.int64]) -> float:
    hits, alerts = np.cumsum(fraud_R * weight_R)[ends], np.cumsum(weight_R)[ends]
    if len(hits) == 0 or hits[-1] <= 0:
        return float("nan")
    gained = np.diff(hits, prepend=0.0) / hits[-1]
    return float(np.sum(gained * hits / np.maximum(alerts, 1e-300)))


def _entities(entity_N: Sequence[str]) -> NDArray[np.int64]:
    """A number for each entity, from 0; in the order in which they come."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in entity_N], dtype=np.int64)


def _weights(place_N: NDArray[np.int64], seed: int, draws: int = DRAWS) -> Iterator[NDArray[np.float64]]:
    """How often each event is drawn when its entities are, with replacement."""
    rng, count = np.random.default_rng(seed), int(place_N.max()) + 1
    for _ in range(draws):
        yield np.bincount(rng.integers(0, count, count), minlength=count)[place_N].astype(np.float64)


def _interval(value: float, drawn: list[float]) -> Interval:
    finite = np.array([d for d in drawn if np.isfinite(d)])
    if len(finite) < len(drawn) / 2 or len(finite) == 0:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(value, low, high)


@dataclass(frozen=True, slots=True)
class Difference:
    """How much one ranking is better than another on the same events, and in which share of the draws it is."""

    interval: Interval
    above: float


def paired_difference(
    fraud_N: NDArray[np.bool_], first_N: Scores, second_N: Scores, entity_N: Sequence[str], *, seed: int = 0
) -> Difference:
    """Average precision of the second scores less that of the first, the same entities drawn for both.

    A draw in which both are alike counts half. NaN without a fraud, and of no use (above = 0) for fewer than two.
    """
    if int(fraud_N.sum()) < MIN_FRAUDS:
        return Difference(Interval(*(3 * (float("nan"),))), 0.0)
    place_N = _entities(entity_N)
    sides = []
    for score_N in (first_N, second_N):
        order, ends = _ranks(score_N)
        sides.append((order, ends, fraud_N[order].astype(np.float64)))

    def gain(weight_N: NDArray[np.float64]) -> float:
        first, second = (_ap(fraud_R, weight_N[order], ends) for order, ends, fraud_R in sides)
        return second - first

    drawn = np.array([gain(weight_N) for weight_N in _weights(place_N, seed)])
    drawn = drawn[np.isfinite(drawn)]
    above = float(((drawn > 0) + 0.5 * (drawn == 0)).mean()) if len(drawn) else 0.0
    return Difference(_interval(gain(np.ones(len(fraud_N))), drawn.tolist()), above)
