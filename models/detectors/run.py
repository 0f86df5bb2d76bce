"""Run a detector over any number of windows so that a window's logit never depends on its company.

Matrix kernels round differently for different batch sizes, so the same event could score differently in
another micro-batch, after a crash or offline. Here every call has one of a few fixed shapes, and which shape
a window gets depends on that window alone: BLOCK rows (the last block is filled with empty windows) by the
smallest of some lengths that holds its events. Short histories then cost less, too.

Bitwise equality holds for one machine, torch build and thread count; between those expect 1e-6.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from models.detectors.base import Detector, tensors
from models.features.encoded import Encoded, InputSpec

__all__ = ["BLOCK", "block_lengths", "empty", "run_blocks", "scores_of"]

BLOCK = 64  # rows of every call: per-call overhead is spent, and a single event still costs about a millisecond
SHORTEST = 8  # events; below that a call costs its overhead


def block_lengths(length: int) -> list[int]:
    """The window lengths that are run: doubled from SHORTEST up to the full length.

    >>> block_lengths(24)
    [8, 16, 24]
    """
    lengths = []
    step = SHORTEST
    while step < length:
        lengths.append(step)
        step *= 2
    return [*lengths, length]


def empty(inputs: InputSpec, rows: int, length: int) -> Encoded:
    """Windows without a history whose only event is all zeros."""
    mask_BL = np.zeros((rows, length), np.bool_)
    mask_BL[:, -1] = True
    return Encoded(
        np.zeros((rows, length, len(inputs.x)), np.float32),
        np.zeros((rows, length, len(inputs.codes)), np.int32),
        mask_BL,
        np.zeros((rows, len(inputs.context)), np.float32),
    )


def run_blocks(detector: Detector, encoded: Encoded) -> NDArray[np.float32]:
    """logit_B, float32, of every window. The detector must be in eval mode."""
    if detector.training:
        raise ValueError("run_blocks: the detector is in training mode: expected eval mode")
    logit_B = np.empty(len(encoded), np.float32)
    if len(encoded) == 0:
        return logit_B
    length = encoded.mask_BL.shape[1]
    lengths = np.array(block_lengths(length))
    events_B = length - encoded.mask_BL.argmax(axis=1)  # from the first event to the last position
    kind_B = np.searchsorted(lengths, events_B)
    with torch.inference_mode():
        for kind in np.unique(kind_B).tolist():
            rows_N = np.flatnonzero(kind_B == kind)
            for start in range(0, len(rows_N), BLOCK):
                index = rows_N[start : start + BLOCK]
                logit_B[index] = _block(detector, encoded, index, int(lengths[kind]))
    return logit_B


def scores_of(logit_B: NDArray[np.float32]) -> NDArray[np.float32]:
    """score_B in [0, 1]: the sigmoid, also in whole blocks.

    A vectorised exponential treats the last few of an odd number of values with another formula.
    """
    padded = torch.zeros(-(-len(logit_B) // BLOCK) * BLOCK)
    padded[: len(logit_B)] = torch.from_numpy(logit_B)
    score_B: NDArray[np.float32] = padded.sigmoid().numpy()
    return score_B[: len(logit_B)]


def _block(detector: Detector, encoded: Encoded, index: NDArray[np.int64], length: int) -> NDArray[np.float32]:
    block = empty(detector.inputs, BLOCK, length)
    rows = len(index)
    block.x_BLF[:rows] = encoded.x_BLF[index, -length:]
    block.codes_BLK[:rows] = encoded.codes_BLK[index, -length:]
    block.mask_BL[:rows] = encoded.mask_BL[index, -length:]
    block.context_BC[:rows] = encoded.context_BC[index]
    # Copied into torch's own memory: kernels may choose by alignment, which numpy does not promise.
    logit_B: NDArray[np.float32] = detector(*(t.clone() for t in tensors(block))).numpy()
    return logit_B[:rows]
