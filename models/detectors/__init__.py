"""Detectors in torch: from an encoded window to a logit. `sequence` has those that learn from labels, `forecast` those
that learn without, both around a trunk; `trunk` is the interface of what reads a sequence, with a file each for the
architectures. `surprise` has nothing to learn.

Training makes them; the worker runs them through `models.engines`, mostly without torch.
"""

from models.detectors.base import Detector
from models.detectors.build import build_detector
from models.detectors.cnn import CnnTrunk
from models.detectors.forecast import ForecastDetector
from models.detectors.gru import GruTrunk
from models.detectors.sequence import SequenceDetector
from models.detectors.surprise import SurpriseDetector
from models.detectors.transformer import TransformerTrunk
from models.detectors.trunk import ARCHITECTURES, Trunk

__all__ = [
    "ARCHITECTURES", "CnnTrunk", "Detector", "ForecastDetector", "GruTrunk", "SequenceDetector", "SurpriseDetector",
    "TransformerTrunk", "Trunk", "build_detector",
]  # fmt: skip
