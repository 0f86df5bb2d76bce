"""What every inference engine promises, and the sigmoid that follows it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.features.encoded import Encoded

__all__ = ["TOLERANCE", "Engine", "Precision", "scores_of"]

Precision = Literal["float32", "int16", "bfloat16"]

# Of a golden score, which torch computed in float32 where the model was trained. Kernels of float32 differ by a few
# 1e-7; int16 keeps 15 bits of a state and of its weights, some 1e-4 of a score at most; bfloat16 keeps 8 bits of every
# factor, some 1e-3.
TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "int16": 5e-4, "bfloat16": 5e-3}

LOGIT_LIMIT = 700.0  # beyond it the exponential of a float64 overflows; the score is 0 or 1 long before
LANES = 64  # values that one vectorised exponential may take at once, or a multiple of it


class Engine(ABC):
    """Runs one detector. One engine scores batches of every size, so that bits do not depend on the batch.

    name: as in the setting. precision: of the arithmetic; TOLERANCE says how far scores may be off.
    """

    name: str
    precision: Precision = "float32"

    @abstractmethod
    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        """logit_B of B windows, in order; B may be 0.

        A window's logit is the same to the bit whatever its company and its place in it, on one machine with one
        number of threads. What stands at masked positions is never read. Not safe from two threads at once.
        """

    def logits_after(self, past: Encoded, last: Encoded, past_V: NDArray[np.int64]) -> NDArray[np.float32]:
        """logit_V of V windows that differ from some of B others in their last event, context and verdicts only.

        past: the B windows. last: V windows of one event, with context and verdicts. past_V: which of `past` each
        stands at the end of; -1: of none, it is its entity's first. The same bits as `logits` of the whole windows.
        """
        every = past.take(past_V)  # of -1 the last, whose past is masked
        whole = Encoded(
            np.concatenate([every.x_BLF[:, :-1], last.x_BLF], axis=1),
            np.concatenate([every.codes_BLK[:, :-1], last.codes_BLK], axis=1),
            np.concatenate([every.mask_BL[:, :-1] & (past_V >= 0)[:, None], last.mask_BL], axis=1),
            last.context_BC,
            last.verdicts_BJSG,
        )
        return self.logits(whole)


def scores_of(logit_B: NDArray[np.float32]) -> NDArray[np.float32]:
    """score_B in [0, 1], float32: the sigmoid, which depends on each value alone.

    numpy may take another formula for the last few values that do not fill a vector: there are none here, and what
    would be left of the difference is far below the float32 it is rounded to.
    """
    padded = np.zeros(-(-len(logit_B) // LANES) * LANES)
    padded[: len(logit_B)] = np.clip(logit_B, -LOGIT_LIMIT, LOGIT_LIMIT)
    score: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-padded))).astype(np.float32)
    return score[: len(logit_B)]
