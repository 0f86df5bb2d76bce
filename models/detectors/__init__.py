"""Sequence detectors in torch: from an encoded window to a logit. `base` has the detector, `trunk` the interface of
what reads a sequence, a file each the architectures.

Training makes them; the worker runs them through `models.engines`, mostly without torch.
"""

from models.detectors.base import Detector, build_detector
from models.detectors.cnn import CnnTrunk
from models.detectors.gru import GruTrunk
from models.detectors.transformer import TransformerTrunk
from models.detectors.trunk import ARCHITECTURES, Trunk

__all__ = ["ARCHITECTURES", "CnnTrunk", "Detector", "GruTrunk", "TransformerTrunk", "Trunk", "build_detector"]
