"""The detector of an architecture's name."""

from __future__ import annotations

from models.detectors.base import Detector
from models.detectors.forecast import ForecastDetector
from models.detectors.sequence import SequenceDetector
from models.detectors.surprise import SurpriseDetector
from models.features.encoded import InputSpec
from models.pipeline.spec import SURPRISE, without_labels

__all__ = ["build_detector"]


def build_detector(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Detector:
    """A new detector with random weights from torch's global generator, in training mode, on the CPU.

    Raises ValueError for an architecture nobody registered, and for inputs that it cannot judge by.
    """
    if architecture == SURPRISE:
        return SurpriseDetector(inputs, hidden, embedding)
    if without_labels(architecture):
        return ForecastDetector(architecture.removeprefix(f"{SURPRISE}-"), inputs, hidden, embedding)
    return SequenceDetector(architecture, inputs, hidden, embedding)
