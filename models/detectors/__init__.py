"""Sequence detectors in torch: from an encoded window to a logit. `base` has the interface, a file each the rest.

Training makes them; the worker runs them through `models.engines`, mostly without torch.
"""

from models.detectors.base import ARCHITECTURES, Detector, build_detector
from models.detectors.gru import GruDetector

__all__ = ["ARCHITECTURES", "Detector", "GruDetector", "build_detector"]
