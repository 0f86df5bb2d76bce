"""A detector's weights as arrays: which there are in each architecture, and their shapes. Known without torch.

The names are those of the torch modules in `models.detectors`, which a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.features.encoded import InputSpec

__all__ = ["ARCHITECTURES", "Scaling", "Weights", "layer_width", "read_weights", "weight_shapes"]

Weights = Mapping[str, NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]

CNN_KERNEL = 3  # events that a convolution sees
CNN_DILATIONS = (1, 2, 4, 8)  # events between them, block by block; a state knows 31 events, with its own
TRANSFORMER_LAYERS, FEED_FORWARD = 2, 2  # the second: times as wide within a layer
WIDTH_STEP = 16  # below 12 columns, MKL's kernels round a row by where it stands in its block


def layer_width(hidden: int) -> int:
    """How wide the layers are that a pipeline wants `hidden` wide."""
    return -(-hidden // WIDTH_STEP) * WIDTH_STEP


def weight_shapes(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Shapes:
    """Name and shape of every weight, the scaler's included.

    Raises ValueError for an architecture that is not known, and for sizes below 1.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture = {architecture!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
    if hidden < 1 or embedding < 1:
        raise ValueError(f"hidden = {hidden}, embedding = {embedding}: expected at least 1")
    x, context = len(inputs.x), len(inputs.context)
    shared: Shapes = {
        "x_mean_F": (x,), "x_std_F": (x,), "context_mean_C": (context,), "context_std_C": (context,),
        "table.weight": (max(sum(rows for _, rows in inputs.codes), 1), embedding),
    }  # fmt: skip
    event, width = x + len(inputs.codes) * embedding, layer_width(hidden)
    return shared | ARCHITECTURES[architecture](event, width) | _head(width + event + context, width)


def read_weights(data: bytes, shapes: Shapes) -> dict[str, NDArray[np.float32]]:
    """The arrays of a safetensors file. Raises ValueError for a file that is none, and names what does not fit."""
    try:
        weights: dict[str, NDArray[np.float32]] = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    found = {name: (array.dtype.name, array.shape) for name, array in weights.items()}
    expected = {name: ("float32", shape) for name, shape in shapes.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{name} is {found.get(name)}: expected {expected.get(name)}")
        if not np.isfinite(weights[name]).all():
            raise ValueError(f"{name} has a value that is not finite: expected finite float32")
    return weights


@dataclass(frozen=True, slots=True)
class Scaling:
    """Mean and standard deviation of every numeric input over the training windows, float32."""

    x_mean_F: NDArray[np.float32]
    x_std_F: NDArray[np.float32]
    context_mean_C: NDArray[np.float32]
    context_std_C: NDArray[np.float32]

    @staticmethod
    def of(weights: Weights) -> Scaling:
        return Scaling(*(weights[name] for name in ("x_mean_F", "x_std_F", "context_mean_C", "context_std_C")))


def _gru(event: int, width: int) -> Shapes:
    """Gates are stacked as reset, update, new."""
    return {
        "gru.weight_ih_l0": (3 * width, event), "gru.weight_hh_l0": (3 * width, width),
        "gru.bias_ih_l0": (3 * width,), "gru.bias_hh_l0": (3 * width,),
    }  # fmt: skip


def _cnn(event: int, width: int) -> Shapes:
    shapes = _linear("first", event, width) | _norm("last", width)
    for block in range(len(CNN_DILATIONS)):
        name = f"blocks.{block}"
        shapes |= _norm(f"{name}.norm", width) | _linear(f"{name}.mix", width, width)
        shapes |= {f"{name}.convolution.weight": (width, width, CNN_KERNEL), f"{name}.convolution.bias": (width,)}
    return shapes


def _transformer(event: int, width: int) -> Shapes:
    shapes = _linear("first", event, width) | _norm("last", width)
    for layer in range(TRANSFORMER_LAYERS):
        name = f"layers.{layer}"
        shapes |= _norm(f"{name}.attention_norm", width) | _norm(f"{name}.event_norm", width)
        shapes |= _linear(f"{name}.queries_keys_values", width, 3 * width) | _linear(f"{name}.mix", width, width)
        wide = FEED_FORWARD * width
        shapes |= _linear(f"{name}.wide", width, wide) | _linear(f"{name}.narrow", wide, width)
    return shapes


def _head(seen: int, width: int) -> Shapes:
    """Alternates with activations, which have no weights."""
    return _linear("head.0", seen, width) | _linear("head.3", width, width) | _linear("head.5", width, 1)


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# of the trunk: from the widths of an event and of the layers to its shapes
ARCHITECTURES: dict[str, Callable[[int, int], Shapes]] = {"gru": _gru, "transformer": _transformer, "cnn": _cnn}
