"""Weights in the order in which the compiled kernels read them: one vector of units after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.engines.vectors import LANES

__all__ = ["STATE_SCALE", "pack_dense", "pack_gru", "pack_short"]

# A state is between -1 and 1; its int16 are STATE_SCALE times as much. The scale of the weights follows from it, as
# half a row's sum must fit into int32 whatever the state is. This splits 31 bits so that both round about alike.
STATE_SCALE = 14_480.0


def pack_dense(weight_JK: NDArray[np.float32], bias_J: NDArray[np.float32]) -> NDArray[np.float32]:
    """A linear layer in the order in which `dense` reads it; outputs are filled up with zeros to whole vectors."""
    outputs = len(weight_JK)
    rows_KJ = np.zeros((1 + weight_JK.shape[1], -(-outputs // LANES) * LANES), np.float32)
    rows_KJ[0, :outputs], rows_KJ[1:, :outputs] = bias_J, weight_JK.T
    return _by_vector(rows_KJ)


def pack_gru(
    input_GD: NDArray[np.float32], state_GH: NDArray[np.float32],
    input_bias_G: NDArray[np.float32], state_bias_G: NDArray[np.float32], scale_G: NDArray[np.float64] | None,
) -> NDArray[np.float32]:  # fmt: skip
    """GRU weights as the kernel reads them: biases, scales, then three gates for each input, then for each state unit.

    Gates are stacked as reset, update, new; H is a multiple of LANES. Where `pack_short` has packed the state's
    weights, scale_G is what brings their sums back, and they are left out here.
    """
    width = state_GH.shape[1]
    new = slice(2 * width, None)
    both_G = (input_bias_G + state_bias_G)[: 2 * width]
    bias_4H = np.concatenate([both_G, input_bias_G[new], state_bias_G[new]]).reshape(4, width)
    if scale_G is None:
        rows = [bias_4H, np.ones((3, width)), _gate_rows(input_GD), _gate_rows(state_GH)]
    else:
        rows = [bias_4H, scale_G.reshape(3, width), _gate_rows(input_GD)]
    return _by_vector(np.concatenate(rows))


def pack_short(weight_GH: NDArray[np.float32]) -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """A GRU's state weights as pairs of int16, and for each row what one unit of its integer sums is worth."""
    gates, width = weight_GH.shape
    exact_GH = weight_GH.astype(np.float64)
    size_GH = np.maximum(np.abs(exact_GH), 1e-30)
    half_G = size_GH.reshape(gates, 2, -1).sum(axis=2).max(axis=1)
    scale_G = np.minimum(0.999 * 2**31 / STATE_SCALE / half_G, 32_767 / size_GH.max(axis=1))
    short_GH = np.round(exact_GH * scale_G[:, None]).astype(np.int16)
    pairs = short_GH.reshape(3, width // LANES, LANES, width // 2, 2).transpose(1, 3, 0, 2, 4)
    return np.ascontiguousarray(pairs).ravel(), 1.0 / (scale_G * STATE_SCALE)


def _gate_rows(weight_GK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights as rows of H units: for each input k its reset, update and new gate."""
    gates, inputs = weight_GK.shape
    return weight_GK.reshape(3, gates // 3, inputs).transpose(2, 0, 1).reshape(3 * inputs, gates // 3)


def _by_vector(rows_KJ: NDArray[np.float32]) -> NDArray[np.float32]:
    """All rows of the first LANES columns, then of the next."""
    rows = len(rows_KJ)
    return np.ascontiguousarray(rows_KJ.reshape(rows, -1, LANES).swapaxes(0, 1), dtype=np.float32).ravel()
