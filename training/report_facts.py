"""The numbers behind a report's figures: curves, days, money, segments. Plain functions of arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS
from training.bootstrap import Interval, ap_interval

__all__ = [
    "Curve", "Day", "Money", "Segment", "by_deciles", "by_values", "days_of", "money_curve", "precision_recall",
    "segments",
]  # fmt: skip

POINTS = 400  # of a curve: more than a screen can show
VALUES = 10  # of a category that are shown one by one, the most frequent first
MISSING, OTHERS = "(missing)", "(others)"

Scores = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a line; at: the place on x and y that is marked, None for none."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    at: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """A day (UTC, epoch ms of its beginning): its alerts, and how many of those were frauds."""

    start_ms: int
    alerts: int
    hits: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Some of the events: how many, how many frauds, and the average precision among them."""

    name: str
    events: int
    frauds: int
    ap: Interval


@dataclass(frozen=True, slots=True)
class Money:
    """Sums of the amount over frauds: of all, of those at the threshold or above, and of those within the budget.

    curve: share of the sum caught, over alerts a day. missing: frauds without an amount, counted as nothing.
    """

    total: float
    caught: float
    at_budget: float
    missing: int
    curve: Curve

    def share(self, part: float) -> float:
        """NaN when there is nothing to catch."""
        return part / self.total if self.total > 0 else float("nan")


def precision_recall(fraud_N: NDArray[np.bool_], score_N: Scores, threshold: float) -> Curve:
    """x: recall, y: precision, from the highest score down; the mark is the threshold's. Empty without a fraud."""
    empty = np.empty(0)
    if not fraud_N.any():
        return Curve(empty, empty)
    order = np.argsort(-score_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score_N[order])), len(order) - 1)
    hits = np.cumsum(fraud_N[order])[ends]
    recall, precision = hits / fraud_N.sum(), hits / (ends + 1)
    above = score_N >= np.float32(threshold)
    caught = int((fraud_N & above).sum())
    at = (caught / int(fraud_N.sum()), caught / int(above.sum())) if above.any() else None
    keep = _thinned(recall)
    return Curve(recall[keep], precision[keep], at)


def days_of(time_N: NDArray[np.int64], alert_N: NDArray[np.bool_], fraud_N: NDArray[np.bool_]) -> list[Day]:
    """Every day from the first event's to the last event's, also those without an alert."""
    day_N = time_N // DAY_MS
    first = int(day_N.min())
    place_N, count = day_N - first, int(day_N.max()) - first + 1
    alerts = np.bincount(place_N[alert_N], minlength=count).tolist()
    hits = np.bincount(place_N[alert_N & fraud_N], minlength=count).tolist()
    return [Day((first + d) * DAY_MS, alerts[d], hits[d]) for d in range(count)]


def money_curve(
    amount_N: NDArray[np.float64], fraud_N: NDArray[np.bool_], score_N: Scores, threshold: float, at_budget: float,
    days: float,
) -> Money:  # fmt: skip
    """What alerts catch of the frauds' sum. at_budget: the threshold at which the range has its budget of alerts."""
    lost_N = np.where(fraud_N, np.nan_to_num(amount_N, nan=0.0), 0.0)
    total = float(lost_N.sum())
    caught, budget = (float(lost_N[score_N >= np.float32(t)].sum()) for t in (threshold, at_budget))
    order = np.argsort(-score_N, kind="stable")
    per_day = np.arange(1, len(order) + 1) / days
    share = np.cumsum(lost_N[order]) / total if total > 0 else np.empty(0)
    keep = np.unique(np.geomspace(1, len(order), POINTS).astype(np.int64)) - 1 if total > 0 else slice(0, 0)
    alerts = int((score_N >= np.float32(threshold)).sum())
    at = (alerts / days, caught / total) if alerts and total > 0 else None
    curve = Curve(per_day[keep], share[keep], at)
    return Money(total, caught, budget, int((fraud_N & ~np.isfinite(amount_N)).sum()), curve)


def segments(
    names: Sequence[str], place_N: NDArray[np.int64], fraud_N: NDArray[np.bool_], score_N: Scores,
    entity_N: Sequence[str], *, seed: int = 0,
) -> list[Segment]:  # fmt: skip
    """Each segment's average precision; place_N says which of `names` an event belongs to, -1 to none."""
    found = []
    for place, name in enumerate(names):
        index = np.flatnonzero(place_N == place)
        entity = [entity_N[i] for i in index.tolist()]
        ap = ap_interval(fraud_N[index], score_N[index], entity, seed=seed)
        found.append(Segment(name, len(index), int(fraud_N[index].sum()), ap))
    return found


def by_values(values: Sequence[object]) -> tuple[list[str], NDArray[np.int64]]:
    """Segments of a category's most frequent values, of the others, and of the events without one."""
    counts = Counter(str(v) for v in values if v is not None)
    shown = [v for v, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:VALUES]]
    place = {name: i for i, name in enumerate(shown)}
    names = [*shown, OTHERS, MISSING]
    place_N = np.array([len(shown) + 1 if v is None else place.get(str(v), len(shown)) for v in values], dtype=np.int64)
    return _without_empty(names, place_N)


def by_deciles(value_N: NDArray[np.float64]) -> tuple[list[str], NDArray[np.int64]]:
    """Segments of equal numbers of events by a number, and of the events without one."""
    known = np.isfinite(value_N)
    if not known.any():
        return [MISSING], np.zeros(len(value_N), dtype=np.int64)
    borders = np.unique(np.quantile(value_N[known], np.linspace(0, 1, 11)))
    inner = borders[1:-1]
    place_N = np.searchsorted(inner, value_N, side="right")
    names = [f"{low:,.4g} – {high:,.4g}" for low, high in pairwise(borders.tolist())]
    names = names or [f"{borders[0]:,.4g}"]
    place_N[~known] = len(names)
    return _without_empty([*names, MISSING], place_N)


def _without_empty(names: list[str], place_N: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
    used = np.unique(place_N)
    return [names[i] for i in used.tolist()], np.searchsorted(used, place_N)


def _thinned(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Some POINTS of a line, evenly along x, the first and last among them."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    places = np.searchsorted(x, np.linspace(x[0], x[-1], POINTS))
    return np.unique(np.concatenate([[0], np.clip(places, 0, len(x) - 1), [len(x) - 1]]))
