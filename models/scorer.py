"""Scores encoded windows with one bundle. The worker, replay and evaluation all score through this."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.attribution import Reason, explain
from models.bundle import Bundle, load_bundle
from models.engines import Choice, EngineName, Measured, choose, scores_of
from models.engines.base import Precision
from models.features.encoded import Encoded
from models.pipeline.spec import Pipeline, without_labels
from models.signing import Keys
from models.weights import Scaling, surprise_columns

__all__ = ["Scorer", "Scores", "load_scorer"]


@dataclass(frozen=True, slots=True)
class Scores:
    """Of B events. score_B: float32 in [0, 1], higher is stranger. probability_B: float32, calibrated;
    without labels, the score's rank among the entity's own."""

    score_B: NDArray[np.float32]
    probability_B: NDArray[np.float32]


class Scorer:
    """An event's score does not depend on the batch it comes in, bit for bit (see `models.engines`).

    Keeps no state between calls; a call from another thread waits for the one that runs. measured: what the choice
    of the engine rests on.
    """

    def __init__(self, bundle: Bundle, choice: Choice) -> None:
        self.bundle = bundle
        self.measured: tuple[Measured, ...] = choice.table
        self._engine, self._one_at_a_time = choice.engine, threading.Lock()
        self._scaling = Scaling.of(bundle.weights)
        info, self._reasons = bundle.info, None
        if without_labels(info.architecture):  # the fields that carried the score, not the score itself
            self._reasons = frozenset(info.inputs.context[c] for c in surprise_columns(info.inputs)[2])

    @property
    def version(self) -> str:
        return self.bundle.version

    @property
    def threshold(self) -> float:
        """The score from which an event is an alert."""
        return self.bundle.threshold

    @property
    def engine(self) -> str:
        """Which engine runs the detector."""
        return self._engine.name

    @property
    def precision(self) -> Precision:
        """Of the engine's arithmetic."""
        return self._engine.precision

    def score(self, encoded: Encoded) -> Scores:
        """Scores of all windows, in order; any number of them, also none."""
        score_B = scores_of(self._logits(encoded))
        return Scores(score_B, self.bundle.info.probabilities(score_B, encoded))

    def explain(self, encoded: Encoded, n: int) -> list[list[Reason]]:
        """The n strongest reasons of each window. Costs many scores a window: for alerts only."""
        info = self.bundle.info
        return explain(self._logits_after, info.inputs, self._scaling, encoded, n, self._reasons)

    def _logits(self, encoded: Encoded) -> NDArray[np.float32]:
        with self._one_at_a_time:
            return self._engine.logits(encoded)

    def _logits_after(self, past: Encoded, last: Encoded, past_V: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._one_at_a_time:
            return self._engine.logits_after(past, last, past_V)


def load_scorer(
    folder: Path, pipeline: Pipeline, engine: EngineName = "auto", threads: int = 1, trusted: Keys = ()
) -> Scorer:
    """Load a bundle, check all of it, and run it with the fastest engine or the named one.

    Every shape and size has run when this returns, so no first batch pays for compilation. Raises BundleError as
    `models.bundle.load_bundle` and `models.engines.choose` do.
    """
    bundle = load_bundle(folder, pipeline, trusted)
    return Scorer(bundle, choose(bundle, engine, threads))
