"""Shared profiles: what is known of a merchant or device across all entities, whatever partition they are in.

A profile is, for each half-life, a ring of buckets of time (a sixth of the half-life each) that count events,
amounts, labels and frauds as integers. Adding to a bucket commutes, so partitions may add in any order, and
sums are exact. An event of the partition's clock c reads the buckets that ended by c − delay, weighted
2^(−age/half-life): what it reads does not depend on which events share its batch, nor (within `delay`) on how
far other partitions and labels have got. An event counts in the bucket of its partition's clock, the greatest
event time so far, not of its own time: a bucket that was read never changes.

Legend: P profiles, R half-lives, S ring slots, M contributions, A reading events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.features.layout import BUCKETS_PER_HALF_LIFE, RING_SLOTS, VISIBLE_SLOTS, Layout
from models.features.windows import transform
from models.pipeline.spec import Profile

__all__ = [
    "AMOUNT_SCALE", "COUNTERS", "Increments", "accumulate", "bucket_ms", "collect", "profile_features", "safe_span_ms",
]  # fmt: skip

AMOUNT_SCALE = 1000  # amounts are summed in thousandths, as integers
AMOUNT_LIMIT = 1e12  # one event adds at most this: Redis adds in doubles, exact below 2^53 thousandths
RATE_PRIOR = 2.0  # labels with no fraud that every profile starts with, so one label is no certainty
COUNTERS = ("count", "labels", "frauds", "amount")  # of a slot, beside its bucket
# by age in buckets; the last is of what is not visible
WEIGHTS = np.append(2.0 ** (-np.arange(VISIBLE_SLOTS) / BUCKETS_PER_HALF_LIFE), 0.0)


@dataclass(frozen=True, slots=True)
class Increments:
    """Additions to one profile's rings, one row for each (owner, half-life, bucket), sorted.

    owner: int64, the profile as a row of what was loaded. ring: which half-life. bucket: number of the time
    bucket since the epoch. count, labels, frauds, amount (thousandths): int64.
    """

    owner: NDArray[np.int64]
    ring: NDArray[np.int64]
    bucket: NDArray[np.int64]
    count: NDArray[np.int64]
    labels: NDArray[np.int64]
    frauds: NDArray[np.int64]
    amount: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.owner)


def bucket_ms(half_life_ms: int) -> int:
    """Length of a bucket of the ring of this half-life."""
    return max(half_life_ms // BUCKETS_PER_HALF_LIFE, 1)


def safe_span_ms(layout: Layout) -> int | None:
    """The longest stretch of clock one batch may cover: its last event must not push out of a ring what its
    first, which looks `delay` back and VISIBLE_SLOTS further, still reads. None when there are no profiles."""
    spare = RING_SLOTS - VISIBLE_SLOTS - 1
    profiles = layout.pipeline.profiles.values()
    return min((bucket_ms(min(p.half_lives_ms)) * spare - p.delay_ms for p in profiles), default=None)


def collect(
    profile: Profile,
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    *,
    amount_M: NDArray[np.float64] | None = None,
    fraud_M: NDArray[np.bool_] | None = None,
) -> Increments:
    """What M events (or, with `fraud_M`, labels) add. owner_M: -1 where there is no such profile."""
    known_M = owner_M >= 0
    owner, clock = owner_M[known_M], clock_M[known_M]
    events = np.full(len(owner), 0 if fraud_M is not None else 1)
    labels = 1 - events
    frauds = fraud_M[known_M].astype(np.int64) if fraud_M is not None else np.zeros(len(owner), np.int64)
    amounts = np.zeros(len(owner), np.int64)
    if amount_M is not None:
        limited = np.clip(np.nan_to_num(amount_M[known_M]), -AMOUNT_LIMIT, AMOUNT_LIMIT)
        amounts = np.rint(limited * AMOUNT_SCALE).astype(np.int64)
    half_lives = profile.half_lives_ms
    repeat = len(half_lives)
    owner, ring = np.tile(owner, repeat), np.repeat(np.arange(repeat), len(owner))
    bucket = np.concatenate([clock // bucket_ms(half_life) for half_life in half_lives])
    order = np.lexsort((bucket, ring, owner))
    owner, ring, bucket = owner[order], ring[order], bucket[order]
    new = np.ones(len(order), bool)
    new[1:] = (owner[1:] != owner[:-1]) | (ring[1:] != ring[:-1]) | (bucket[1:] != bucket[:-1])
    first = np.flatnonzero(new)

    def total(parts: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.add.reduceat(np.tile(parts, repeat)[order], first) if len(first) else np.zeros(0, np.int64)

    return Increments(owner[first], ring[first], bucket[first], total(events), total(labels), total(frauds),
                      total(amounts))  # fmt: skip


def accumulate(rings_PRS: NDArray[np.void], add: Increments) -> None:
    """Add in place. A bucket older than what its slot holds now is dropped; a newer one takes the slot."""
    if not len(add):
        return
    at = (add.owner, add.ring, add.bucket % RING_SLOTS)
    held = rings_PRS["bucket"][at]
    np.maximum.at(rings_PRS["bucket"], at, add.bucket.astype(np.int32))
    fresh = rings_PRS["bucket"][at] != held
    for name in COUNTERS:
        rings_PRS[name][tuple(i[fresh] for i in at)] = 0
    kept = rings_PRS["bucket"][at] == add.bucket
    for name in COUNTERS:
        column = rings_PRS[name]
        np.add.at(column, tuple(i[kept] for i in at), getattr(add, name)[kept].astype(column.dtype))


def profile_features(
    layout: Layout,
    profile: Profile,
    rings_PRS: NDArray[np.void],
    owner_A: NDArray[np.int64],
    clock_A: NDArray[np.int64],
    amount_A: NDArray[np.float64] | None,
) -> list[NDArray[np.float64]]:
    """The context columns of one profile, in `layout.inputs.context` order; all 0 where owner is -1.

    For each half-life: log1p of the decayed count of events, the fraud rate of the labels that have arrived
    (shrunk by RATE_PRIOR), log1p of decayed frauds and labels; with an amount field, the transformed mean
    amount and the event's own transformed amount minus it.
    """
    known_A = owner_A >= 0
    if not known_A.any():
        width = 4 if profile.amount is None else 6
        return [np.zeros(len(owner_A))] * (width * len(profile.half_lives))
    row_A = np.where(known_A, owner_A, 0)
    columns: list[NDArray[np.float64]] = []
    for r, half_life in enumerate(profile.half_lives_ms):
        ring_PS = rings_PRS[:, r]
        # the newest bucket that ended by clock - delay
        last_A = (clock_A - profile.delay_ms) // bucket_ms(half_life) - 1
        age_AS = last_A[:, None] - _rows(ring_PS, "bucket", row_A)
        visible_AS = (age_AS >= 0) & (age_AS < VISIBLE_SLOTS) & known_A[:, None]
        weight_AS = WEIGHTS.take(np.where(visible_AS, age_AS, VISIBLE_SLOTS))
        count_A, labels_A, frauds_A = (
            (weight_AS * _rows(ring_PS, name, row_A)).sum(axis=1) for name in ("count", "labels", "frauds")
        )
        columns += [np.log1p(count_A), frauds_A / (labels_A + RATE_PRIOR), np.log1p(frauds_A), np.log1p(labels_A)]
        if profile.amount is not None and amount_A is not None:
            total_A = (weight_AS * _rows(ring_PS, "amount", row_A)).sum(axis=1) / AMOUNT_SCALE
            some_A = count_A > 0
            mean_A = np.where(some_A, total_A / np.where(some_A, count_A, 1.0), 0.0)
            shown_A = transform(layout, profile.amount, mean_A)
            own_A = transform(layout, profile.amount, np.nan_to_num(amount_A))
            columns += [shown_A, np.where(some_A & ~np.isnan(amount_A), own_A - shown_A, 0.0)]
    return columns


def _rows(ring_PS: NDArray[np.void], name: str, row_A: NDArray[np.int64]) -> NDArray[np.int64]:
    """One member of the slots of each event's profile: (A, S). Rows of contiguous memory are gathered faster."""
    column: NDArray[np.int64] = np.ascontiguousarray(ring_PS[name]).take(row_A, axis=0)
    return column
