"""Two models over a stretch of history: which alerts would appear, which would vanish, and what that is worth.

Both score every event of the stretch in one replay, through the one feature path, and alert at their own thresholds, or
at others that are given. The same history and bundles give the same output, byte for byte: nothing in it depends on the
clock, the machine's speed or an order of hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, to_iso
from models.events import EventBatch
from models.features.layout import Layout
from models.messages import rounded
from models.policy import decide
from models.scorer import Scorer
from training.errors import TrainingError
from training.metrics import average_precision
from training.replay import Replayed, replay
from training.source import Source

__all__ = ["Backtest", "backtest"]

DIGITS = 9  # of figures: enough for any reader, and the same text on every run
Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """Events with start <= event time < end. thresholds: of both models, None for its own. amount: a number field."""

    start_ms: int
    end_ms: int
    thresholds: tuple[float | None, float | None] = (None, None)
    amount: str | None = None


class _Side:
    """What one model has done so far. money: of the field that says what a fraud costs."""

    def __init__(self, scorer: Scorer, threshold: float | None) -> None:
        self.scorer = scorer
        self.threshold = scorer.threshold if threshold is None else threshold
        self.alerts = self.hits = 0
        self.money_alerted = self.money_caught = 0.0
        self.scores: list[NDArray[np.float32]] = []

    def take(self, chunk: Replayed, fraud_N: NDArray[np.bool_], money_N: NDArray[np.float64]) -> NDArray[np.bool_]:
        score_N = self.scorer.score(chunk.encoded).score_B
        alert_N = decide(score_N, self.threshold)
        self.scores.append(score_N)
        self.alerts += int(alert_N.sum())
        self.hits += int((alert_N & fraud_N).sum())
        self.money_alerted += float(money_N[alert_N].sum())
        self.money_caught += float(money_N[alert_N & fraud_N].sum())
        return alert_N

    def figures(self, fraud_N: NDArray[np.bool_], days: float) -> dict[str, Any]:
        frauds = int(fraud_N.sum())
        return {
            "model": self.scorer.version, "threshold": rounded(self.threshold), "alerts": self.alerts,
            "alerts_per_day": self.alerts / days, "frauds_caught": self.hits,
            "precision": self.hits / max(self.alerts, 1), "recall": self.hits / max(frauds, 1),
            "average_precision": average_precision(fraud_N, np.concatenate(self.scores)),
            "money_alerted": self.money_alerted, "money_caught": self.money_caught,
        }  # fmt: skip


def backtest(
    history: Source, first: Scorer, second: Scorer, what: Backtest, *, changes: Path | None = None,
    report: Report | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Figures of both models and of the alerts in which they differ.

    changes: a file to write those alerts to, a JSON object a line in the order of the clock. A verdict counts whenever
    it arrived. Raises TrainingError for a stretch without events, and for an amount that is no number field.
    """
    place = _place(history, what.amount)
    frauds = history.frauds()
    sides = [_Side(scorer, t) for scorer, t in zip((first, second), what.thresholds, strict=True)]
    moved: dict[str, dict[str, float]] = {name: {"alerts": 0, "frauds": 0, "money": 0.0, "fraud_money": 0.0}
                                          for name in ("appear", "vanish")}  # fmt: skip
    truth: list[NDArray[np.bool_]] = []

    def inside(batch: EventBatch) -> NDArray[np.bool_]:
        return np.asarray((batch.time_M >= what.start_ms) & (batch.time_M < what.end_ms))

    file = None if changes is None else changes.open("wb")
    try:
        for chunk in replay(history, inside, report=report):
            batch = chunk.batch
            fraud_N = np.fromiter((i in frauds for i in batch.event_id), dtype=bool, count=len(batch))
            money_N = np.zeros(len(batch)) if place is None else np.nan_to_num(batch.values_MV[:, place]).astype(float)
            before_N, after_N = (side.take(chunk, fraud_N, money_N) for side in sides)
            truth.append(fraud_N)
            for name, rows_N in (("appear", after_N & ~before_N), ("vanish", before_N & ~after_N)):
                _count(moved[name], rows_N, fraud_N, money_N)
            _write(file, batch, before_N, after_N, fraud_N, sides)
    finally:
        if file is not None:
            file.close()
    if not truth:
        raise TrainingError(
            f"no event from {to_iso(what.start_ms)} to {to_iso(what.end_ms)}: expected a stretch of the history"
        )
    fraud_N, days = np.concatenate(truth), (what.end_ms - what.start_ms) / DAY_MS
    facts = {
        "start": to_iso(what.start_ms), "end": to_iso(what.end_ms), "events": len(fraud_N),
        "frauds": int(fraud_N.sum()),
        "first": sides[0].figures(fraud_N, days), "second": sides[1].figures(fraud_N, days), **moved,
    }  # fmt: skip
    return {name: _plain(value) for name, value in facts.items()}


def _place(history: Source, amount: str | None) -> int | None:
    values = Layout(history.pipeline).values
    if amount is not None and amount not in values:
        raise TrainingError(f"amount {amount}: expected a number field, one of {', '.join(values)}")
    return None if amount is None else list(values).index(amount)


def _count(
    moved: dict[str, float], rows_N: NDArray[np.bool_], fraud_N: NDArray[np.bool_], money_N: NDArray[np.float64]
) -> None:
    moved["alerts"] += int(rows_N.sum())
    moved["frauds"] += int((rows_N & fraud_N).sum())
    moved["money"] += float(money_N[rows_N].sum())
    moved["fraud_money"] += float(money_N[rows_N & fraud_N].sum())


def _write(
    file: IO[bytes] | None, batch: EventBatch, before_N: NDArray[np.bool_], after_N: NDArray[np.bool_],
    fraud_N: NDArray[np.bool_], sides: list[_Side],
) -> None:  # fmt: skip
    for line in _lines(batch, before_N, after_N, fraud_N, sides) if file is not None else ():
        assert file is not None
        file.write(msgspec.json.encode(line) + b"\n")


def _lines(
    batch: EventBatch, before_N: NDArray[np.bool_], after_N: NDArray[np.bool_], fraud_N: NDArray[np.bool_],
    sides: list[_Side],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    first, second = (side.scores[-1] for side in sides)
    for i in np.flatnonzero(before_N != after_N).tolist():
        yield {
            "event_id": batch.event_id[i], "entity": batch.entity[i], "event_time": to_iso(int(batch.time_M[i])),
            "alert": "appears" if after_N[i] else "vanishes", "fraud": bool(fraud_N[i]),
            "first": rounded(float(first[i])), "second": rounded(float(second[i])),
        }  # fmt: skip


def _plain(value: Any) -> Any:
    """Figures as short decimals."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
