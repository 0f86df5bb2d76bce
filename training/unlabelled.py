"""A bundle without labels: for `surprise`, which has nothing to fit but its threshold, and for `surprise-gru` and so
on, whose trunk learns from the whole fleet what comes next.

The history is replayed through the one feature path and scored. The threshold is the lowest at which episodes (or,
without episodes, events) of that past stay within the pipeline's budget a day, and at which no more than a twentieth of
the events reach it: a budget that is larger than the fleet has faults for is not used up. If some events are labelled,
the metrics say how they rank.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.clock import DAY_MS, to_iso
from models.detectors import ForecastDetector, build_detector
from models.engines import scores_of
from models.engines.torch_engine import TorchEngine, detector_of
from models.episodes import OPEN, advance_episodes, empty_episodes
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.hashing import hash_ids
from models.pipeline.spec import Pipeline
from models.policy import threshold_for_budget
from training.dataset import sampled
from training.errors import TrainingError
from training.fit import Recipe
from training.forecast import MOST_WINDOWS, fit_forecast, scale_evidence
from training.metrics import average_precision, roc_auc
from training.replay import replay
from training.source import Source

__all__ = ["Past", "episode_threshold", "from_past"]

GOLDEN_EACH = 16  # of the strangest and of the newest windows
SCALED_ON = 20_000  # windows
CANDIDATES = 400  # thresholds that are tried
OTHERS = 0.25  # of the entities are not learnt from, only measured
FEW_KNOWN = 1000  # windows of known ones among them, at least
MOST = 0.05  # of the events may reach it: with more, what is strange would be usual

DEFAULT = Recipe()

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Past:
    """N scored events in the order of the clock. owner_N: places among the entities. time_N: epoch ms. score_N in
    [0, 1]. known_N: where enough was known of the entity. fraud_N: where the last verdict says so."""

    owner_N: NDArray[np.int64]
    time_N: NDArray[np.int64]
    score_N: NDArray[np.float32]
    known_N: NDArray[np.bool_]
    fraud_N: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.score_N)

    @property
    def days(self) -> float:
        """From the first event of which enough was known to the last."""
        time_N = self.time_N[self.known_N]
        return max(int(time_N.max() - time_N.min()), 1) / DAY_MS


def from_past(
    history: Source,
    out: Path,
    *,
    days: float | None = None,
    warm_up_ms: int | None = None,
    recipe: Recipe = DEFAULT,
    start: Bundle | None = None,
    report: Report | None = None,
) -> Bundle:
    """Learn from a history, score it and write a bundle to `out`.

    days: the last of the history, from which is learnt and by which the threshold is set, None for all. warm_up_ms: how
    long before these the replay begins, None for the history's beginning; it has to be long enough for most entities to
    be known. start: a bundle whose trunk is learnt on, else a new one. Raises TrainingError when no entity has events
    enough, BundleError as `write_bundle` does.
    """
    began, pipeline, range_ = time.monotonic(), history.pipeline, _Range.of(history, days, warm_up_ms)
    tell = report or (lambda *_: None)
    spec = pipeline.detector
    torch.manual_seed(recipe.seed)
    detector = build_detector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    learnt: dict[str, Any] = {"started_from": None if start is None else start.version}
    if isinstance(detector, ForecastDetector):
        some, others = _sample(history, range_, recipe, tell)
        if start is None:
            detector.fit_scaler(some)
        else:
            detector = _taught(start, spec.architecture)
        learnt |= (
            asdict(recipe)
            | {"windows": len(some)}
            | fit_forecast(detector, some, recipe, lambda epoch, note: tell("train", epoch, recipe.epochs, note))
        )
        scale_evidence(detector, others)
    past, windows = _score(history, TorchEngine(detector.eval()), range_, tell)
    threshold = episode_threshold(pipeline, past)
    if not isinstance(detector, ForecastDetector):
        detector.fit_scaler(windows.some)
    return write_bundle(
        out, pipeline, detector, calibration=Calibration.identity(), threshold=threshold,
        metrics=_metrics(pipeline, past, threshold),
        training={
            "labels": "none", "events": len(past), "start": to_iso(int(past.time_N.min())),
            "end": to_iso(int(past.time_N.max())), **learnt, "seconds": round(time.monotonic() - began, 1),
        },
        golden=windows.golden,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Range:
    """Events from since_ms on are looked at; the replay begins at from_ms, None: with the history."""

    since_ms: float
    from_ms: int | None

    def __str__(self) -> str:
        return f"since {to_iso(int(self.since_ms))}" if np.isfinite(self.since_ms) else "at all"

    @staticmethod
    def of(history: Source, days: float | None, warm_up_ms: int | None) -> _Range:
        last_ms = history.last_clock_ms("events")
        if days is None or last_ms is None:
            return _Range(-np.inf, None)
        since_ms = last_ms - days * DAY_MS
        return _Range(since_ms, None if warm_up_ms is None else int(since_ms) - warm_up_ms)


def _taught(start: Bundle, architecture: str) -> ForecastDetector:
    detector = detector_of(start)
    if not isinstance(detector, ForecastDetector) or detector.architecture != architecture:
        raise TrainingError(
            f"{start.version} has architecture {start.info.architecture}: expected {architecture}, as in the pipeline "
            "file, to learn on from it"
        )
    return detector


def _sample(history: Source, range_: _Range, recipe: Recipe, tell: Report) -> tuple[Encoded, Encoded]:
    """Windows of a seeded share of the events, without those that are known to be bad: to learn from, and of other
    entities to measure against, since what is learnt by heart is never strange. Of few entities both are the same."""
    frauds, since_ms = history.frauds(range_.from_ms), range_.since_ms
    share = min(1.0, min(MOST_WINDOWS, recipe.max_legit) / max(history.count_events(range_.from_ms), 1))
    parts: list[Encoded] = []
    other: list[NDArray[np.bool_]] = []
    for chunk in replay(
        history, lambda batch: (batch.time_M >= since_ms) & sampled(batch.id_hash_M, share, recipe.seed),
        report=lambda done, total: tell("replay", done, total, ""), from_ms=range_.from_ms,
    ):  # fmt: skip
        good_B = np.array([event_id not in frauds for event_id in chunk.batch.event_id], np.bool_)
        parts.append(chunk.encoded.take(good_B))
        other.append(sampled(hash_ids(chunk.batch.entity), OTHERS, recipe.seed)[good_B])
    if not parts:
        raise TrainingError(f"{history.pipeline.name}: no event {range_}: expected some to learn from")
    windows, other_B = Encoded.concatenate(parts), np.concatenate(other)
    known = Layout(history.pipeline).inputs.context.index("surprise.known")
    if int((windows.context_BC[other_B, known] >= 1.0).sum()) < FEW_KNOWN:
        return windows, windows
    return windows.take(~other_B), windows.take(other_B)


def episode_threshold(pipeline: Pipeline, past: Past) -> float:
    """The lowest threshold, of those tried, at which the past stays within the budget; above it, all others do."""
    budget, score_N = pipeline.policy.alerts_per_day, past.score_N[past.known_N]
    if not pipeline.episodes.calm:
        return threshold_for_budget(score_N, past.days, budget)
    shares = 1.0 - np.geomspace(min(1.0 / len(score_N), MOST), MOST, CANDIDATES)
    best = float(np.nextafter(score_N.max(), np.float32(2)))
    for candidate in np.unique(np.quantile(score_N, shares))[::-1].tolist():
        if _openings(pipeline, past, candidate) > budget * past.days:
            break
        best = candidate
    return best


def _openings(pipeline: Pipeline, past: Past, threshold: float) -> int:
    held_N, ids = empty_episodes(int(past.owner_N.max()) + 1), np.zeros((len(past), 2), np.uint64)
    score_N = np.where(past.known_N, past.score_N, np.float32(0.0))
    turns = advance_episodes(pipeline.episodes, held_N, past.owner_N, past.time_N, score_N, threshold, ids)
    return int((turns.kind_A == OPEN).sum())


@dataclass(frozen=True, slots=True)
class _Windows:
    """some: spread over the past, for the scaler. golden: the strangest and the newest."""

    some: Encoded
    golden: Encoded


def _score(history: Source, engine: TorchEngine, range_: _Range, tell: Report) -> tuple[Past, _Windows]:
    inputs, places, frauds = engine.inputs, dict[str, int](), history.frauds(range_.from_ms)
    known, since_ms = inputs.context.index("surprise.known"), range_.since_ms
    parts: list[tuple[NDArray[Any], ...]] = []
    some: list[Encoded] = []
    strangest, high = cast(Encoded | None, None), np.zeros(0, np.float32)
    newest: Encoded | None = None
    keep = max(1, -(-history.count_events(range_.from_ms) // SCALED_ON))
    for chunk in replay(
        history, lambda batch: batch.time_M >= since_ms, report=lambda done, total: tell("replay", done, total, ""),
        from_ms=range_.from_ms,
    ):  # fmt: skip
        score_B = scores_of(engine.logits(chunk.encoded))
        owner_B = np.array([places.setdefault(entity, len(places)) for entity in chunk.batch.entity])
        fraud_B = np.array([event_id in frauds for event_id in chunk.batch.event_id])
        known_B = chunk.encoded.context_BC[:, known] >= 1.0
        parts.append((owner_B, chunk.batch.time_M, score_B, known_B, fraud_B))
        some.append(chunk.encoded.take(np.flatnonzero(known_B)[::keep]))
        newest = chunk.encoded.take(np.arange(max(0, len(score_B) - GOLDEN_EACH), len(score_B)))
        strangest, high = _strangest(chunk.encoded, score_B, strangest, high)
    if not parts or not any(len(encoded) for encoded in some):
        raise TrainingError(
            f"{history.pipeline.name}: {history.count_events()} events, no entity with as many as surprise.learn = "
            f"{history.pipeline.surprise.learn}: expected a longer history"
        )
    assert strangest is not None
    assert newest is not None
    golden = Encoded.concatenate([strangest, newest])
    return Past(*(np.concatenate(column) for column in zip(*parts, strict=True))), _Windows(
        Encoded.concatenate(some), golden
    )


def _strangest(
    encoded: Encoded, score_B: NDArray[np.float32], before: Encoded | None, high: NDArray[np.float32]
) -> tuple[Encoded, NDArray[np.float32]]:
    """The highest of what was kept and of these windows, and their scores."""
    every = encoded if before is None else Encoded.concatenate([before, encoded])
    scores = np.concatenate([high, score_B])
    kept = np.argsort(-scores, kind="stable")[:GOLDEN_EACH]
    return every.take(kept), scores[kept]


def _metrics(pipeline: Pipeline, past: Past, threshold: float) -> dict[str, Any]:
    alert_N = past.score_N >= np.float32(threshold)
    openings = _openings(pipeline, past, threshold) if pipeline.episodes.calm else int(alert_N.sum())
    facts: dict[str, Any] = {
        "alerts_per_day": openings / past.days, "share_at_threshold": float(alert_N[past.known_N].mean()),
        "events": len(past), "entities": int(past.owner_N.max()) + 1, "share_known": float(past.known_N.mean()),
        "frauds": int(past.fraud_N.sum()),
    }  # fmt: skip
    if facts["frauds"]:
        fraud_N, score_N = past.fraud_N[past.known_N], past.score_N[past.known_N]
        facts |= {"average_precision": average_precision(fraud_N, score_N), "roc_auc": roc_auc(fraud_N, score_N)}
    return facts
