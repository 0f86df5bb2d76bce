"""Memory that is given back is soon needed again: tell the C library to keep it.

A batch allocates megabytes (replies, states, rings, tensors) and frees them a few milliseconds later. glibc hands
large blocks to the kernel at once, and the next batch pays for every page of them again.
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MMAP_BYTES = 32 << 20  # blocks above come from the kernel, one by one; glibc takes no more than this
TRIM_BYTES = 256 << 20  # so much may stay free at the end of the heap


def keep_freed_memory() -> bool:
    """For the whole process, from now on; False where the C library is another than glibc and nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, MMAP_BYTES) and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES))
