"""Memory of a process that allocates megabytes for every batch and frees them a few milliseconds later.

glibc hands large blocks back to the kernel at once, and the next batch pays for every page of them again. The heaps of
their own that it gives to threads do so whatever it is told; threads that share one lock need one heap. Python's
collector looks for cycles among tens of thousands of records and texts of which none is part of one.
"""

from __future__ import annotations

import ctypes
import gc
import sys

__all__ = ["collect_rarely", "keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
MMAP_BYTES = 32 << 20  # blocks above come from the kernel, one by one; glibc takes no more than this
YOUNG_OBJECTS = 100_000  # allocated and not freed, before the collector looks; some ten batches
TRIM_BYTES = 256 << 20  # so much may stay free at the end of the heap


def keep_freed_memory() -> bool:
    """For the whole process, from now on; False where the C library is another than glibc and nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    options = ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, MMAP_BYTES), (M_TRIM_THRESHOLD, TRIM_BYTES))
    return mallopt is not None and all(mallopt(name, value) for name, value in options)


def collect_rarely() -> None:
    """For the whole process, from now on: what exists stays out of Python's collections, and those become rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
