"""Records: what a stored profile holds of a slot, and what is added to one; read and written by compiled loops."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.features.layout import RING_SLOTS, SLOT

__all__ = ["HEADER", "RECORD_BYTES", "RECORD_WORDS", "VERDICT", "fill_records", "fill_rings"]

HEADER = struct.Struct("<HxxI")  # of a profile: version, layout of the rings
HEADER_BYTES, HEADER_WORDS = HEADER.size, HEADER.size // 4
SLOT_BYTES, SLOT_WORDS = SLOT.itemsize, SLOT.itemsize // 4
# u32 place, then a slot: i32 bucket, u32 count, labels, frauds, i64 amount. The place is where the slot stands in a
# value of version 1, which held all slots.
RECORD_WORDS = 1 + SLOT_WORDS
RECORD_BYTES = 4 * RECORD_WORDS
# A verdict has this place, and then i64 clock, u64 id, u32 fraud, i32 ratio (`models.features.verdicts`). Those of a
# value stand last, in their order.
VERDICT = 0xFFFFFFFF


@compiled
def fill_rings(
    words: NDArray[np.uint32],
    size_N: NDArray[np.int64],
    place_N: NDArray[np.int64],
    version: int,
    layout: int,
    counted: int,
    rings_PW: NDArray[np.uint32],
) -> int:
    """Write the records of N joined values into rings; returns the first value that is none of ours, or -1.

    words: the values, one after the other, a header and whole records each. size_N: bytes of each. place_N: the row
    of each in rings_PW, where all slots of a profile are in a row. version, layout: the two words of a header.
    counted: how many slots count in time; the places of verdicts follow them.
    """
    slots = rings_PW.shape[1] // SLOT_WORDS
    at = 0
    for n in range(len(size_N)):
        if words[at] != version or words[at + 1] != layout:
            return n
        at += HEADER_WORDS
        verdicts = 0
        for _ in range((size_N[n] - HEADER_BYTES) // RECORD_BYTES):
            slot = (np.int64(words[at]) - HEADER_BYTES) // SLOT_BYTES
            if words[at] == VERDICT:
                slot = np.int64(counted + verdicts)
                verdicts += 1
            elif slot >= counted:
                return n
            if slot < 0 or slot >= slots:
                return n
            for w in range(SLOT_WORDS):
                rings_PW[place_N[n], slot * SLOT_WORDS + w] = words[at + 1 + w]
            at += RECORD_WORDS
    return -1


@compiled
def fill_records(
    columns: tuple[NDArray[np.int64], ...], half_lives: int, records_MW: NDArray[np.uint32], first_M: NDArray[np.int64]
) -> int:
    """Write M increments as records, and where each owner's begin into first_M; returns how many owners there are.

    columns: owner (sorted), ring, bucket, count, labels, frauds, amount; see `models.features.profiles.Increments`.
    half_lives: rings from this one on hold verdicts.
    """
    owner_M, ring_M, bucket_M, count_M, labels_M, frauds_M, amount_M = columns
    owners = 0
    for m in range(len(owner_M)):
        if m == 0 or owner_M[m] != owner_M[m - 1]:
            first_M[owners] = m
            owners += 1
        if ring_M[m] >= half_lives:
            records_MW[m, 0] = VERDICT
            records_MW[m, 1], records_MW[m, 2] = bucket_M[m] & 0xFFFFFFFF, (bucket_M[m] >> 32) & 0xFFFFFFFF
            records_MW[m, 3], records_MW[m, 4] = count_M[m] & 0xFFFFFFFF, (count_M[m] >> 32) & 0xFFFFFFFF
            records_MW[m, 5], records_MW[m, 6] = frauds_M[m], amount_M[m] & 0xFFFFFFFF
            continue
        slot = ring_M[m] * RING_SLOTS + bucket_M[m] % RING_SLOTS
        records_MW[m, 0] = HEADER_BYTES + slot * SLOT_BYTES
        records_MW[m, 1] = bucket_M[m] & 0xFFFFFFFF
        records_MW[m, 2] = count_M[m]
        records_MW[m, 3] = labels_M[m]
        records_MW[m, 4] = frauds_M[m]
        records_MW[m, 5] = amount_M[m] & 0xFFFFFFFF
        records_MW[m, 6] = (amount_M[m] >> 32) & 0xFFFFFFFF
    return owners
