"""Scores encoded windows with one bundle. The worker, replay and evaluation all score through this.

Not safe for use from two threads at once; it keeps no state between calls.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.attribution import Reason, explain
from models.bundle import Bundle
from models.detectors.run import BLOCK, block_lengths, empty, run_blocks, scores_of
from models.features.encoded import Encoded

__all__ = ["Scorer", "Scores"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of B events. score_B: float32 in [0, 1], higher is stranger. probability_B: float32, calibrated."""

    score_B: NDArray[np.float32]
    probability_B: NDArray[np.float32]


class Scorer:
    """An event's score does not depend on the batch it comes in, bit for bit (see `models.detectors.run`)."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @property
    def version(self) -> str:
        return self.bundle.version

    @property
    def threshold(self) -> float:
        """The score from which an event is an alert."""
        return self.bundle.threshold

    def score(self, encoded: Encoded) -> Scores:
        """Scores of all windows, in order; any number of them, also none."""
        score_B = scores_of(run_blocks(self.bundle.detector, encoded))
        return Scores(score_B, self.bundle.calibration.apply(score_B))

    def explain(self, encoded: Encoded, n: int) -> list[list[Reason]]:
        """The n strongest reasons of each window. Costs some fifty scores a window: for alerts only."""
        return explain(self.bundle.detector, encoded, n)

    def warm_up(self) -> None:
        """Run every shape once, so that the first real batch does not pay for allocations and kernel choice."""
        inputs = self.bundle.info.inputs
        for length in block_lengths(inputs.length):
            windows = empty(inputs, BLOCK, inputs.length)
            windows.mask_BL[:, -length:] = True
            self.score(windows)
