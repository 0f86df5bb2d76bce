"""What the inputs of a detector say by themselves: columns of windows, compared and judged one at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from training.metrics import average_precision

__all__ = ["columns_of", "lone_precision", "unlike"]


def columns_of(inputs: InputSpec, encoded: Encoded) -> dict[str, NDArray[np.generic]]:
    """Each input by name, with all its steps: arrays whose first axis is the event."""
    columns: dict[str, NDArray[np.generic]] = {"mask": encoded.mask_BL}
    columns |= {f"x.{name}": encoded.x_BLF[:, :, f] for f, name in enumerate(inputs.x)}
    columns |= {f"codes.{name}": encoded.codes_BLK[:, :, k] for k, (name, _) in enumerate(inputs.codes)}
    columns |= {f"context.{name}": encoded.context_BC[:, c] for c, name in enumerate(inputs.context)}
    for j, profile in enumerate(inputs.verdicts):
        for g, name in enumerate(VERDICT_FEATURES):
            columns[f"verdicts.{profile}.{name}"] = encoded.verdicts_BJSG[:, j, :, g]
    return columns


def unlike(made: dict[str, NDArray[np.generic]], given: dict[str, NDArray[np.generic]]) -> dict[str, int]:
    """Columns that are not the same to the bit, and for how many events."""
    rows = {
        name: int(np.any((values != given[name]).reshape(len(values), -1), axis=1).sum())
        for name, values in made.items()
    }
    return {name: count for name, count in rows.items() if count}


def lone_precision(columns: dict[str, NDArray[np.generic]], fraud_N: NDArray[np.bool_]) -> dict[str, float]:
    """Average precision of each number alone, the better of both directions; of a window its last event's."""
    found = {}
    for name, values in columns.items():
        last_N = values if values.ndim == 1 else values[:, -1]
        if name == "mask" or not fraud_N.any() or fraud_N.all() or last_N.dtype.kind != "f":
            continue
        number_N = np.asarray(last_N, dtype=np.float32)
        found[name] = max(average_precision(fraud_N, number_N), average_precision(fraud_N, -number_N))
    return found
