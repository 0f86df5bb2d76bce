"""Which events a model is trained on, checked on, and calibrated on: split by time, labels matured.

    … train ──────────┤ gap ├ validation ┤ holdout ┤ maturity ├ end

An event is used once `labels.maturity` has passed since it, when no verdict counts as legitimate. Between the
training and validation lies a gap as long: on the first day of validation a model in production would know no
younger label. Validation chooses the epoch; the holdout, newest and untouched by that choice, gives calibration,
threshold and the reported metrics. All frauds are trained on, of the legitimate a seeded share.

A refit trains once more, on everything before the holdout, for as many epochs as validation has chosen: the newest
matured days say most about the next. The holdout then follows training without a gap, which flatters its metrics a
little; a model in production is older than that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, to_iso
from models.events import EventBatch
from models.features.encoded import Encoded
from training.errors import TrainingError
from training.replay import replay
from training.source import Source

__all__ = ["Dataset", "Part", "Split", "build_dataset", "plan_split", "sampled"]

PARTS = ("train", "validation", "holdout")
NEWEST = "newest"
SAMPLED = ("train", NEWEST)
MIN_FRAUDS = 10  # fewer in a part decide nothing


@dataclass(frozen=True, kw_only=True)
class Split:
    """Borders in epoch milliseconds; each part begins at its start and ends before its end."""

    train_start_ms: int
    train_end_ms: int
    validation_start_ms: int
    holdout_start_ms: int
    holdout_end_ms: int
    end_ms: int

    @property
    def holdout_days(self) -> float:
        return (self.holdout_end_ms - self.holdout_start_ms) / DAY_MS

    def part_of(self, time_M: NDArray[np.int64]) -> NDArray[np.int8]:
        """Which of PARTS each time lies in, as a place in it; -1 for none."""
        part_M = np.full(len(time_M), -1, dtype=np.int8)
        part_M[(time_M >= self.train_start_ms) & (time_M < self.train_end_ms)] = 0
        part_M[(time_M >= self.validation_start_ms) & (time_M < self.holdout_start_ms)] = 1
        part_M[(time_M >= self.holdout_start_ms) & (time_M < self.holdout_end_ms)] = 2
        return part_M

    def describe(self) -> dict[str, str]:
        return {name.removesuffix("_ms"): to_iso(ms) for name, ms in vars(self).items()}


@dataclass(frozen=True, slots=True)
class Part:
    """N events in the order of the clock, with their windows. fraud_N: bool; time_N: int64, epoch ms.

    legit_share: which share of the legitimate events of its days this is; of the frauds it is always all.
    weight_N: float32, how much each verdict counts in training; None where all count alike. event_id: None where
    nobody asks for them.
    """

    encoded: Encoded
    fraud_N: NDArray[np.bool_]
    entity: list[str]
    time_N: NDArray[np.int64]
    legit_share: float = 1.0
    weight_N: NDArray[np.float32] | None = None
    event_id: list[str] | None = None

    def __len__(self) -> int:
        return len(self.fraud_N)

    @property
    def prior(self) -> float:
        """Share of frauds among all events of its days, the legitimate that were left out included."""
        frauds = int(self.fraud_N.sum())
        return frauds / (frauds + (len(self) - frauds) / self.legit_share)

    def take(self, keep_N: NDArray[np.bool_]) -> Part:
        """The events where this is True; as a sample of both kinds alike, it keeps the prior."""
        index = np.flatnonzero(keep_N).tolist()
        entity = [self.entity[i] for i in index]
        return replace(
            self, encoded=self.encoded.take(keep_N), fraud_N=self.fraud_N[keep_N], entity=entity,
            time_N=self.time_N[keep_N], weight_N=None if self.weight_N is None else self.weight_N[keep_N],
            event_id=None if self.event_id is None else [self.event_id[i] for i in index],
        )  # fmt: skip

    @staticmethod
    def concatenate(parts: list[Part]) -> Part:
        """Parts of the same share one after another; at least one."""
        if len(parts) == 1:
            return parts[0]
        return Part(
            Encoded.concatenate([p.encoded for p in parts]),
            np.concatenate([p.fraud_N for p in parts]),
            [e for p in parts for e in p.entity],
            np.concatenate([p.time_N for p in parts]),
            parts[0].legit_share,
            None if any(p.weight_N is None for p in parts) else np.concatenate([p.weight_N for p in parts]),
            None if any(p.event_id is None for p in parts) else [i for p in parts for i in p.event_id or ()],
        )


@dataclass(frozen=True, slots=True)
class Dataset:
    """The three parts; `newest` is what a refit adds to `train`: of the gap and of validation, sampled like it."""

    split: Split
    train: Part
    validation: Part
    holdout: Part
    newest: Part | None = None


def plan_split(
    end_ms: int,
    first_ms: int,
    maturity_ms: int,
    *,
    train_ms: int | None,
    gap_ms: int,
    validation_ms: int,
    holdout_ms: int,
) -> Split:
    """The split of a history that begins at `first_ms`, seen at `end_ms`; train_ms None takes all of it.

    Raises TrainingError, with the dates, when nothing is left to train on.
    """
    holdout_end = end_ms - maturity_ms
    holdout_start = holdout_end - holdout_ms
    validation_start = holdout_start - validation_ms
    train_end = validation_start - gap_ms
    train_start = first_ms if train_ms is None else max(first_ms, train_end - train_ms)
    if train_start >= train_end:
        raise TrainingError(
            f"nothing to train on: the history begins {to_iso(first_ms)}, and with maturity, holdout, validation and "
            f"gap before {to_iso(end_ms)} training ends {to_iso(train_end)}: expected a longer history or shorter parts"
        )
    return Split(
        train_start_ms=train_start, train_end_ms=train_end, validation_start_ms=validation_start,
        holdout_start_ms=holdout_start, holdout_end_ms=holdout_end, end_ms=end_ms,
    )  # fmt: skip


def build_dataset(
    history: Source,
    split: Split,
    *,
    max_legit: int,
    seed: int,
    newest: bool = False,
    warm_up_ms: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Replay what was known at the split's end and keep the three parts' windows.

    max_legit: about this many legitimate events are kept for training. newest: also keep what a refit adds. warm_up_ms:
    how long before training the replay begins, None for the history's beginning. Raises TrainingError when a part holds
    too few frauds to learn or decide anything from.
    """
    known = history.known_by(split.end_ms)
    from_ms = None if warm_up_ms is None else split.train_start_ms - warm_up_ms
    frauds = known.frauds(from_ms)
    in_train = known.count_events(split.train_start_ms, split.train_end_ms)
    parts = _Parts(split, frauds, min(1.0, max_legit / max(in_train, 1)), seed, newest)
    for chunk in replay(known, parts.wanted, report=report, from_ms=from_ms):
        parts.add(chunk.encoded, chunk.batch)
    train, validation, holdout = (parts.join(name) for name in PARTS)
    return Dataset(split, train, validation, holdout, parts.join(NEWEST) if newest else None)


def sampled(id_hash_M: NDArray[np.uint64], share: float, seed: int) -> NDArray[np.bool_]:
    """A share of events that depends on their ids and the seed alone, not on their order or number."""
    # splitmix64's finisher (Steele, Lea, Flood 2014): neighbouring seeds choose unrelated samples
    mixed = id_hash_M ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2.0**53 < share)


class _Parts:
    """Collects the windows of each part; a part is joined once and then dropped here, to hold no second copy."""

    def __init__(self, split: Split, frauds: set[str], share: float, seed: int, newest: bool) -> None:
        self.split, self.frauds, self.share, self.seed, self.newest = split, frauds, share, seed, newest
        self.chunks: dict[str, list[Part]] = {name: [] for name in (*PARTS, NEWEST)}

    def wanted(self, batch: EventBatch) -> NDArray[np.bool_]:
        return np.asarray(np.any(list(self._members(batch).values()), axis=0))

    def add(self, encoded: Encoded, batch: EventBatch) -> None:
        """Wanted events and their windows."""
        fraud_M = _is_in(batch.event_id, self.frauds)
        for name, member_M in self._members(batch).items():
            index = np.flatnonzero(member_M)
            if len(index) > 0:
                entity = [batch.entity[i] for i in index.tolist()]
                share = self.share if name in SAMPLED else 1.0
                self.chunks[name].append(
                    Part(
                        encoded.take(index), fraud_M[index], entity, batch.time_M[index], share,
                        event_id=[batch.event_id[i] for i in index.tolist()],
                    )
                )  # fmt: skip

    def join(self, name: str) -> Part:
        chunks = self.chunks.pop(name)
        frauds = sum(int(c.fraud_N.sum()) for c in chunks)
        if frauds < MIN_FRAUDS and name in PARTS:
            events = sum(len(c) for c in chunks)
            borders = ", ".join(f"{k} {v}" for k, v in self.split.describe().items())
            raise TrainingError(
                f"{name} holds {frauds} frauds in {events} events: expected at least {MIN_FRAUDS} ({borders})"
            )
        return Part.concatenate(chunks)

    def _members(self, batch: EventBatch) -> dict[str, NDArray[np.bool_]]:
        """Which events belong to each part; one of validation may be among the newest as well."""
        time_M, part_M = batch.time_M, self.split.part_of(batch.time_M)
        kept_M = sampled(batch.id_hash_M, self.share, self.seed) | _is_in(batch.event_id, self.frauds)
        members = {name: part_M == number for number, name in enumerate(PARTS)}
        members["train"] &= kept_M
        if self.newest:
            split = self.split
            members[NEWEST] = kept_M & (time_M >= split.train_end_ms) & (time_M < split.holdout_start_ms)
        return members


def _is_in(ids: list[str], chosen: set[str]) -> NDArray[np.bool_]:
    return np.fromiter((i in chosen for i in ids), dtype=bool, count=len(ids))
