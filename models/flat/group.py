"""Which texts of a batch are equal, in compiled code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.flat.machine import WORD, address, word

__all__ = ["group"]

ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: spreads bits (Knuth, The Art of Computer Programming 6.4)
HALF = np.uint64(32)

Ints = NDArray[np.int64]


@compiled
def group(
    text: NDArray[np.uint8], found_MX: Ints, columns_G: Ints, place_GM: Ints, bounds_U2: Ints, count_G: Ints
) -> None:
    """The distinct texts of some columns, a column after another.

    found_MX: from `scan`; columns_G: which of its columns hold where a text begins, its size stands beside. Fills
    place_GM: int64, each text's place among the distinct ones of its column in order of appearance, -1 where the size
    is; bounds_U2: where each distinct one begins and ends; count_G: how many a column has.
    """
    origin, events = address(text.ctypes.data), len(found_MX)
    slots = 8
    while slots < 2 * events:
        slots *= 2
    first = 0
    for g in range(len(columns_G)):
        table = np.full(slots, -1, dtype=np.int64)
        count = 0
        for m in range(events):
            start, size = found_MX[m, columns_G[g]], found_MX[m, columns_G[g] + 1]
            place_GM[g, m] = -1
            if size < 0:
                continue
            slot = _hash(origin + start, size) & (slots - 1)
            while table[slot] >= 0:
                other = bounds_U2[first + table[slot], 0]
                if bounds_U2[first + table[slot], 1] - other == size and _equal(origin + start, origin + other, size):
                    break
                slot = (slot + 1) & (slots - 1)
            if table[slot] < 0:
                table[slot] = count
                bounds_U2[first + count, 0], bounds_U2[first + count, 1] = start, start + size
                count += 1
            place_GM[g, m] = table[slot]
        count_G[g] = count
        first += count


@inlined
def _last_word(at: int, size: int) -> np.uint64:
    """The bytes from `at` on, fewer than a word holds."""
    return word(at) & ((np.uint64(1) << np.uint64(8 * size)) - np.uint64(1))


@inlined
def _hash(at: int, size: int) -> int:
    """Good enough for the table of one batch."""
    h = np.uint64(size)
    whole = size // WORD * WORD
    for i in range(at, at + whole, WORD):
        h = (h ^ word(i)) * ODD
        h ^= h >> HALF
    h = (h ^ _last_word(at + whole, size - whole)) * ODD
    return np.int64(h >> HALF)  # type: ignore[return-value]


@inlined
def _equal(a: int, b: int, size: int) -> bool:
    whole = size // WORD * WORD
    for i in range(0, whole, WORD):
        if word(a + i) != word(b + i):
            return False
    return bool(_last_word(a + whole, size - whole) == _last_word(b + whole, size - whole))
