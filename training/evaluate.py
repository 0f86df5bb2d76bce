"""How good a bundle is on days it was not trained on, and whether the worker's scores say the same.

Offline scores come from replay and the worker's own scorer. Online scores come from `<pipeline>.scores` or
a file of its messages; they are joined to the same events by id, and the same metrics are computed from both.
An event may have several messages with the same score (delivery is at least once) but never none.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.clock import from_iso
from models.events import EventBatch
from models.messages import decode_score
from models.scorer import Scorer
from training.broker import read_topic
from training.errors import TrainingError
from training.metrics import (
    CARDS,
    average_precision,
    card_precision_at_k,
    expected_calibration_error,
    known_frauds_left_out,
    roc_auc,
)  # fmt: skip
from training.replay import History, replay
from training.settings import Settings

__all__ = [
    "METRICS", "OnlineScores", "Scored", "compare", "measure", "metrics_of", "offline_scores", "scores_of_file",
    "scores_of_topic", "tested",
]  # fmt: skip

METRICS = ("average_precision", "roc_auc", f"card_precision_at_{CARDS}", "expected_calibration_error")
SHOWN_IDS = 5  # of events with something wrong


@dataclass(frozen=True, slots=True)
class Scored:
    """N events of a range of time, in the order of the clock.

    time_N: int64, epoch ms. score_N: float32. probability_N: float32, calibrated.
    """

    event_id: list[str]
    entity: list[str]
    time_N: NDArray[np.int64]
    fraud_N: NDArray[np.bool_]
    score_N: NDArray[np.float32]
    probability_N: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.event_id)

    def take(self, keep_N: NDArray[np.bool_]) -> Scored:
        index = np.flatnonzero(keep_N).tolist()
        return Scored(
            [self.event_id[i] for i in index], [self.entity[i] for i in index],
            self.time_N[keep_N], self.fraud_N[keep_N], self.score_N[keep_N], self.probability_N[keep_N],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnlineScores:
    """What the worker published for a range of event time.

    scores: score and probability of each event id. messages: how many there were. repeated: ids with more than one
    message; conflicting: those whose messages differ in the score. models: versions that scored, and how often.
    """

    scores: dict[str, tuple[float, float]]
    messages: int
    repeated: set[str]
    conflicting: set[str]
    models: dict[str, int]


def offline_scores(
    history: History, scorer: Scorer, start_ms: int, end_ms: int, report: Callable[[int, int], None] | None = None
) -> Scored:
    """Replay the history and score the events with start <= event time < end. Raises TrainingError for none.

    A verdict counts here whenever it arrived: it is the truth to measure against, not an input.
    """
    times = history.event_time_M
    inside = (times >= start_ms) & (times < end_ms)
    if not inside.any():
        raise TrainingError("no event of the history lies in the evaluated range: expected other --start and --end")
    until_ms = int(history.event_clock_M[inside].max()) + 1
    frauds = history.frauds()
    parts = []

    def want(batch: EventBatch) -> NDArray[np.bool_]:
        return np.asarray((batch.time_M >= start_ms) & (batch.time_M < end_ms))

    for chunk in replay(history, want, until_ms, report):
        batch = chunk.batch
        fraud = np.fromiter((i in frauds for i in batch.event_id), dtype=bool, count=len(batch))
        scores = scorer.score(chunk.encoded)
        parts.append(
            Scored(batch.event_id, batch.entity, batch.time_M, fraud, scores.score_B, scores.probability_B)
        )  # fmt: skip
    return Scored(
        [i for p in parts for i in p.event_id],
        [e for p in parts for e in p.entity],
        np.concatenate([p.time_N for p in parts]),
        np.concatenate([p.fraud_N for p in parts]),
        np.concatenate([p.score_N for p in parts]),
        np.concatenate([p.probability_N for p in parts]),
    )


def measure(
    scored: Scored, history: History, start_ms: int, end_ms: int, *, folds: int = 1, known_ms: int | None = None
) -> dict[str, Any]:
    """Metrics of each of `folds` equal ranges of [start, end), and their means.

    known_ms: leave out events of entities with a known fraud (`metrics.known_frauds_left_out`); frauds count
    from this long before the fold's start less the labels' maturity. None leaves nothing out.
    """
    masks = tested(scored, history, start_ms, end_ms, folds=folds, known_ms=known_ms)
    results = [metrics_of(scored.take(mask_N)) for mask_N in masks]
    means = {name: float(np.mean([r[name] for r in results])) for name in METRICS}
    counts = {name: sum(r[name] for r in results) for name in ("events", "frauds")}
    return means | counts | ({"folds": results} if folds > 1 else {})


def tested(
    scored: Scored, history: History, start_ms: int, end_ms: int, *, folds: int, known_ms: int | None
) -> list[NDArray[np.bool_]]:
    """For each fold, which of the events `measure` measures in it."""
    borders = np.linspace(start_ms, end_ms, folds + 1).astype(np.int64).tolist()
    masks = []
    for low, high in itertools.pairwise(borders):
        mask_N = (scored.time_N >= low) & (scored.time_N < high)
        if known_ms is not None:
            mask_N[mask_N] = _not_known(scored.take(mask_N), history, low, high, known_ms)
        masks.append(mask_N)
    return masks


def scores_of_topic(settings: Settings, topic: str, start_ms: int, end_ms: int, until_idle_s: float) -> OnlineScores:
    """Read `<pipeline>.scores` from its beginning. Raises HistoryError."""
    return _online((r.value for r in read_topic(settings, topic, until_idle_s) if r.value), start_ms, end_ms)


def scores_of_file(path: Path, start_ms: int, end_ms: int) -> OnlineScores:
    """Read score messages from a file, one JSON object a line. Raises TrainingError."""

    def lines() -> Iterator[bytes]:
        try:
            with path.open("rb") as file:
                yield from (line for line in file if line.strip())
        except OSError as error:
            raise TrainingError(f"{path}: {error.strerror}: expected a file of score messages") from error

    return _online(lines(), start_ms, end_ms)


def compare(offline: Scored, online: OnlineScores) -> tuple[Scored, dict[str, Any]]:
    """The offline events with their online scores (those that have one), and how the two agree."""
    ids = set(offline.event_id)
    found = np.fromiter((i in online.scores for i in offline.event_id), dtype=bool, count=len(offline))
    both = offline.take(found)
    published = np.array([online.scores[i] for i in both.event_id], dtype=np.float32).reshape(-1, 2)
    score_N, probability_N = published[:, 0], published[:, 1]
    missing = [i for i, there in zip(offline.event_id, found.tolist(), strict=True) if not there]
    unexpected = sorted(online.scores.keys() - ids)
    difference = float(np.max(np.abs(score_N - both.score_N))) if len(both) else float("nan")
    facts: dict[str, Any] = {
        "messages": online.messages, "events": len(online.scores), "models": online.models,
        "max_difference": difference,
        "one_score_each": not (missing or unexpected or online.repeated),
    }  # fmt: skip
    for name, wrong in (("missing", missing), ("unexpected", unexpected), ("repeated", sorted(online.repeated)),
                        ("conflicting", sorted(online.conflicting))):  # fmt: skip
        facts[name] = len(wrong)
        if wrong:
            facts[f"{name}_ids"] = wrong[:SHOWN_IDS]
    return Scored(both.event_id, both.entity, both.time_N, both.fraud_N, score_N, probability_N), facts


def metrics_of(scored: Scored) -> dict[str, Any]:
    """METRICS, and the numbers of events and frauds."""
    cards = card_precision_at_k(scored.entity, scored.time_N, scored.fraud_N, scored.score_N, CARDS)
    values = (average_precision(scored.fraud_N, scored.score_N), roc_auc(scored.fraud_N, scored.score_N), cards,
              expected_calibration_error(scored.fraud_N, scored.probability_N))  # fmt: skip
    counts = {"events": len(scored), "frauds": int(scored.fraud_N.sum())}
    return dict(zip(METRICS, values, strict=True)) | counts


def _not_known(fold: Scored, history: History, low_ms: int, high_ms: int, known_ms: int) -> NDArray[np.bool_]:
    maturity_ms = history.pipeline.labels.maturity_ms
    times = history.event_time_M
    candidates = np.flatnonzero((times >= low_ms - maturity_ms - known_ms) & (times < high_ms))
    stream, frauds = history.pipeline.pipeline, history.frauds()
    past = history.events.select([stream.event_id, stream.entity]).take(candidates)
    fraud_N = np.fromiter((i in frauds for i in past[stream.event_id].to_pylist()), dtype=bool, count=len(candidates))
    entity = [e for e, fraud in zip(past[stream.entity].to_pylist(), fraud_N.tolist(), strict=True) if fraud]
    return known_frauds_left_out(fold.entity, fold.time_N, entity, times[candidates[fraud_N]], maturity_ms)


def _online(values: Iterable[bytes], start_ms: int, end_ms: int) -> OnlineScores:
    scores: dict[str, tuple[float, float]] = {}
    repeated: set[str] = set()
    conflicting: set[str] = set()
    models: Counter[str] = Counter()
    for value in values:
        try:
            message = decode_score(value)
            inside = start_ms <= from_iso(message.event_time) < end_ms
        except (msgspec.MsgspecError, ValueError) as error:
            raise TrainingError(f"a score message cannot be read: {error}") from error
        if not inside:
            continue
        models[message.model] += 1
        if message.event_id not in scores:
            # the first of several is the one that is measured
            scores[message.event_id] = message.score, message.probability
            continue
        repeated.add(message.event_id)
        if scores[message.event_id][0] != message.score:
            conflicting.add(message.event_id)
    return OnlineScores(scores, models.total(), repeated, conflicting, dict(models))
