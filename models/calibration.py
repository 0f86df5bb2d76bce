"""From a detector's score to a probability: a piecewise linear, non-decreasing curve.

Training fits the curve (isotonic regression) and stores its knots in the bundle; here it is only applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

__all__ = ["Calibration"]


@dataclass(frozen=True)
class Calibration:
    """Knots of the curve: `scores` strictly increasing, `probabilities` non-decreasing within [0, 1].

    Scores outside the knots get the nearest knot's probability. Raises ValueError for other knots.

    >>> Calibration((0.0, 0.5, 1.0), (0.0, 0.1, 0.9)).apply(np.array([0.25, 0.75], np.float32)).tolist()
    [0.05000000074505806, 0.5]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scores) != len(self.probabilities) or not self.scores:
            raise ValueError(
                f"calibration has {len(self.scores)} scores and {len(self.probabilities)} probabilities: "
                "expected as many of one as of the other, at least one"
            )
        scores, probabilities = np.array(self.scores), np.array(self.probabilities)
        if not (np.isfinite(scores).all() and (np.diff(scores) > 0).all()):
            raise ValueError("calibration.scores: expected finite numbers, strictly increasing")
        if not ((np.diff(probabilities) >= 0).all() and probabilities[0] >= 0 and probabilities[-1] <= 1):
            raise ValueError("calibration.probabilities: expected numbers within [0, 1], non-decreasing")

    @staticmethod
    def identity() -> Calibration:
        """The curve that takes scores for probabilities."""
        return Calibration((0.0, 1.0), (0.0, 1.0))

    def apply(self, score_B: NDArray[np.floating]) -> NDArray[np.float32]:
        """probability_B of score_B."""
        probability_B: NDArray[np.float32] = np.interp(score_B, *self._knots).astype(np.float32)
        return probability_B

    @cached_property
    def _knots(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.scores), np.array(self.probabilities)
