"""What one turn of the loop learns from and decides by, gathered in one replay.

    … older, a share ┤ window, in full ──────────────┤ maturity ├ now
                                        ┤ holdout ───┤            half of the entities, by hash, are held back

An event is used once the labels' maturity has passed since it. In the newest matured days some entities are held back:
neither champion nor challenger learns from them while they are the newest, as which entities those are never changes.
So a challenger learns from days up to the newest matured one, and is compared on those same days, with other entities.
Later, when they are no longer the newest, the held-back events are learnt from, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, to_iso
from models.events import EventBatch
from models.features.encoded import Encoded
from models.hashing import hash_ids
from models.pipeline.spec import Pipeline
from training.dataset import Part, sampled
from training.errors import TrainingError
from training.replay import replay
from training.source import Source
from training.verdicts import Verdicts, resolve

__all__ = ["HELD_BACK", "Held", "Material", "Plan", "gather", "held_back", "make_plan"]

HELD_BACK = "held-back"  # what is mixed into an entity's name to say whether it is held back
SEED = 6
LEAST = 2  # frauds to learn from: one has no pattern

Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Borders in epoch milliseconds. start: of what is learnt from at all; from_ms: of what is read; share: of the
    entities that are held back."""

    from_ms: int | None
    window_ms: int
    holdout_ms: int
    matured_ms: int
    end_ms: int
    share: float

    @property
    def days(self) -> float:
        """Of the holdout, as if all entities were in it."""
        return (self.matured_ms - self.holdout_ms) / DAY_MS * self.share

    def describe(self) -> dict[str, Any]:
        names = ("window", "holdout", "matured", "end")
        return {name: to_iso(getattr(self, f"{name}_ms")) for name in names} | {"held_back": self.share}


@dataclass(frozen=True, slots=True)
class Held:
    """The held-back events, with their windows and verdicts, and the plan that says which these are."""

    part: Part
    plan: Plan

    def __len__(self) -> int:
        return len(self.part)


@dataclass(frozen=True, slots=True)
class Material:
    """What is learnt from, and what is decided by."""

    train: Part
    held: Held
    plan: Plan


def make_plan(pipeline: Pipeline, first_ms: int, end_ms: int) -> Plan:
    """The plan of a history that begins at `first_ms`, seen at `end_ms`. Raises TrainingError when it is too short."""
    learning = pipeline.learning
    matured_ms = end_ms - pipeline.labels.maturity_ms
    holdout_ms = matured_ms - learning.holdout_ms
    if holdout_ms <= first_ms:
        raise TrainingError(
            f"nothing to learn from: the history begins {to_iso(first_ms)}, and at {to_iso(end_ms)} with maturity "
            f"{pipeline.labels.maturity} and holdout {learning.holdout} learning ends {to_iso(holdout_ms)}: expected a "
            "longer history"
        )
    window_ms = max(first_ms, matured_ms - learning.window_ms)
    reach_ms = window_ms - learning.warm_up_ms  # what is older is neither replayed nor needed for a state
    return Plan(
        from_ms=reach_ms if reach_ms > first_ms else None, window_ms=window_ms, holdout_ms=holdout_ms,
        matured_ms=matured_ms, end_ms=end_ms, share=learning.holdout_share,
    )  # fmt: skip


def held_back(entities: list[str], share: float) -> NDArray[np.bool_]:
    """Which entities are held back: by their names alone, today as in a year."""
    return sampled(hash_ids([f"{HELD_BACK}\0{entity}" for entity in entities]), share, SEED)


def gather(history: Source, plan: Plan, *, also: frozenset[str] = frozenset(), report: Report | None = None,
           ) -> tuple[Material, dict[str, Encoded]]:  # fmt: skip
    """Replay what was known at the plan's end. also: ids of events whose windows are wanted besides, given back by id.

    Raises TrainingError when there are no frauds to learn from, or nothing held back to decide by.
    """
    known = history.known_by(plan.end_ms)
    collector = _Collector(history.pipeline, plan, resolve(known, history.pipeline.learning.sources), known, also)
    for chunk in replay(known, collector.wanted, report=report, from_ms=plan.from_ms):
        collector.add(chunk.encoded, chunk.batch)
    return collector.material(), collector.extra


class _Collector:
    """Sorts the windows of a replay into what is learnt from and what is held back."""

    def __init__(self, pipeline: Pipeline, plan: Plan, verdicts: Verdicts, known: Source, also: frozenset[str]) -> None:
        self.plan, self.verdicts, self.also = plan, verdicts, also
        self.older = pipeline.learning.older
        recent = known.count_events(plan.window_ms, plan.matured_ms)
        older = known.count_events(plan.from_ms, plan.window_ms) * self.older
        self.share = min(1.0, pipeline.learning.events / max(recent + older, 1))
        self.train: list[Part] = []
        self.held: list[Part] = []
        self.extra: dict[str, Encoded] = {}

    def wanted(self, batch: EventBatch) -> NDArray[np.bool_]:
        train_M, held_M = self._members(batch)
        return train_M | held_M | self._also(batch)

    def add(self, encoded: Encoded, batch: EventBatch) -> None:
        train_M, held_M = self._members(batch)
        if train_M.any():
            self.train.append(replace(self._part(encoded, batch, train_M, self.share), event_id=None))
        if held_M.any():
            self.held.append(self._part(encoded, batch, held_M, 1.0))
        for i in np.flatnonzero(self._also(batch)).tolist():
            self.extra[batch.event_id[i]] = encoded.take(slice(i, i + 1))

    def material(self) -> Material:
        frauds = sum(int(part.fraud_N.sum()) for part in self.train)
        if frauds < LEAST:
            raise TrainingError(
                f"{frauds} frauds to learn from before {to_iso(self.plan.matured_ms)}: expected {LEAST}"
            )
        if not self.held:
            raise TrainingError(
                f"no event is held back after {to_iso(self.plan.holdout_ms)}: expected some to decide by"
            )
        return Material(Part.concatenate(self.train), Held(Part.concatenate(self.held), self.plan), self.plan)

    def _members(self, batch: EventBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which events are learnt from, and which are held back."""
        plan, time_M = self.plan, batch.time_M
        newest_M = (time_M >= plan.holdout_ms) & (time_M < plan.matured_ms)
        held_M = newest_M.copy()
        if newest_M.any():
            index = np.flatnonzero(newest_M)
            held_M[index] = held_back([batch.entity[i] for i in index.tolist()], plan.share)
        kept_M = self.verdicts.is_fraud(batch.event_id) | sampled(batch.id_hash_M, self.share, SEED)
        # of both kinds alike: the prior of what is learnt from stays that of its days
        kept_M &= (time_M >= plan.window_ms) | sampled(~batch.id_hash_M, self.older, SEED)
        train_M = kept_M & (time_M < plan.matured_ms) & ~held_M & ~self.verdicts.is_left_out(batch.event_id)
        return train_M, held_M

    def _also(self, batch: EventBatch) -> NDArray[np.bool_]:
        if not self.also:
            return np.zeros(len(batch), dtype=bool)
        return np.fromiter((i in self.also for i in batch.event_id), dtype=bool, count=len(batch))

    def _part(self, encoded: Encoded, batch: EventBatch, member_M: NDArray[np.bool_], share: float) -> Part:
        index = np.flatnonzero(member_M)
        ids = [batch.event_id[i] for i in index.tolist()]
        entity = [batch.entity[i] for i in index.tolist()]
        return Part(
            encoded.take(index), self.verdicts.is_fraud(ids), entity, batch.time_M[index], share,
            self.verdicts.weight(ids), ids,
        )  # fmt: skip
