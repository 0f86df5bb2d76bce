"""What a detector reads: the encoded windows of a batch, and the names of their columns.

Dimension letters: B batch, L events in the window, F numeric features of one event, K categorical
features of one event, C features of the current event's context (horizons and profiles); J shared profiles whose
verdicts are read one by one, S verdicts of each, G features of a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUN_FEATURES", "SURPRISE", "VERDICT_FEATURES", "Encoded", "InputSpec"]

# Of one verdict on an earlier event of a merchant, device, …: whether there is one at this place; 1 for fraud; log1p
# of the hours since it arrived, and the days; log1p of the hours since the verdict before it arrived, 0 for the first;
# the transformed amount less what was usual, 0 where unknown; that of frauds only.
VERDICT_FEATURES = ("present", "fraud", "age", "days", "gap", "ratio", "fraud_ratio")

# Of all verdicts of a profile, in the context: log1p of the hours since the newest arrived; of the frauds at the end of
# the sequence, with nothing between them, log1p of their number, and of the hours since the first of them arrived, and
# the days; the days since the last verdict that was none. 0 without such verdicts.
RUN_FEATURES = ("verdict_age", "run", "run_age", "run_days", "clean_days")

# What is said of an event by its entity's own past, in the order of `models.surprise.reading.OUT`.
SURPRISE = ("surprise", "surprise.onset", "surprise.known", "surprise.rank", "surprise.carried")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """Names and sizes of the detector's inputs, derived from a pipeline.

    x: names of the F numeric features. codes: (name, number of embedding rows) of the K categorical ones;
    code 0 is "missing". context: names of the C context features. length: L. verdicts: the J shared profiles whose
    verdicts are read one by one. verdict_length: S, 0 without any.
    """

    x: tuple[str, ...]
    codes: tuple[tuple[str, int], ...]
    context: tuple[str, ...]
    length: int
    verdicts: tuple[str, ...] = ()
    verdict_length: int = 0

    @property
    def verdict_shape(self) -> tuple[int, int, int]:
        """(J, S, G)."""
        return len(self.verdicts), self.verdict_length, len(VERDICT_FEATURES)


@dataclass(frozen=True, slots=True)
class Encoded:
    """B encoded windows. The current event is the last position; padding comes first and is masked out.

    x_BLF: float32, unscaled (a bundle's scaler does that), 0 where masked.
    codes_BLK: int32, embedding rows, 0 where masked.
    mask_BL: bool, True where there is an event; the last position always is.
    context_BC: float32, unscaled.
    verdicts_BJSG: float32, unscaled, G as in VERDICT_FEATURES; the newest verdict is the last of S. Where `present`
    is 0 all of a place is; those places come first, and may be all.
    """

    x_BLF: NDArray[np.float32]
    codes_BLK: NDArray[np.int32]
    mask_BL: NDArray[np.bool_]
    context_BC: NDArray[np.float32]
    verdicts_BJSG: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.mask_BL)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Encoded:
        """The windows at these positions."""
        return Encoded(
            self.x_BLF[index], self.codes_BLK[index], self.mask_BL[index], self.context_BC[index],
            self.verdicts_BJSG[index],
        )  # fmt: skip

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
            np.concatenate([p.verdicts_BJSG for p in parts]),
        )
