"""Bytes and words at addresses, for compiled loops over text.

Compiled code hands addresses on instead of arrays: numba counts references to an array wherever it is handed on, which
costs more than reading it. Nothing checks an address: who calls sees to it that what is read and written is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from models.compiled import inlined

__all__ = ["WORD", "address", "byte", "lowest_byte", "put", "real", "whole", "word"]

WORD = 8  # bytes


@inlined
def address(data: int) -> int:
    """`array.ctypes.data`, signed: numba makes a float of the sum of a signed and an unsigned number."""
    return np.int64(data)  # type: ignore[return-value]


def _loader(llvm: ir.Type, kind: types.Type) -> Any:
    def load(_context: Any, at: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.load(builder.inttoptr(arguments[0], llvm.as_pointer()), align=1)

        return kind(at), generate

    return intrinsic(load)


# The byte, the eight bytes (the first one lowest: all machines that numba supports are little-endian), the int64 and
# the float64 at an address.
byte: Callable[[int], int] = _loader(ir.IntType(8), types.uint8)
word: Callable[[int], np.uint64] = _loader(ir.IntType(64), types.uint64)
whole: Callable[[int], int] = _loader(ir.IntType(64), types.int64)
real: Callable[[int], float] = _loader(ir.DoubleType(), types.float64)


@cast(Callable[[Callable[..., Any]], Callable[[int, float | np.float32], None]], intrinsic)
def put(_context: Any, at: Any, value: Any) -> Any:
    """Write a number of whatever type to an address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> None:
        builder.store(arguments[1], builder.inttoptr(arguments[0], arguments[1].type.as_pointer()))

    return types.void(at, value), generate


@cast(Callable[[Callable[..., Any]], Callable[[np.uint64], int]], intrinsic)
def lowest_byte(_context: Any, bits: Any) -> Any:
    """Which byte of a word that is not 0 holds its lowest bit."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        zeros = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.lshr(zeros, ir.Constant(ir.IntType(64), 3))

    return types.int64(bits), generate
