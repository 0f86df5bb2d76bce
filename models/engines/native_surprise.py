"""The `surprise` detector without torch: a few operations a window, each by itself."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, plain
from models.features.encoded import Encoded, InputSpec
from models.weights import SURPRISE_LIMIT, surprise_columns

__all__ = ["NativeSurprise"]


class NativeSurprise:
    """Differs from torch by float32 rounding. Raises ValueError for inputs without surprise."""

    def __init__(self, inputs: InputSpec) -> None:
        self._score, self._total, carried = surprise_columns(inputs)
        self._carried_N = np.array(carried, np.int64)

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        return _logits(plain(encoded.context_BC, np.float32), self._score, self._total, self._carried_N)

    def logits_after(self, past: Encoded, last: Encoded, past_V: NDArray[np.int64]) -> NDArray[np.float32]:  # noqa: ARG002
        """The past is in the context already."""
        return self.logits(last)


@compiled
def _logits(
    context_BC: NDArray[np.float32], score: int, total: int, carried_N: NDArray[np.int64]
) -> NDArray[np.float32]:
    logit_B = np.empty(len(context_BC), np.float32)
    for b in range(len(context_BC)):
        held = min(max(np.float64(context_BC[b, score]), SURPRISE_LIMIT), 1.0 - SURPRISE_LIMIT)
        carried = 0.0
        for column in carried_N:
            carried += max(np.float64(context_BC[b, column]), 0.0)
        share = (carried + SURPRISE_LIMIT) / (max(np.float64(context_BC[b, total]), 0.0) + SURPRISE_LIMIT)
        logit_B[b] = math.log(held) - math.log1p(-held) + math.log(share)
    return logit_B
