"""How good scores are: ranking, cards found per day, and whether a probability means what it says.

Plain functions of arrays; nothing here knows where the scores come from. A metric that the data does not
define (no fraud, or nothing but fraud) is NaN, never a made-up number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from models.clock import DAY_MS

__all__ = [
    "CARDS", "average_precision", "card_precision_at_k", "expected_calibration_error", "known_frauds_left_out",
    "roc_auc",
]  # fmt: skip

CARDS = 100  # of card precision: a day's work of an analyst, as published results have it

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
    order = np.argsort(probability_N, kind="stable")
    total = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        total += len(part) * abs(float(np.mean(probability_N[part])) - float(np.mean(fraud_N[part])))
    return total / len(order)
