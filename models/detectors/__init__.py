"""Sequence detectors in torch: from an encoded window to a logit. `base` has the interface, a file each the rest.

Training makes them; the worker runs them through `models.engines`, mostly without torch.
"""

from models.detectors.base import ARCHITECTURES, Detector, build_detector
from models.detectors.cnn import CnnDetector
from models.detectors.gru import GruDetector
from models.detectors.transformer import TransformerDetector

__all__ = ["ARCHITECTURES", "CnnDetector", "Detector", "GruDetector", "TransformerDetector", "build_detector"]
