"""For engines whose kernels may round by the shape they are called with: a few fixed shapes.

Matrix kernels differ by batch size, so the same event could score differently in another micro-batch, after a crash
or offline. Here which shape a window gets depends on that window alone: the smallest of some lengths that holds its
events, in a block of BLOCK rows (filled up with empty windows). Short histories cost less, too; verdicts always cost
as much.

A single event should not pay for BLOCK rows. Smaller blocks are used where they give the same bits, which is tried
on this machine before the first event (`settle`): it depends on the kernels that the processor gets.

Bitwise equality holds for one machine, build and thread count; between those expect 1e-6.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.engines.base import Engine
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from models.weights import Scaling

__all__ = ["BLOCK", "BlockEngine", "block_lengths", "probe_windows"]

BLOCK = 64  # rows: the overhead of a call is spent
SMALLER = (8, 1)  # rows of the blocks that are tried
SHORTEST = 8  # events; below that a call costs its overhead
ALIGNMENT = 64  # bytes; kernels may choose by alignment, which numpy does not promise
NO_VERDICTS = 8  # one window in so many of the probe has none
SPREAD = 2.0  # of the probe's numbers, in standard deviations


class BlockEngine(Engine):
    """Cuts a batch into blocks; a subclass runs one."""

    def __init__(self, inputs: InputSpec) -> None:
        self.inputs = inputs
        self._lengths = np.array(block_lengths(inputs.length))
        self._sizes: tuple[int, ...] = (BLOCK,)  # descending
        self._blocks: dict[tuple[int, int], Encoded] = {}

    @abstractmethod
    def run_block(self, block: Encoded) -> NDArray[np.float32]:
        """logit_B of a block. For one shape it is the same object in every call, its arrays aligned to 64 bytes."""

    def settle(self, scaling: Scaling) -> None:
        """Find out which smaller blocks give the same bits as those of BLOCK rows, and use them from now on."""
        self._sizes = (BLOCK,)
        windows = [probe_windows(self.inputs, BLOCK, length, scaling) for length in self._lengths.tolist()]
        expected = [self.logits(part) for part in windows]
        same = []
        for rows in SMALLER:
            self._sizes = (rows,)
            if all(np.array_equal(self.logits(part), logit_B) for part, logit_B in zip(windows, expected, strict=True)):
                same.append(rows)
        self._sizes = (BLOCK, *same)

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        logit_B = np.empty(len(encoded), np.float32)
        if len(encoded) == 0:
            return logit_B
        events_B = self.inputs.length - encoded.mask_BL.argmax(axis=1)  # from the first event to the last position
        kind_B = np.searchsorted(self._lengths, events_B)
        for kind in np.unique(kind_B).tolist():
            for index, rows in self._cut(np.flatnonzero(kind_B == kind)):
                block = self._fill(encoded, index, rows, int(self._lengths[kind]))
                logit_B[index] = self.run_block(block)[: len(index)]
        return logit_B

    def _cut(self, index_N: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """(windows, rows of their block): the largest block that is at least half full, else the smallest."""
        start = 0
        while start < len(index_N):
            left = len(index_N) - start
            rows = next((size for size in self._sizes if size <= 2 * left), self._sizes[-1])
            yield index_N[start : start + rows], rows
            start += rows

    def _fill(self, encoded: Encoded, index: NDArray[np.int64], rows: int, length: int) -> Encoded:
        block = self._blocks.get((rows, length))
        if block is None:
            block = self._blocks[rows, length] = _empty(self.inputs, rows, length)
        used = len(index)
        for to, array in (
            (block.x_BLF, encoded.x_BLF[index, -length:]),
            (block.codes_BLK, encoded.codes_BLK[index, -length:]),
            (block.mask_BL, encoded.mask_BL[index, -length:]),
            (block.context_BC, encoded.context_BC[index]),
            (block.verdicts_BJSG, encoded.verdicts_BJSG[index]),
        ):
            to[:used] = array
            to[used:] = 0
        block.mask_BL[used:, -1] = True
        return block


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


def probe_windows(inputs: InputSpec, rows: int, events: int, scaling: Scaling) -> Encoded:
    """Made-up windows of `events` events each, spread about the training mean; always the same ones.

    Full windows have full verdicts, shorter ones fewer in proportion; those of every eighth window have not arrived.
    """
    rng = np.random.default_rng(events)
    mask_BL = np.zeros((rows, inputs.length), np.bool_)
    mask_BL[:, -events:] = True

    def numbers(mean: NDArray[np.float32], std: NDArray[np.float32], *shape: int) -> NDArray[np.float32]:
        return (mean + SPREAD * std * rng.standard_normal((*shape, len(mean)))).astype(np.float32)

    sizes = [size for _, size in inputs.codes]
    whole = Encoded(
        numbers(scaling.x_mean_F, scaling.x_std_F, rows, inputs.length),
        rng.integers(0, sizes, (rows, inputs.length, len(sizes))).astype(np.int32),
        mask_BL,
        numbers(scaling.context_mean_C, scaling.context_std_C, rows),
        np.zeros((rows, *inputs.verdict_shape), np.float32),
    )
    verdicts = inputs.verdict_length * events // inputs.length
    for j, (mean_G, std_G) in enumerate(zip(scaling.verdict_mean_JG, scaling.verdict_std_JG, strict=True)):
        verdict_BSG = whole.verdicts_BJSG[:, j, inputs.verdict_length - verdicts :]
        verdict_BSG[:] = numbers(mean_G, std_G, rows, verdicts)
        verdict_BSG[..., VERDICT_FEATURES.index("present")] = 1.0
        verdict_BSG[j::NO_VERDICTS] = 0.0
    return whole


def _empty(inputs: InputSpec, rows: int, length: int) -> Encoded:
    """Windows without a history or verdicts, whose only event is all zeros."""
    return Encoded(
        _aligned((rows, length, len(inputs.x)), np.float32),
        _aligned((rows, length, len(inputs.codes)), np.int32),
        _aligned((rows, length), np.bool_),
        _aligned((rows, len(inputs.context)), np.float32),
        _aligned((rows, *inputs.verdict_shape), np.float32),
    )


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Zeros whose memory begins at a multiple of ALIGNMENT."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    first = -memory.ctypes.data % ALIGNMENT
    return memory[first : first + size].view(dtype).reshape(shape)
