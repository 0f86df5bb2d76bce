"""Shared profiles: what is known of a merchant or device across all entities, whatever partition they are in.

A profile is, for each half-life, a ring of buckets of time (a sixth of the half-life each) that count events,
amounts, labels and frauds as integers. Adding to a bucket commutes, so partitions may add in any order, and
sums are exact. An event of the partition's clock c reads the buckets that ended by c − delay, weighted
2^(−age/half-life): what it reads does not depend on which events share its batch, nor (within `delay`) on how
far other partitions and labels have got. An event counts in the bucket of its partition's clock, the greatest
event time so far, not of its own time: a bucket that was read never changes.

A profile with `verdicts` has rings of another kind behind these: `models.features.verdicts` says what they hold.

Legend: P profiles, R rings, S ring slots, M contributions or reading events, C columns of context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined, plain
from models.features.layout import BUCKETS_PER_HALF_LIFE, RING_SLOTS, VISIBLE_SLOTS, Layout
from models.features.numerics import LINEAR, log1p, transformed
from models.features.verdicts import UNKNOWN_RATIO, capacity, flat_words, insert, span_ms, stretch_ms
from models.pipeline.spec import Profile

__all__ = [
    "AMOUNT_SCALE", "COUNTERS", "WEIGHTS", "Increments", "accumulate", "bucket_ms", "collect", "faded", "read",
    "safe_end_ms", "words_of",
]  # fmt: skip

AMOUNT_SCALE = 1000  # amounts are summed in thousandths, as integers
AMOUNT_LIMIT = 1e12  # one event adds at most this: Redis adds in doubles, exact below 2^53 thousandths
RATE_PRIOR = 2.0  # labels with no fraud that every profile starts with, so one label is no certainty
COUNTERS = ("count", "labels", "frauds", "amount")  # of a slot, beside its bucket
WEIGHTS = 2.0 ** (-np.arange(VISIBLE_SLOTS) / BUCKETS_PER_HALF_LIFE)  # by age in buckets
# a slot in words of four bytes, and its amount in words of eight
SLOT_WORDS, BUCKET, COUNT, LABELS, FRAUDS = 6, 0, 1, 2, 3
SLOT_LONGS, AMOUNT = 3, 2
UNSIGNED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Increments:
    """Additions to one profile's rings, one row for each (owner, half-life, bucket), sorted.

    owner: int64, the profile as a row of what was loaded. ring: which half-life. bucket: number of the time
    bucket since the epoch. count, labels, frauds, amount (thousandths): int64.

    Behind an owner's rows of half-lives stand its new verdicts, a row each. ring: one more than the last half-life's.
    bucket: the clock at which it came, ms. count: the bits of the event's id_hash. frauds: 1 for fraud. amount: the
    ratio in thousandths.
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


def safe_end_ms(layout: Layout, start_ms: int) -> int | None:
    """How far the clock may go from `start_ms` while labels are added before events that come with or before them.

    What is read at the start must not be pushed out by what is added at the end, of a ring (an event looks `delay`
    back and VISIBLE_SLOTS further) or of the verdicts. And the usual amount that the last label is compared with must
    not lack any of these events: its bucket has to have ended by the start. None without profiles.
    """
    ends = []
    for name, profile in layout.pipeline.profiles.items():
        ends.append(start_ms + _safe_span_ms(profile))
        other = layout.compared(name)
        if profile.verdicts:
            ends.append(start_ms + span_ms(profile))
        if other is not None:
            compared = layout.pipeline.profiles[other]
            length = bucket_ms(compared.half_lives_ms[-1])
            ends.append((start_ms // length + 1) * length + compared.delay_ms - 1)
    return min(ends, default=None)


def collect(
    profile: Profile,
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    *,
    amount_M: NDArray[np.floating] | None = None,
    fraud_M: NDArray[np.bool_] | None = None,
    id_M: NDArray[np.uint64] | None = None,
    ratio_M: NDArray[np.int64] | None = None,
) -> Increments:
    """What M events (or, with `fraud_M`, labels) add. owner_M: -1 where there is no such profile.

    id_M: of labels, hashes of the events' ids; each is also a verdict of its own then. ratio_M: thousandths.
    """
    owner_M = plain(owner_M, np.int64)
    lengths_R = _bucket_lengths(profile)
    judged, kept = fraud_M is not None, id_M is not None
    out_7I = np.empty((7, len(owner_M) * (len(lengths_R) + kept)), np.int64)
    amounts_M = plain(np.zeros(len(owner_M)) if amount_M is None else amount_M, np.float64)
    frauds_M = np.zeros(len(owner_M), np.bool_) if fraud_M is None else plain(fraud_M, np.bool_)
    bits_M = np.zeros(0, np.int64) if id_M is None else plain(id_M, np.uint64).view(np.int64)
    if ratio_M is None:
        ratio_M = np.full(len(bits_M), UNKNOWN_RATIO, np.int64)
    order_M = np.argsort(owner_M, kind="stable")
    rows = _collect(
        order_M, owner_M, plain(clock_M, np.int64), amounts_M, frauds_M, judged, lengths_R, kept, bits_M,
        plain(ratio_M, np.int64), out_7I,
    )  # fmt: skip
    return Increments(*out_7I[:, :rows])


def accumulate(profile: Profile, rings_PRS: NDArray[np.void], add: Increments) -> None:
    """Add in place. A bucket older than what its slot holds now is dropped; a newer one takes the slot. Verdicts that
    are there already, or for which there is no room, are dropped.

    rings_PRS: contiguous and writable. Increments whose owner is -1 are left out, so that those of another batch can
    be added to what was loaded for this one: their owners are this batch's rows, or -1 for profiles it lacks.
    """
    if not len(add):
        return
    columns_7I = np.stack((add.owner, add.ring, add.bucket, add.count, add.labels, add.frauds, add.amount))
    _accumulate(
        *words_of(rings_PRS), *flat_words(rings_PRS), len(profile.half_lives), capacity(profile), stretch_ms(profile),
        plain(columns_7I, np.int64),
    )  # fmt: skip


def read(
    layout: Layout,
    profile: Profile,
    rings_PRS: NDArray[np.void],
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    values_MV: NDArray[np.float32],
    applied_M: NDArray[np.bool_],
    context_MC: NDArray[np.float32],
    column: int,
) -> int:
    """Write the context columns of one profile from `column` on, in `layout.inputs.context` order; the next column.

    For each half-life: log1p of the decayed count of events, the fraud rate of the labels that have arrived
    (shrunk by RATE_PRIOR), log1p of decayed frauds and labels; with an amount field, the transformed mean amount
    and the event's own transformed amount minus it. All 0 where owner is -1.

    An event sees what those before it in the batch added; only applied events add. The rings are left as they are.
    """
    owner_M = plain(owner_M, np.int64)
    # Over a short stretch no event sees what another one adds, nor loses what it would see to it. Then nothing need
    # be added, and the rings need not be copied.
    adds = _apart(owner_M, clock_M, len(rings_PRS), min(profile.delay_ms, _safe_span_ms(profile)))
    rings = rings_PRS.copy() if adds or not rings_PRS.flags.c_contiguous else rings_PRS
    lengths_R = _bucket_lengths(profile)
    amount, how = -1, LINEAR
    if profile.amount is not None:
        amount, how = layout.values.index(profile.amount), layout.transform(profile.amount)
    _read(
        *words_of(rings), adds, lengths_R, profile.delay_ms, how, WEIGHTS,
        owner_M, clock_M, values_MV, amount, applied_M, context_MC, column,
    )  # fmt: skip
    return column + (4 if amount < 0 else 6) * len(lengths_R)


def _safe_span_ms(profile: Profile) -> int:
    spare = RING_SLOTS - VISIBLE_SLOTS - 1
    return bucket_ms(min(profile.half_lives_ms)) * spare - profile.delay_ms


def _bucket_lengths(profile: Profile) -> NDArray[np.int64]:
    return np.array([bucket_ms(half_life) for half_life in profile.half_lives_ms], dtype=np.int64)


def words_of(rings_PRS: NDArray[np.void]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The memory of the slots, as words of four and of eight bytes."""
    return plain(rings_PRS.view(np.int32), np.int32), plain(rings_PRS.view(np.int64), np.int64)


@compiled
def _apart(owner_M: NDArray[np.int64], clock_M: NDArray[np.int64], owners: int, span_ms: int) -> bool:
    """Whether events of one owner are further apart than this."""
    first_P = np.empty(owners, np.int64)
    last_P = np.empty(owners, np.int64)
    heard_P = np.zeros(owners, np.bool_)
    apart = False
    for m in range(len(owner_M)):
        p = owner_M[m]
        if p >= 0:
            first_P[p] = min(first_P[p], clock_M[m]) if heard_P[p] else clock_M[m]
            last_P[p] = max(last_P[p], clock_M[m]) if heard_P[p] else clock_M[m]
            heard_P[p] = True
            apart |= last_P[p] - first_P[p] > span_ms
    return apart


@compiled
def _read(
    words_PRW: NDArray[np.int32],
    longs_PRW: NDArray[np.int64],
    adds: bool,
    lengths_R: NDArray[np.int64],
    delay: int,
    how: int,
    weights_S: NDArray[np.float64],
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    values_MV: NDArray[np.float32],
    amount: int,
    applied_M: NDArray[np.bool_],
    context_MC: NDArray[np.float32],
    column: int,
) -> None:
    """amount: its column of the values, -1 for none. adds: also add each event, after it has read."""
    width = 4 if amount < 0 else 6
    for m in range(len(owner_M)):
        owner = owner_M[m]
        if not applied_M[m]:
            continue
        if owner < 0:
            for c in range(width * len(lengths_R)):
                context_MC[m, column + c] = 0.0
            continue
        x = np.float64(values_MV[m, amount]) if amount >= 0 else np.nan
        own = transformed(how, x)
        for r in range(len(lengths_R)):
            # the newest bucket that ended by clock - delay
            newest = (clock_M[m] - delay) // lengths_R[r] - 1
            count, labels, frauds, total = faded(words_PRW[owner, r], longs_PRW[owner, r], newest, weights_S)
            c = column + r * width
            context_MC[m, c] = log1p(count)
            context_MC[m, c + 1] = frauds / (labels + RATE_PRIOR)
            context_MC[m, c + 2] = log1p(frauds)
            context_MC[m, c + 3] = log1p(labels)
            if amount >= 0:
                shown = transformed(how, total / AMOUNT_SCALE / count) if count > 0.0 else 0.0
                context_MC[m, c + 4] = shown
                context_MC[m, c + 5] = own - shown if count > 0.0 and not np.isnan(x) else 0.0
            if adds:
                bucket = clock_M[m] // lengths_R[r]
                _add(words_PRW[owner, r], longs_PRW[owner, r], bucket, 1, 0, 0, _thousandths(x))


@inlined
def faded(
    words_W: NDArray[np.int32], longs_W: NDArray[np.int64], newest: int, weights_S: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    """Weighted count, labels, frauds and amount of the visible buckets, in the order of their ages."""
    count = labels = frauds = total = 0.0
    slot = newest % RING_SLOTS
    for age in range(VISIBLE_SLOTS):
        at = slot * SLOT_WORDS
        if words_W[at + BUCKET] == newest - age:
            weight = weights_S[age]
            count += weight * np.float64(np.int64(words_W[at + COUNT]) & UNSIGNED)
            labels += weight * np.float64(np.int64(words_W[at + LABELS]) & UNSIGNED)
            frauds += weight * np.float64(np.int64(words_W[at + FRAUDS]) & UNSIGNED)
            total += weight * np.float64(longs_W[slot * SLOT_LONGS + AMOUNT])
        slot = slot - 1 if slot else RING_SLOTS - 1
    return count, labels, frauds, total


@inlined
def _add(
    words_W: NDArray[np.int32],
    longs_W: NDArray[np.int64],
    bucket: int,
    count: int,
    labels: int,
    frauds: int,
    amount: int,
) -> None:
    """Add to the slot of one ring, unless it holds a newer bucket."""
    slot = bucket % RING_SLOTS
    at = slot * SLOT_WORDS
    held = np.int64(words_W[at + BUCKET])
    if held > bucket:
        return
    if held < bucket:
        words_W[at + BUCKET] = bucket
        words_W[at + COUNT] = words_W[at + LABELS] = words_W[at + FRAUDS] = 0
        longs_W[slot * SLOT_LONGS + AMOUNT] = 0
    words_W[at + COUNT] += np.int32(count)
    words_W[at + LABELS] += np.int32(labels)
    words_W[at + FRAUDS] += np.int32(frauds)
    longs_W[slot * SLOT_LONGS + AMOUNT] += amount


@inlined
def _thousandths(amount: float) -> int:
    """What an event adds: a missing amount counts as 0."""
    limited = 0.0 if np.isnan(amount) else min(max(amount, -AMOUNT_LIMIT), AMOUNT_LIMIT)
    return int(np.rint(limited * AMOUNT_SCALE))


@compiled
def _accumulate(
    words_PRW: NDArray[np.int32],
    longs_PRW: NDArray[np.int64],
    words_PW: NDArray[np.int32],
    longs_PW: NDArray[np.int64],
    half_lives: int,
    room: int,
    stretch: int,
    columns_7I: NDArray[np.int64],
) -> None:
    for i in range(columns_7I.shape[1]):
        owner, ring, bucket = columns_7I[0, i], columns_7I[1, i], columns_7I[2, i]
        if owner < 0:
            continue
        counted, labels, frauds, amount = columns_7I[3, i], columns_7I[4, i], columns_7I[5, i], columns_7I[6, i]
        if ring < half_lives:
            _add(words_PRW[owner, ring], longs_PRW[owner, ring], bucket, counted, labels, frauds, amount)
        elif room:
            first = half_lives * RING_SLOTS
            insert(words_PW[owner], longs_PW[owner], first, room, stretch, (bucket, counted, frauds, amount))


@compiled
def _collect(
    order_M: NDArray[np.int64],
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    amount_M: NDArray[np.float64],
    fraud_M: NDArray[np.bool_],
    judged: bool,
    lengths_R: NDArray[np.int64],
    kept: bool,
    id_M: NDArray[np.int64],
    ratio_M: NDArray[np.int64],
    out_7I: NDArray[np.int64],
) -> int:
    """Fills the seven columns of Increments; how many rows. order_M: positions sorted by owner."""
    rows = first = 0
    while first < len(order_M):
        owner = owner_M[order_M[first]]
        stop = first + 1
        while stop < len(order_M) and owner_M[order_M[stop]] == owner:
            stop += 1
        for r in range(len(lengths_R)):
            start = rows
            for m in order_M[first:stop]:
                if owner >= 0:
                    row, rows = _row_of(out_7I, start, rows, clock_M[m] // lengths_R[r])
                    out_7I[0, row], out_7I[1, row] = owner, r
                    out_7I[3, row] += not judged
                    out_7I[4, row] += judged
                    out_7I[5, row] += fraud_M[m]
                    out_7I[6, row] += _thousandths(amount_M[m])
        if kept and owner >= 0:
            for m in order_M[first:stop]:
                out_7I[0, rows], out_7I[1, rows], out_7I[2, rows] = owner, len(lengths_R), clock_M[m]
                out_7I[3, rows], out_7I[4, rows] = id_M[m], 1
                out_7I[5, rows], out_7I[6, rows] = fraud_M[m], ratio_M[m]
                rows += 1
        first = stop
    return rows


@inlined
def _row_of(out_7I: NDArray[np.int64], start: int, rows: int, bucket: int) -> tuple[int, int]:
    """The row of this bucket among those from `start`, put in its place if there is none; rows there are then."""
    place = rows
    while place > start and out_7I[2, place - 1] > bucket:
        place -= 1
    if place > start and out_7I[2, place - 1] == bucket:
        return place - 1, rows
    for column in range(7):
        for row in range(rows, place, -1):
            out_7I[column, row] = out_7I[column, row - 1]
        out_7I[column, place] = 0
    out_7I[2, place] = bucket
    return place, rows + 1
