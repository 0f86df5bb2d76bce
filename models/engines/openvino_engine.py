"""The bundle's model.onnx run by OpenVINO, in float32 or bfloat16: compiled for each shape.

In bfloat16 it is the faster the better the processor multiplies in it (AVX512-BF16, AMX); scores change in the third
digit, so it is used only where the setting asks for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from models.bundle import Bundle
from models.engines.base import Precision
from models.engines.blocks import BlockEngine
from models.features.encoded import Encoded
from models.weights import Scaling

__all__ = ["OpenVinoEngine", "build", "build_bf16"]

HINT: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine(BlockEngine):
    """A compiled model a shape, made when it is first run. Raises OpenVINO's own errors (RuntimeError)."""

    def __init__(self, bundle: Bundle, threads: int, precision: Precision) -> None:
        super().__init__(bundle.info.inputs)
        self.precision = precision
        self.name = "openvino" if precision == "float32" else "openvino-bf16"
        self._core, self._onnx = openvino.Core(), bundle.onnx
        self._options = {
            "INFERENCE_PRECISION_HINT": HINT[precision], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        self._requests: dict[tuple[int, ...], Any] = {}

    def run_block(self, block: Encoded) -> NDArray[np.float32]:
        request = self._requests.get(block.mask_BL.shape)
        if request is None:
            request = self._requests[block.mask_BL.shape] = self._compile(block)
        request.infer()
        return np.array(request.get_output_tensor(0).data)

    def _compile(self, block: Encoded) -> Any:
        """A request whose inputs are the block's own memory."""
        arrays = {"x_BLF": block.x_BLF, "codes_BLK": block.codes_BLK, "mask_BL": block.mask_BL,
                  "context_BC": block.context_BC, "verdicts_BJSG": block.verdicts_BJSG}  # fmt: skip
        model = self._core.read_model(self._onnx, b"")
        wanted = [each.get_any_name() for each in model.inputs]
        model.reshape({name: list(arrays[name].shape) for name in wanted})
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        for name in wanted:
            request.set_tensor(name, openvino.Tensor(arrays[name], shared_memory=True))
        return request


def build(bundle: Bundle, threads: int, precision: Precision = "float32") -> OpenVinoEngine:
    """The float32 engine for a bundle that has a model.onnx."""
    engine = OpenVinoEngine(bundle, threads, precision)
    engine.settle(Scaling.of(bundle.weights))
    return engine


def build_bf16(bundle: Bundle, threads: int) -> OpenVinoEngine:
    """The same in bfloat16; OpenVINO falls back to float32 where the processor has no kernels for it."""
    return build(bundle, threads, "bfloat16")
