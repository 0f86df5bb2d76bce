"""The loop on a history, as if its days were passing now: what would it have been worth?

At the start a first champion is trained, or taken as it is; then the loop's own turns run at every step on what was
known by then, labels that had not arrived hidden, with the same gate and a registry of its own. At last all events from
the start on is scored twice, in one replay: by the frozen first champion, and by whoever was champion at its time.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clock import to_iso
from models.engines import EngineName
from models.events import EventBatch
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import Scorer, load_scorer
from training.errors import TrainingError
from training.loop.cycle import Outcome, Turn, described
from training.metrics import average_precision
from training.replay import replay
from training.source import Source

__all__ = ["Rehearsal", "rehearse"]

Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """From `start_ms` to `end_ms` a turn every `every_ms`. champion: the folder of the bundle that is frozen, None to
    train it at the start."""

    pipeline: Pipeline
    start_ms: int
    end_ms: int
    every_ms: int
    work: Path
    champion: Path | None = None
    threads: int = 2
    engine: EngineName = "auto"

    def steps(self) -> list[int]:
        """When a turn runs, the start included."""
        return list(range(self.start_ms, self.end_ms, self.every_ms))


def rehearse(history: Source, plan: Rehearsal, report: Report | None = None) -> dict[str, Any]:
    """Every step's decision and average precision, frozen and with the loop. Raises TrainingError and BundleError."""
    if plan.end_ms - plan.start_ms < plan.every_ms:
        raise TrainingError(
            f"from {to_iso(plan.start_ms)} to {to_iso(plan.end_ms)} there is no whole step: expected one"
        )
    tell = report or (lambda *_: None)
    registry, served, decisions = Registry(plan.work / "registry"), [], []
    frozen = _first(history, plan, registry, tell)
    for number, now_ms in enumerate(plan.steps()):
        tell("step", number, len(plan.steps()), to_iso(now_ms)[:10])
        if number:  # the first champion is as new as can be
            outcome = _turn(plan, _champion(plan, registry), now_ms).run(history, tell)
            decisions.append(described(outcome.decision, "rehearsal", now_ms) | {"seconds": outcome.seconds})
            _settle(plan, registry, outcome)
        served.append(_version(plan, registry))
    steps = _measure(history, plan, registry, frozen, served, tell)
    return _summary(steps, decisions)


def _first(history: Source, plan: Rehearsal, registry: Registry, tell: Report) -> str:
    folder = plan.champion
    if folder is None:
        folder = _turn(plan, None, plan.start_ms).run(history, tell).bundle
    assert folder is not None
    version = registry.publish(folder)
    registry.promote(plan.pipeline.name, version, "first champion")
    return version


def _turn(plan: Rehearsal, champion: Path | None, now_ms: int) -> Turn:
    return Turn(plan.pipeline, champion, now_ms, plan.work / "bundles", plan.threads, plan.engine)


def _settle(plan: Rehearsal, registry: Registry, outcome: Outcome) -> None:
    if outcome.passed and outcome.bundle is not None:
        registry.promote(plan.pipeline.name, registry.publish(outcome.bundle), outcome.decision.detail)
    shutil.rmtree(plan.work / "bundles", ignore_errors=True)


def _champion(plan: Rehearsal, registry: Registry) -> Path:
    return registry.path(plan.pipeline.name, _version(plan, registry))


def _version(plan: Rehearsal, registry: Registry) -> str:
    version = registry.champion(plan.pipeline.name)
    assert version is not None
    return version


def _measure(
    history: Source, plan: Rehearsal, registry: Registry, frozen: str, served: list[str], tell: Report
) -> list[dict[str, Any]]:
    """Average precision of each step, by the truth, whenever it arrived."""
    borders = [*plan.steps(), plan.end_ms]
    scorers: dict[str, Scorer] = {}
    for version in {frozen, *served}:
        scorers[version] = load_scorer(registry.path(plan.pipeline.name, version), plan.pipeline, plan.engine)
    frauds, found = history.frauds(), _Found(len(served))

    def inside(batch: EventBatch) -> NDArray[np.bool_]:
        return np.asarray((batch.time_M >= plan.start_ms) & (batch.time_M < plan.end_ms))

    for chunk in replay(history, inside, report=lambda done, total: tell("measure", done, total, "")):
        fraud_N = np.fromiter((i in frauds for i in chunk.batch.event_id), dtype=bool, count=len(chunk.batch))
        step_N = np.searchsorted(borders, chunk.batch.time_M, side="right") - 1
        for step in np.unique(step_N).tolist():
            own = step_N == step
            encoded = chunk.encoded.take(own)
            before = scorers[frozen].score(encoded).score_B
            now = before if served[step] == frozen else scorers[served[step]].score(encoded).score_B
            found.add(step, fraud_N[own], before, now)
    return [
        {"from": to_iso(low), "champion": version, **found.of(step)}
        for step, ((low, _), version) in enumerate(zip(itertools.pairwise(borders), served, strict=True))
    ]


class _Found:
    """Verdicts and both scores of the events of each step."""

    def __init__(self, steps: int) -> None:
        self.parts: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in range(steps)]

    def add(self, step: int, *columns: NDArray[Any]) -> None:
        self.parts[step].append(columns)

    def of(self, step: int) -> dict[str, Any]:
        if not self.parts[step]:
            return {"events": 0, "frauds": 0, "frozen": float("nan"), "loop": float("nan")}
        fraud_N, frozen_N, loop_N = (np.concatenate(column) for column in zip(*self.parts[step], strict=True))
        return {"events": len(fraud_N), "frauds": int(fraud_N.sum()), "frozen": average_precision(fraud_N, frozen_N),
                "loop": average_precision(fraud_N, loop_N)}  # fmt: skip


def _summary(steps: list[dict[str, Any]], decisions: list[dict[str, Any]]) -> dict[str, Any]:
    frozen, loop = (float(np.nanmean([step[name] for step in steps])) for name in ("frozen", "loop"))
    worst = min((step["loop"] - step["frozen"] for step in steps if np.isfinite(step["loop"])), default=float("nan"))
    return {
        "average_precision": {"frozen": frozen, "loop": loop, "ratio": loop / frozen, "difference": loop - frozen,
                              "worst_step": worst},
        "promoted": sum(decision["passed"] for decision in decisions), "turns": len(decisions),
        "steps": steps, "decisions": decisions,
    }  # fmt: skip
