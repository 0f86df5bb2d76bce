"""Stable hashes: the same on every machine and in every version of Python.

xxh3 (https://xxhash.com) is not cryptographic; it names things, it does not hide them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["hash32", "hash64", "hash_ids", "hash_values"]

_xxh64 = xxhash.xxh3_64_intdigest


def hash64(text: str) -> int:
    """64 bits of a text, never 0 (which marks an empty row)."""
    return _xxh64(text.encode()) or 1


def hash32(text: str) -> int:
    """32 bits of a text, never 0 (which marks a missing value)."""
    return (_xxh64(text.encode()) & 0xFFFFFFFF) or 1


def hash_ids(texts: Sequence[str]) -> NDArray[np.uint64]:
    """`hash64` of each text: uint64 (M,)."""
    return np.fromiter(map(hash64, texts), dtype=np.uint64, count=len(texts))


def hash_values(texts: Sequence[str | None]) -> NDArray[np.uint32]:
    """`hash32` of each text, 0 for None: uint32 (M,)."""
    values = (0 if text is None else hash32(text) for text in texts)
    return np.fromiter(values, dtype=np.uint32, count=len(texts))
