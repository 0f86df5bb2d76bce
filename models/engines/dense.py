"""Linear layers in compiled code; see `models.engines.kernels` for the rest of a detector."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.engines.vectors import GROUP, I64, LANES, Tile, Vectors, biases, offset, pointers, products, row_of

__all__ = ["dense", "dense_gelu"]


def _dense_tile(gelu: bool) -> Tile:
    def tile(
        _: Any, weights: Any, start: Any, inputs: Any, inputs_at: Any, width: Any, outputs: Any, outputs_at: Any,
        first: Any, unit: Any,
    ) -> Any:  # fmt: skip
        """LANES outputs of a linear layer, for the GROUP windows that start at place `first` of the `…_at` arrays."""

        def emit(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            vectors = Vectors(build)
            (weights, start, inputs, inputs_at, width, outputs, outputs_at, first, unit) = pointers(
                context, build, signature.args, values
            )
            windows = [build.add(first, I64(n)) for n in range(GROUP)]
            input_rows = [row_of(build, inputs, inputs_at, window) for window in windows]
            output_rows = [row_of(build, outputs, outputs_at, window) for window in windows]
            packed = offset(build, weights, start)
            sums = biases(vectors, packed, 1)
            sums = products(vectors, sums, offset(build, packed, LANES), input_rows, width, (0,))
            for row, value in zip(output_rows, sums, strict=True):
                vectors.store(vectors.gelu(value) if gelu else value, offset(build, row, unit))
            return context.get_dummy_value()

        return types.void(weights, start, inputs, inputs_at, width, outputs, outputs_at, first, unit), emit

    return cast(Tile, intrinsic(tile))


_linear_tile, _gelu_tile = _dense_tile(gelu=False), _dense_tile(gelu=True)


@inlined
def _rows_at(count: int, width: int) -> NDArray[np.int64]:
    return np.minimum(np.arange(count + GROUP - 1), count - 1) * width


@compiled
def dense(packed: NDArray[np.float32], x_BK: NDArray[np.float32], y_BJ: NDArray[np.float32]) -> None:
    """y = x·Wᵀ + b of a layer from `pack_dense`; J, a multiple of LANES, counts the zeros it was filled up with."""
    (windows, inputs), outputs = x_BK.shape, y_BJ.shape[1]
    x_at, y_at = _rows_at(windows, inputs), _rows_at(windows, outputs)
    for first in range(0, windows, GROUP):
        for unit in range(0, outputs, LANES):
            _linear_tile(packed, unit * (1 + inputs), x_BK, x_at, inputs, y_BJ, y_at, first, unit)


@compiled
def dense_gelu(packed: NDArray[np.float32], x_BK: NDArray[np.float32], y_BJ: NDArray[np.float32]) -> None:
    """As `dense`, followed by GELU: y/2·(1 + erf(y/√2))."""
    (windows, inputs), outputs = x_BK.shape, y_BJ.shape[1]
    x_at, y_at = _rows_at(windows, inputs), _rows_at(windows, outputs)
    for first in range(0, windows, GROUP):
        for unit in range(0, outputs, LANES):
            _gelu_tile(packed, unit * (1 + inputs), x_BK, x_at, inputs, y_BJ, y_at, first, unit)
