"""A detector's weights as arrays: which there are in each architecture, and their shapes. Known without torch.

The names are those of the torch modules in `models.detectors`, which a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from models.features.encoded import InputSpec
from models.pipeline.spec import SURPRISE, without_labels

__all__ = [
    "AGES", "ARCHITECTURES", "FORECAST_HORIZONS", "SURPRISE", "SURPRISE_LIMIT", "Scaling", "Weights", "cnn_dilations",
    "forecast_columns", "layer_width", "read_weights", "surprise_columns", "verdict_width", "weight_shapes",
]  # fmt: skip

Weights = Mapping[str, NDArray[np.float32]]
Shapes = dict[str, tuple[int, ...]]

CNN_KERNEL = 3  # events that a convolution sees
TRANSFORMER_LAYERS, FEED_FORWARD = 2, 2  # the second: times as wide within a layer
WIDTH_STEP = 16  # below 12 columns, MKL's kernels round a row by where it stands in its block
AGES = (0.3, 1.0)  # shares of `surprise.learn` from which an entity is of the next age; the last is "known"
FORECAST_HORIZONS = (1, 4, 16, 0)  # events that evidence is averaged over; 0: the whole window
SURPRISE_LIMIT = 1e-6  # logits of scores nearer to 0 or 1 say no more
WIDEST_VERDICTS = 32  # a verdict is a handful of numbers, and each costs a step


def layer_width(hidden: int) -> int:
    """How wide the layers are that a pipeline wants `hidden` wide."""
    return -(-hidden // WIDTH_STEP) * WIDTH_STEP


def verdict_width(hidden: int) -> int:
    """V, how wide the layers are that read a profile's verdicts: as wide as the others up to WIDEST_VERDICTS."""
    return min(layer_width(hidden), WIDEST_VERDICTS)


def cnn_dilations(length: int) -> tuple[int, ...]:
    """Places between those that a convolution sees, block by block: doubled until a state knows `length` places.

    >>> cnn_dilations(20), cnn_dilations(32)
    ((1, 2, 4, 8), (1, 2, 4, 8, 16))
    """
    dilations = [1]
    while 1 + (CNN_KERNEL - 1) * sum(dilations) < length:
        dilations.append(2 * dilations[-1])
    return tuple(dilations)


def weight_shapes(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Shapes:
    """Name and shape of every weight, the scaler's included.

    Raises ValueError for an architecture that is not known, and for sizes below 1.
    """
    names = [*ARCHITECTURES, SURPRISE, *(f"{SURPRISE}-{trunk}" for trunk in ARCHITECTURES)]
    if architecture not in names:
        known = ", ".join(sorted(names))
        raise ValueError(f"architecture = {architecture!r}: expected one of {known}")
    if hidden < 1 or embedding < 1:
        raise ValueError(f"hidden = {hidden}, embedding = {embedding}: expected at least 1")
    x, context = len(inputs.x), len(inputs.context)
    profiles, verdicts, features = inputs.verdict_shape
    shared: Shapes = {
        "x_mean_F": (x,), "x_std_F": (x,), "context_mean_C": (context,), "context_std_C": (context,),
        "verdict_mean_JG": (profiles, features), "verdict_std_JG": (profiles, features),
    }  # fmt: skip
    if architecture == SURPRISE:
        surprise_columns(inputs)
        return shared
    trunk = ARCHITECTURES[architecture.removeprefix(f"{SURPRISE}-")]
    shared["table.weight"] = (max(sum(rows for _, rows in inputs.codes), 1), embedding)
    event, width, narrow = x + len(inputs.codes) * embedding, layer_width(hidden), verdict_width(hidden)
    shared |= _named("trunk", trunk(event, width, inputs.length))
    if without_labels(architecture):
        evidence = (len(AGES) + 1, len(FORECAST_HORIZONS), 2)
        shared |= {"usual_AR2": evidence, "spread_AR2": evidence, "gain_A": (len(AGES) + 1,)}
        outputs = 2 * len(forecast_columns(inputs)[0])
        return shared | _linear("forecast.0", width, width) | _linear("forecast.2", width, outputs)
    for j in range(profiles):
        shared |= _named(f"verdict_trunks.{j}", trunk(features, narrow, verdicts))
    return shared | _head(width + profiles * narrow + event + context, width)


def forecast_columns(inputs: InputSpec) -> tuple[list[int], list[int], list[int]]:
    """Columns of x, for each number field: what it is above the usual, its `missing` flag (one behind the last where it
    has none), and itself."""
    names = inputs.x
    numbers = [
        name.removesuffix(".surprise") for name in names if name.endswith(".surprise") and name != "gap.surprise"
    ]
    missing = [names.index(f"{name}.missing") if f"{name}.missing" in names else len(names) for name in numbers]
    return [names.index(f"{name}.surprise") for name in numbers], missing, [names.index(name) for name in numbers]


def surprise_columns(inputs: InputSpec) -> tuple[int, int, list[int]]:
    """Columns of context: the score, what all fields carry, what each does. Raises ValueError where there are none."""
    names = inputs.context
    if "surprise" not in names:
        raise ValueError(f"architecture = {SURPRISE!r}: expected a pipeline with [surprise] learn above 0")
    total = names.index("surprise.carried")
    carried = [c for c, name in enumerate(names) if name.endswith(".carried") and c != total]
    return names.index("surprise"), total, carried


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
    verdict_mean_JG: NDArray[np.float32]
    verdict_std_JG: NDArray[np.float32]

    @staticmethod
    def of(weights: Weights) -> Scaling:
        return Scaling(**{field.name: weights[field.name] for field in fields(Scaling)})


def _gru(event: int, width: int, _: int) -> Shapes:
    """Gates are stacked as reset, update, new."""
    return {
        "gru.weight_ih_l0": (3 * width, event), "gru.weight_hh_l0": (3 * width, width),
        "gru.bias_ih_l0": (3 * width,), "gru.bias_hh_l0": (3 * width,),
    }  # fmt: skip


def _cnn(event: int, width: int, length: int) -> Shapes:
    shapes = _linear("first", event, width) | _norm("last", width)
    for block in range(len(cnn_dilations(length))):
        name = f"blocks.{block}"
        shapes |= _norm(f"{name}.norm", width) | _linear(f"{name}.mix", width, width)
        shapes |= {f"{name}.convolution.weight": (width, width, CNN_KERNEL), f"{name}.convolution.bias": (width,)}
    return shapes


def _transformer(event: int, width: int, _: int) -> Shapes:
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


def _named(part: str, shapes: Shapes) -> Shapes:
    return {f"{part}.{name}": shape for name, shape in shapes.items()}


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


# of a trunk: from the width of an event, that of the layers, and the length of the longest sequence to its shapes
ARCHITECTURES: dict[str, Callable[[int, int, int], Shapes]] = {"gru": _gru, "transformer": _transformer, "cnn": _cnn}
