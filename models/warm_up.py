"""Compile what a worker runs before it has to be quick; from then on it is read from disk (`models.compiled`)."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.clock import DAY_MS
from models.codec import Codec
from models.engines.native_gru import NativeGru
from models.features.encoded import Encoded
from models.features.step import warm_up as warm_up_features
from models.pipeline.spec import BooleanField, Field, GeoField, NumberField, TimeField
from models.weights import weight_shapes

__all__ = ["warm_up", "warm_up_engines"]


def warm_up(codec: Codec) -> None:
    """The loops that read events and make features: half a minute on a new machine, else a fraction of a second."""
    codec.decode([codec.encode_event(_row(codec))], np.array([2 * DAY_MS]))
    warm_up_features(codec.layout)


def warm_up_engines(codec: Codec) -> None:
    """The native engine, which otherwise is compiled when the first model is loaded."""
    inputs = codec.layout.inputs
    shapes = weight_shapes("gru", inputs, hidden=16, embedding=1)
    weights = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    window = Encoded(
        np.zeros((1, inputs.length, len(inputs.x)), np.float32),
        np.zeros((1, inputs.length, len(inputs.codes)), np.int32),
        np.ones((1, inputs.length), np.bool_),
        np.zeros((1, len(inputs.context)), np.float32),
        np.ones((1, *inputs.verdict_shape), np.float32),
    )
    for short in (False, True):
        NativeGru(weights, inputs, hidden=16, embedding=1, short=short).logits(window)


def _row(codec: Codec) -> dict[str, Any]:
    """An event with a value in every field."""
    row: dict[str, Any] = {}
    for name, field in codec.pipeline.fields.items():
        if isinstance(field, GeoField):
            row |= {f"{name}.latitude": 0.5, f"{name}.longitude": 0.5}
        else:
            row[name] = _value(field)
    return row


def _value(field: Field) -> Any:
    if isinstance(field, TimeField):
        return DAY_MS
    if isinstance(field, NumberField):
        return field.min if field.min is not None else 0.5
    return True if isinstance(field, BooleanField) else "a"
