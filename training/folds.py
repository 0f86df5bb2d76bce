"""Folds of a protocol that cannot leak: a week to test on, and what could be learnt from when it began.

One replay of the whole history serves all folds: a window knows nothing that arrived after its event (`leaks` checks
it), so it is the same whoever uses it. Which verdicts count, and which events may be trained on, is decided for each
fold by what had arrived when its test week began.

A legitimate event is kept for training by its id alone. An event that turned out to be a fraud later than that is, to
the fold, a legitimate one: it is kept if it is in that sample, not because it is a fraud.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.clock import DAY_MS
from models.events import EventBatch
from models.features.encoded import Encoded
from models.hashing import hash_ids
from training.archive import milliseconds
from training.dataset import MIN_FRAUDS, Part, Split, plan_split, sampled
from training.errors import TrainingError
from training.leaks import Make
from training.replay import History

__all__ = [
    "Fold",
    "Kept",
    "Outcome",
    "Plan",
    "Rows",
    "System",
    "Verdicts",
    "first_test_day",
    "folds_of",
    "keep_windows",
    "splits_of",
]

WEEK_MS = 7 * DAY_MS
FIRST_TEST = 129 * DAY_MS  # the handbook's first test day is its 130th


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which weeks are tested, and how what was known before is divided. first_test_ms: None as `first_test_day` says.

    gap_ms: between training and validation. Between the newest matured event and the test week lies a maturity in any
    case, so it is only for an epoch chosen under the same delay, and costs the newest of the training data.
    known_ms: frauds count as known from this long before the newest matured event. refit: what was chosen and
    calibrated on the parts is fitted again on everything that had matured.
    """

    folds: int = 4
    first_test_ms: int | None = None
    train_ms: int | None = None
    gap_ms: int = 0
    validation_ms: int = 3 * DAY_MS
    holdout_ms: int = 4 * DAY_MS
    known_ms: int = 7 * DAY_MS
    max_legit: int = 500_000
    refit: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Rows(Part):
    """A part that remembers the rows of the history it is made of."""

    row_N: NDArray[np.int64] = field(kw_only=True)

    def take(self, keep_N: NDArray[np.bool_]) -> Rows:
        index = np.flatnonzero(keep_N)
        entity = [self.entity[i] for i in index.tolist()]
        return Rows(
            self.encoded.take(index), self.fraud_N[index], entity, self.time_N[index], self.legit_share,
            row_N=self.row_N[index],
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a system made of a fold's test week: score_N and probability_N, float32; seconds of training; facts."""

    score_N: NDArray[np.float32]
    probability_N: NDArray[np.float32]
    seconds: float
    facts: dict[str, Any]


class System(Protocol):
    """Something that learns from a fold and scores its test week."""

    name: str

    def __call__(self, fold: Fold) -> Outcome: ...


class Verdicts:
    """All verdicts of a history, by the row of the event they judge."""

    def __init__(self, history: History) -> None:
        labels = history.labels
        ids = history.events[history.pipeline.pipeline.event_id].combine_chunks()
        place = pc.index_in(labels["event_id"].combine_chunks(), ids)
        found_L = np.asarray(place.is_valid())
        order = np.argsort(milliseconds(labels["label_time"]), kind="stable")
        order = order[found_L[order]]
        self.rows = len(history.events)
        self.row_L = pc.fill_null(place, 0).to_numpy().astype(np.int64)[order]
        self.clock_L = history.label_clock_M[order]
        self.fraud_L = np.asarray(labels["fraud"].to_numpy())[order]

    def frauds(self, before_ms: int | None = None) -> NDArray[np.bool_]:
        """Of each event whether the last verdict that arrived before this is fraud; None: whenever it arrived."""
        fraud_M = np.zeros(self.rows, dtype=bool)
        known_L = slice(None) if before_ms is None else self.clock_L < before_ms
        fraud_M[self.row_L[known_L]] = self.fraud_L[known_L]  # of several the last one stays
        return fraud_M

    def ever_fraud(self, before_ms: int) -> NDArray[np.bool_]:
        """Of each event whether any verdict that arrived before this was fraud."""
        fraud_M = np.zeros(self.rows, dtype=bool)
        fraud_M[self.row_L[self.fraud_L & (self.clock_L < before_ms)]] = True
        return fraud_M

    def first_said(self) -> NDArray[np.int64]:
        """When the first verdict of fraud arrived, epoch ms; the greatest number for events that have none."""
        said_M = np.full(self.rows, np.iinfo(np.int64).max)
        np.minimum.at(said_M, self.row_L[self.fraud_L], self.clock_L[self.fraud_L])
        return said_M


@dataclass(frozen=True, slots=True)
class Kept:
    """Windows of N events of the history in the order of the clock. sample_N: those in the sample of the legitimate,
    which is this share of them all."""

    encoded: Encoded
    row_N: NDArray[np.int64]
    time_N: NDArray[np.int64]
    entity: list[str]
    event_id: list[str]
    sample_N: NDArray[np.bool_]
    share: float


@dataclass(frozen=True)
class Fold:
    """One test week, from start_ms to before end_ms, and what was known when it began. Raises TrainingError for a part
    without enough frauds."""

    number: int
    start_ms: int
    end_ms: int
    split: Split
    kept: Kept
    known_M: NDArray[np.bool_]  # frauds of the history, as known at the start
    truth_M: NDArray[np.bool_]
    time_M: NDArray[np.int64]

    @cached_property
    def train(self) -> Rows:
        """All frauds known, and the sample of the others."""
        return self._learnt(self.split.train_start_ms, self.split.train_end_ms, "train")

    @cached_property
    def validation(self) -> Rows:
        return self._known(self.split.validation_start_ms, self.split.holdout_start_ms, "validation")

    @cached_property
    def holdout(self) -> Rows:
        return self._known(self.split.holdout_start_ms, self.split.holdout_end_ms, "holdout")

    @property
    def matured(self) -> Rows:
        """As `train`, of all that had matured."""
        return self._learnt(self.split.train_start_ms, self.split.holdout_end_ms, "train")

    @cached_property
    def test(self) -> Rows:
        """All events of the test week, with the truth: not to be learnt from."""
        return self._rows(self._inside(self.start_ms, self.end_ms), self.truth_M)

    @property
    def test_ids(self) -> list[str]:
        index = np.flatnonzero(self._inside(self.start_ms, self.end_ms)).tolist()
        return [self.kept.event_id[i] for i in index]

    def every(self, end_ms: int, days: float) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of the history of so many days before `end_ms`, and which are known frauds: for systems that need no
        windows. Not beyond what had matured."""
        end_ms = min(end_ms, self.split.holdout_end_ms)
        start_ms = max(self.split.train_start_ms, end_ms - round(days * DAY_MS))
        row_N = np.flatnonzero((self.time_M >= start_ms) & (self.time_M < end_ms))
        return row_N, self.known_M[row_N]

    def _learnt(self, low_ms: int, high_ms: int, name: str) -> Rows:
        chosen_N = self.kept.sample_N | self.known_M[self.kept.row_N]
        rows = self._rows(self._inside(low_ms, high_ms) & chosen_N, self.known_M)
        return self._enough(replace(rows, legit_share=self.kept.share), name)

    def _known(self, low_ms: int, high_ms: int, name: str) -> Rows:
        return self._enough(self._rows(self._inside(low_ms, high_ms), self.known_M), name)

    def _inside(self, low_ms: int, high_ms: int) -> NDArray[np.bool_]:
        return np.asarray((self.kept.time_N >= low_ms) & (self.kept.time_N < high_ms))

    def _rows(self, chosen_N: NDArray[np.bool_], fraud_M: NDArray[np.bool_]) -> Rows:
        index, kept = np.flatnonzero(chosen_N), self.kept
        row_N = kept.row_N[index]
        entity = [kept.entity[i] for i in index.tolist()]
        return Rows(kept.encoded.take(index), fraud_M[row_N], entity, kept.time_N[index], row_N=row_N)

    def _enough(self, part: Rows, name: str) -> Rows:
        frauds = int(part.fraud_N.sum())
        if frauds < MIN_FRAUDS:
            borders = ", ".join(f"{k} {v}" for k, v in self.split.describe().items())
            raise TrainingError(
                f"fold {self.number}: {name} holds {frauds} known frauds in {len(part)} events: expected at least "
                f"{MIN_FRAUDS} ({borders})"
            )
        return part


def first_test_day(history: History, folds: int) -> int:
    """The handbook's 130th day where the history is long enough for it, else the last whole weeks of days that have
    matured by the last event; epoch ms of a midnight (UTC)."""
    maturity_ms, time_M = history.pipeline.labels.maturity_ms, history.event_time_M
    first = int(time_M.min()) // DAY_MS * DAY_MS
    end = (int(time_M.max()) // DAY_MS + 1) * DAY_MS
    if first + FIRST_TEST + folds * WEEK_MS + maturity_ms <= end:
        return first + FIRST_TEST
    return (end - maturity_ms) // DAY_MS * DAY_MS - folds * WEEK_MS


def splits_of(history: History, plan: Plan) -> list[Split]:
    """The split of each fold; it ends where the test week begins. Raises TrainingError when one has nothing to train
    on or to test."""
    start = first_test_day(history, plan.folds) if plan.first_test_ms is None else plan.first_test_ms
    time_M = history.event_time_M
    splits = []
    for fold in range(plan.folds):
        split = plan_split(
            start + fold * WEEK_MS, int(time_M.min()), history.pipeline.labels.maturity_ms, train_ms=plan.train_ms,
            gap_ms=plan.gap_ms, validation_ms=plan.validation_ms, holdout_ms=plan.holdout_ms,
        )  # fmt: skip
        if int(time_M.max()) < split.end_ms + WEEK_MS - DAY_MS:
            raise TrainingError(f"fold {fold + 1} of {plan.folds}: {split.describe()['end']}: the data ends before "
                                "its test week: expected fewer folds or an earlier --first-test")  # fmt: skip
        splits.append(split)
    return splits


def keep_windows(history: History, splits: list[Split], verdicts: Verdicts, plan: Plan, make: Make) -> Kept:
    """One replay that keeps the windows of all that any fold trains on, decides by or is tested on."""
    ids = history.events[history.pipeline.pipeline.event_id].to_pylist()
    time_M = history.event_time_M
    last = splits[-1]
    in_train = (time_M >= splits[0].train_start_ms) & (time_M < last.train_end_ms)
    share = min(1.0, plan.max_legit / max(int(in_train.sum()), 1))
    sample_M = sampled(hash_ids(ids), share, plan.seed)
    wanted_M = (sample_M | verdicts.ever_fraud(last.end_ms)) & (time_M < last.holdout_end_ms)
    for split in splits:
        wanted_M |= (time_M >= split.validation_start_ms) & (time_M < split.holdout_end_ms)
        wanted_M |= (time_M >= split.end_ms) & (time_M < split.end_ms + WEEK_MS)
    rows = np.flatnonzero(wanted_M)
    place = {ids[row]: row for row in rows[::-1].tolist()}
    until_ms = int(history.event_clock_M[rows].max()) + 1

    def want(batch: EventBatch) -> NDArray[np.bool_]:
        return np.fromiter((i in place for i in batch.event_id), dtype=bool, count=len(batch))

    parts = list(make(history.known_by(until_ms), want))
    event_id = [i for part in parts for i in part.batch.event_id]
    row_N = np.array([place[i] for i in event_id], dtype=np.int64)
    return Kept(
        Encoded.concatenate([part.encoded for part in parts]), row_N, time_M[row_N],
        [e for part in parts for e in part.batch.entity], event_id, sample_M[row_N], share,
    )  # fmt: skip


def folds_of(history: History, splits: list[Split], kept: Kept, verdicts: Verdicts) -> Iterator[Fold]:
    """The folds. Their verdicts are those that had arrived when their test weeks began."""
    truth_M, time_M = verdicts.frauds(), history.event_time_M
    for number, split in enumerate(splits, 1):
        start_ms = split.end_ms
        yield Fold(number, start_ms, start_ms + WEEK_MS, split, kept, verdicts.frauds(start_ms), truth_M, time_M)
