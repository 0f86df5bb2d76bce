"""Compiling loops to machine code, once for a machine.

The compiled code is kept in `__pycache__` (or where `NUMBA_CACHE_DIR` says), so that only the first process pays.
Arithmetic is IEEE 754 as written: nothing is reassociated or fused, so an element's bits do not depend on where
in a vector register or in the remainder of a loop it was computed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["compiled", "inlined", "plain"]

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile at the first call and keep the code. Indices are not checked; the lock is released while it runs."""
    dispatcher: Any = njit(nogil=True, error_model="numpy")(function)
    try:
        dispatcher.enable_caching()
    except RuntimeError:  # no directory can be written: every process compiles for itself
        return cast("Callable[P, R]", dispatcher)
    # By itself the cache looks at the function's own file only, and would keep old code when one that it calls, in
    # another file or package, has changed. A private name of numba, whose version is pinned.
    dispatcher._cache._cache_file._source_stamp = _source_stamp(Path(function.__code__.co_filename).parent.parent)
    return cast("Callable[P, R]", dispatcher)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """For small functions within compiled loops: no call is left, so the loop around it can use vector registers."""
    return cast("Callable[P, R]", njit(nogil=True, error_model="numpy", forceinline=True)(function))


def plain(array: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The array as compiled code expects it: contiguous, aligned and writable, copied only if it is not.

    Every other kind of array would be compiled for anew, in the middle of a stream.
    """
    if array.dtype == dtype and array.flags.carray:  # `require` takes ten times as long to find that out
        return array
    return np.require(array, dtype, ("C", "A", "W"))


@cache
def _source_stamp(folder: Path) -> tuple[tuple[str, float, int], ...]:
    files = sorted(folder.glob("*/*.py"))
    return tuple((file.name, file.stat().st_mtime, file.stat().st_size) for file in files)
