"""The detector run by torch as it was trained, without compilation. The other engines are measured against it."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import Bundle
from models.detectors import Detector, build_detector
from models.detectors.base import tensors
from models.engines.blocks import BlockEngine
from models.features.encoded import Encoded
from models.weights import Scaling

__all__ = ["TorchEngine", "build", "detector_of"]


class TorchEngine(BlockEngine):
    """Runs a detector that is in eval mode. It keeps a reference: later changes of the weights count."""

    name = "torch"

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector.inputs)
        self.detector = detector

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        if self.detector.training:
            raise ValueError("TorchEngine: the detector is in training mode: expected eval mode")
        with torch.inference_mode():
            return super().logits(encoded)

    def run_block(self, block: Encoded) -> NDArray[np.float32]:
        return cast(NDArray[np.float32], self.detector(*tensors(block)).numpy())


def detector_of(bundle: Bundle) -> Detector:
    """The bundle's detector, in eval mode."""
    info = bundle.info
    detector = build_detector(info.architecture, info.inputs, info.hidden, info.embedding)
    detector.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in bundle.weights.items()})
    return detector.eval()


def build(bundle: Bundle, threads: int) -> TorchEngine:
    """The engine for a bundle. `threads` holds for all of torch in this process."""
    torch.set_num_threads(threads)
    engine = TorchEngine(detector_of(bundle))
    engine.settle(Scaling.of(bundle.weights))
    return engine
