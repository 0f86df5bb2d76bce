"""What is different about two bundles: facts, metrics, calibration, and how far each weight has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy

from models.bundle import WEIGHTS, read_info

__all__ = ["diff"]

PASSED_OVER = ("golden_events", "golden_frauds", "loss")  # lists nobody reads side by side


def diff(first: Path, second: Path) -> dict[str, Any]:
    """JSON values: `facts` that differ, by dotted name, as (first, second); `weights` by tensor. Raises BundleError.

    Of a weight: the largest and the mean change, and the cosine between both (1 for the same direction, 0 where only one is all
    zeros); None where the tensor is in one of them only, or has another shape.
    """
    sides = [dict(_flat("", msgspec.to_builtins(read_info(folder)))) for folder in (first, second)]
    names = [name for name in {**sides[0], **sides[1]} if name.rsplit(".", 1)[-1] not in PASSED_OVER]
    facts = {name: [side.get(name) for side in sides] for name in names if sides[0].get(name) != sides[1].get(name)}
    weights = [safetensors.numpy.load((folder / WEIGHTS).read_bytes()) for folder in (first, second)]
    return {"facts": facts, "weights": {name: _moved(*(side.get(name) for side in weights))
                                        for name in sorted({**weights[0], **weights[1]})}}  # fmt: skip


def _moved(first: Any, second: Any) -> dict[str, float] | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    a, b = (side.astype(np.float64).ravel() for side in (first, second))
    both = float(np.linalg.norm(a) * np.linalg.norm(b))
    change = np.abs(b - a)
    return {"largest": float(change.max(initial=0.0)), "mean": float(change.mean()) if len(change) else 0.0,
            "cosine": float(a @ b / both) if both else float(not change.any())}  # fmt: skip


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for name, inner in value.items() for pair in _flat(f"{prefix}.{name}" if prefix else name, inner)]
    return [(prefix, value)]
