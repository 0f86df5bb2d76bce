"""A detector as an ONNX graph, for engines that know nothing of torch.

Batch and window length are free, so one graph serves every shape. Needs the `onnx` package, which the `training` extra
has.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch

from models.detectors.base import Detector, tensors
from models.features.encoded import Encoded, InputSpec

__all__ = ["to_onnx"]

OPSET = 17
EXAMPLE_ROWS, EXAMPLE_LENGTH = 2, 3  # of the windows that are traced
FREE = {
    "x_BLF": {0: "B", 1: "L"}, "codes_BLK": {0: "B", 1: "L"}, "mask_BL": {0: "B", 1: "L"}, "context_BC": {0: "B"},
    "verdicts_BJSG": {0: "B"},
}  # fmt: skip


def to_onnx(detector: Detector) -> bytes:
    """The graph: inputs x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG as in `Encoded`, output logit_B.

    The detector must be in eval mode. An input that no logit depends on is left out of the graph.
    """
    file: Any = io.BytesIO()  # torch's annotation wants a path
    with warnings.catch_warnings():
        # the newer exporter makes the same graph, in eight seconds and with more packages
        warnings.filterwarnings("ignore", message="You are using the legacy TorchScript", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="The feature will be removed", category=DeprecationWarning)
        # every second place of a sequence stays in the graph, as it should: its length is free
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1", category=UserWarning)
        # of a fixed batch size, which this graph has not
        warnings.filterwarnings("ignore", message="Exporting a model to ONNX with a batch_size", category=UserWarning)
        torch.onnx.export(
            detector, tensors(_example(detector.inputs)), file, dynamo=False, opset_version=OPSET,
            input_names=list(FREE), output_names=["logit_B"], dynamic_axes=FREE | {"logit_B": {0: "B"}},
        )  # fmt: skip
    graph: bytes = file.getvalue()
    return graph


def _example(inputs: InputSpec) -> Encoded:
    rows, length = EXAMPLE_ROWS, EXAMPLE_LENGTH
    arrays = (
        torch.zeros(rows, length, len(inputs.x)), torch.zeros(rows, length, len(inputs.codes), dtype=torch.int32),
        torch.ones(rows, length, dtype=torch.bool), torch.zeros(rows, len(inputs.context)),
        torch.zeros(rows, *inputs.verdict_shape),
    )  # fmt: skip
    return Encoded(*(array.numpy() for array in arrays))
