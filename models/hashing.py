"""Stable hashes: the same on every machine and in every version of Python.

xxh3 (https://xxhash.com) is not cryptographic; it names things, it does not hide them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

__all__ = ["hash32", "hash64", "hash_ids", "hash_texts", "hash_values"]

_xxh64 = xxhash.xxh3_64_intdigest


def hash64(text: str) -> int:
    """64 bits of a text, never 0 (which marks an empty row)."""
    return _xxh64(text.encode()) or 1


def hash32(text: str) -> int:
    """32 bits of a text, never 0 (which marks a missing value)."""
    return (_xxh64(text.encode()) & 0xFFFFFFFF) or 1


def hash_ids(texts: Sequence[str]) -> NDArray[np.uint64]:
    """`hash64` of each text: uint64 (M,)."""
    hashes = np.fromiter(map(_xxh64, map(str.encode, texts)), dtype=np.uint64, count=len(texts))
    return np.maximum(hashes, np.uint64(1))


def hash_texts(texts: Sequence[str]) -> NDArray[np.uint32]:
    """`hash32` of each text: uint32 (M,)."""
    return np.maximum(hash_ids(texts).astype(np.uint32), np.uint32(1))  # a cast keeps the lower half


def hash_values(texts: Sequence[str | None]) -> NDArray[np.uint32]:
    """`hash32` of each text, 0 for None: uint32 (M,). A text that occurs often is hashed once."""
    distinct = [text for text in set(texts) if text is not None]
    hashes: dict[str | None, int] = dict(zip(distinct, hash_texts(distinct).tolist(), strict=True))
    hashes[None] = 0
    return np.fromiter(map(hashes.__getitem__, texts), dtype=np.uint32, count=len(texts))
