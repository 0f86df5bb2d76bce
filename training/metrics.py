"""How good scores are: ranking, cards found per day, and whether a probability means what it says.

Plain functions of arrays; nothing here knows where the scores come from. A metric that the data does not
define (no fraud, or nothing but fraud) is NaN, never a made-up number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from models.clock import DAY_MS

__all__ = [
    "CARDS", "Reliability", "average_precision", "brier_score", "card_precision_at_k", "expected_calibration_error",
    "known_frauds_left_out", "log_loss", "reliability", "roc_auc", "top_percentile", "wilson",
]  # fmt: skip

CARDS = 100  # of card precision: a day's work of an analyst, as published results have it
LEAST = 1e-7  # of a probability in a logarithm; a float32 that is 0 or 1 would cost infinitely much
Z95 = 1.959964  # standard deviations that hold 95 %

Scores = NDArray[np.float32] | NDArray[np.float64]


def average_precision(fraud_N: NDArray[np.bool_], score_N: Scores) -> float:
    """Area under precision over recall, as steps. NaN without a fraud."""
    if not fraud_N.any():
        return float("nan")
    return float(average_precision_score(fraud_N, score_N))


def roc_auc(fraud_N: NDArray[np.bool_], score_N: Scores) -> float:
    """Probability that a fraud scores above a legitimate event. NaN unless both kinds occur."""
    if fraud_N.all() or not fraud_N.any():
        return float("nan")
    return float(roc_auc_score(fraud_N, score_N))


def card_precision_at_k(
    entity_N: Sequence[str], time_N: NDArray[np.int64], fraud_N: NDArray[np.bool_], score_N: Scores, k: int = CARDS
) -> float:
    """Share of truly defrauded cards among the k most suspicious of a day, averaged over the days.

    A card's score for a day (UTC) is the greatest of its events'; it is defrauded when one of them is a
    fraud. A card that was found (in the k, and defrauded) leaves the following days. The divisor is always
    k, as k cards is what an analyst's day holds. NaN without events. `time_N`: epoch milliseconds.
    """
    if len(time_N) == 0:
        return float("nan")
    names, card_N = np.unique(np.asarray(entity_N, dtype=object), return_inverse=True)
    day_N = time_N // DAY_MS
    found = np.zeros(len(names), dtype=bool)
    precisions = []
    for day in np.unique(day_N):
        today = (day_N == day) & ~found[card_N]
        best = np.full(len(names), -np.inf)
        np.maximum.at(best, card_N[today], score_N[today])
        defrauded = np.zeros(len(names), dtype=bool)
        defrauded[card_N[today & fraud_N]] = True
        order = np.argsort(-best, kind="stable")[:k]
        top = order[np.isfinite(best[order])]
        hits = top[defrauded[top]]
        found[hits] = True
        precisions.append(len(hits) / k)
    return float(np.mean(precisions))


def known_frauds_left_out(
    entity_N: Sequence[str],
    time_N: NDArray[np.int64],
    past_entity_M: Sequence[str],
    past_time_M: NDArray[np.int64],
    delay_ms: int,
) -> NDArray[np.bool_]:
    """Which events stay in a test set from which customers with a known fraud are left out.

    `past_…_M` are frauds; one is known on day d (UTC) when its day lies more than the label delay, in whole
    days, before d (with 7 days: on day d - 8 or earlier). Returns True for the events that stay.
    """
    wait_days = delay_ms // DAY_MS + 1
    known_from: dict[str, int] = {}
    for entity, day in zip(past_entity_M, (past_time_M // DAY_MS + wait_days).tolist(), strict=True):
        known_from[entity] = min(day, known_from.get(entity, day))
    never = np.iinfo(np.int64).max
    from_N = np.array([known_from.get(e, never) for e in entity_N], dtype=np.int64)
    return np.asarray(time_N // DAY_MS < from_N)


def expected_calibration_error(fraud_N: NDArray[np.bool_], probability_N: Scores, bins: int = 10) -> float:
    """Mean distance between probability and fraud rate over bins of equal numbers of events.

    Equal numbers rather than equal widths: nearly all probabilities of a rare event share one narrow bin.
    """
    if len(fraud_N) == 0:
        return float("nan")
    curve = reliability(fraud_N, probability_N, bins)
    return sum(b.events * abs(b.probability - b.fraud_rate) for b in curve) / len(fraud_N)


def log_loss(fraud_N: NDArray[np.bool_], probability_N: Scores) -> float:
    """Mean negative logarithm of the probability that was given to what happened, in nats. NaN without events."""
    if len(fraud_N) == 0:
        return float("nan")
    known_N = np.clip(np.where(fraud_N, probability_N, 1.0 - probability_N).astype(np.float64), LEAST, 1.0)
    return float(-np.log(known_N).mean())


def brier_score(fraud_N: NDArray[np.bool_], probability_N: Scores) -> float:
    """Mean squared distance between probability and what happened, 0 or 1. NaN without events."""
    if len(fraud_N) == 0:
        return float("nan")
    return float(np.mean((probability_N.astype(np.float64) - fraud_N) ** 2))


def wilson(frauds: int, events: int, z: float = Z95) -> tuple[float, float]:
    """Interval for a rate of which `frauds` of `events` are known (Wilson 1927): of use also for 0 frauds.

    Raises ValueError without events.

    >>> [round(x, 4) for x in wilson(0, 10)]
    [0.0, 0.2775]
    """
    if events < 1 or not 0 <= frauds <= events:
        raise ValueError(f"wilson: {frauds} of {events}: expected at least one event, and no more frauds than events")
    rate, spread = frauds / events, z * z / events
    middle = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * float(np.sqrt(rate * (1 - rate) / events + spread / (4 * events)))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Reliability:
    """One bin of a reliability curve: mean probability, share of frauds, its 95 % interval, and how many events."""

    probability: float
    fraud_rate: float
    low: float
    high: float
    events: int


def reliability(fraud_N: NDArray[np.bool_], probability_N: Scores, bins: int = 10) -> list[Reliability]:
    """Probability against fraud rate over bins of equal numbers of events, from the lowest probability up.

    Events of equal probability may fall into two bins: the curve never hides how many there are. Without events: [].
    """
    if len(fraud_N) == 0:
        return []
    order = np.argsort(probability_N, kind="stable")
    curve = []
    for part in np.array_split(order, min(bins, len(order))):
        frauds = int(fraud_N[part].sum())
        low, high = wilson(frauds, len(part))
        mean = float(np.mean(probability_N[part], dtype=np.float64))
        curve.append(Reliability(mean, frauds / len(part), low, high, len(part)))
    return curve


def top_percentile(
    fraud_N: NDArray[np.bool_], probability_N: Scores, score_N: Scores | None = None, share: float = 0.01
) -> tuple[float, float]:
    """(mean probability, share of frauds) of the most suspicious events, at least one: where alerts come from.

    score_N: says who comes first of those with the same probability, as a curve has steps; else the order does. (NaN,
    NaN) without events.
    """
    if len(fraud_N) == 0:
        return float("nan"), float("nan")
    ranked = np.lexsort((-(probability_N if score_N is None else score_N), -probability_N))
    top = ranked[: max(1, round(share * len(fraud_N)))]
    return float(np.mean(probability_N[top], dtype=np.float64)), float(fraud_N[top].mean())
