"""When a score becomes an alert, and what the alert is called.

The threshold is on the score, not the probability: isotonic calibration has plateaus, on which no budget
could be met.
"""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["alert_id", "decide", "threshold_for_budget"]


def threshold_for_budget(scores: NDArray[np.float32], days: float, alerts_per_day: float) -> float:
    """The lowest score at which at most `alerts_per_day` of these events a day become alerts.

    scores: float32, of all events of a period of `days` days. Events that tie at the border are left out
    together, so the budget is never exceeded on this period. A budget for every event gives the lowest score;
    a budget of less than one alert gives a threshold just above the highest. Raises ValueError.

    >>> threshold_for_budget(np.array([0.1, 0.9, 0.8, 0.8], np.float32), days=1, alerts_per_day=2)
    0.8999999761581421
    """
    if len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(f"threshold_for_budget: {len(scores)} scores: expected at least one, all finite")
    if not (days > 0 and alerts_per_day >= 0):
        raise ValueError(
            f"threshold_for_budget: days = {days}, alerts_per_day = {alerts_per_day}: "
            "expected days above zero and a budget that is not negative"
        )
    budget = int(min(days * alerts_per_day, len(scores)))
    ordered = np.sort(scores.astype(np.float32))[::-1]
    # The score that no longer fits; everything strictly above it does.
    if budget == len(ordered):
        return float(ordered[-1])
    above = ordered[ordered > ordered[budget]]
    return float(above[-1]) if len(above) else float(np.nextafter(ordered[0], np.float32(np.inf)))


def decide(score_B: NDArray[np.float32], threshold: float) -> NDArray[np.bool_]:
    """alert_B: True where the score has reached the threshold."""
    return score_B >= np.float32(threshold)


def alert_id(pipeline: str, event_id: str, detector: str) -> str:
    """32 hex digits that are the same for every repeat of an alert, on any worker.

    >>> alert_id("payments", "t-1", "gru") == alert_id("payments", "t-1", "gru")
    True
    """
    # NUL cannot be in a pipeline's or a detector's name, so no two triples join to the same text.
    return xxhash.xxh3_128_hexdigest(f"{pipeline}\0{detector}\0{event_id}".encode())
