"""The bundle's model.onnx run by onnxruntime: small, quick to start, good at small batches."""

from __future__ import annotations

from typing import cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.bundle import Bundle
from models.engines.blocks import BlockEngine
from models.features.encoded import Encoded
from models.weights import Scaling

__all__ = ["OnnxEngine", "build"]

ERRORS_ONLY = 3


class OnnxEngine(BlockEngine):
    """One session; every shape runs in it. Raises onnxruntime's own errors for a model that it cannot read."""

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        super().__init__(bundle.info.inputs)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the other stages want that core
        options.log_severity_level = ERRORS_ONLY
        self._session = onnxruntime.InferenceSession(bundle.onnx, options, providers=["CPUExecutionProvider"])
        self._wanted = {each.name for each in self._session.get_inputs()}

    def run_block(self, block: Encoded) -> NDArray[np.float32]:
        arrays = {"x_BLF": block.x_BLF, "codes_BLK": block.codes_BLK, "mask_BL": block.mask_BL,
                  "context_BC": block.context_BC, "verdicts_BJSG": block.verdicts_BJSG}  # fmt: skip
        # an input that nothing depends on, such as the codes of a pipeline without categories, is not in the graph
        logits = self._session.run(["logit_B"], {name: a for name, a in arrays.items() if name in self._wanted})
        return cast(NDArray[np.float32], logits[0])


def build(bundle: Bundle, threads: int) -> OnnxEngine:
    """The engine for a bundle that has a model.onnx."""
    engine = OnnxEngine(bundle, threads)
    engine.settle(Scaling.of(bundle.weights))
    return engine
