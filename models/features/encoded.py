"""What a detector reads: the encoded windows of a batch, and the names of their columns.

Dimension letters: B batch, L events in the window, F numeric features of one event, K categorical
features of one event, C features of the current event's context (horizons and profiles).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Encoded", "InputSpec"]


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Names and sizes of the detector's inputs, derived from a pipeline.

    x: names of the F numeric features. codes: (name, number of embedding rows) of the K categorical ones;
    code 0 is "missing". context: names of the C context features. length: L.
    """

    x: tuple[str, ...]
    codes: tuple[tuple[str, int], ...]
    context: tuple[str, ...]
    length: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """B encoded windows. The current event is the last position; padding comes first and is masked out.

    x_BLF: float32, unscaled (a bundle's scaler does that), 0 where masked.
    codes_BLK: int32, embedding rows, 0 where masked.
    mask_BL: bool, True where there is an event; the last position always is.
    context_BC: float32, unscaled.
    """

    x_BLF: NDArray[np.float32]
    codes_BLK: NDArray[np.int32]
    mask_BL: NDArray[np.bool_]
    context_BC: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.mask_BL)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Encoded:
        """The windows at these positions."""
        return Encoded(self.x_BLF[index], self.codes_BLK[index], self.mask_BL[index], self.context_BC[index])

    @staticmethod
    def concatenate(parts: list[Encoded]) -> Encoded:
        """All windows of several parts, in order; at least one part."""
        if len(parts) == 1:
            return parts[0]
        return Encoded(
            np.concatenate([p.x_BLF for p in parts]),
            np.concatenate([p.codes_BLK for p in parts]),
            np.concatenate([p.mask_BL for p in parts]),
            np.concatenate([p.context_BC for p in parts]),
        )
