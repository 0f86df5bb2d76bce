"""Made-up windows for any inputs, with and without verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from models.features.encoded import Encoded, InputSpec

MakeWindows = Callable[..., Encoded]


def with_verdicts(inputs: InputSpec, profiles: int, length: int = 5) -> InputSpec:
    """The same inputs and the newest verdicts of so many shared profiles; without any, no place for one."""
    names = tuple(f"profile{j}" for j in range(profiles))
    return replace(inputs, verdicts=names, verdict_length=length if names else 0)


def random_windows(inputs: InputSpec, rows: int, seed: int = 0) -> Encoded:
    """Windows of all lengths from one event to full, left-padded, with none up to all of each profile's verdicts."""
    rng = np.random.default_rng(seed)
    events_B = rng.integers(1, inputs.length + 1, rows)
    mask_BL = np.arange(inputs.length) >= inputs.length - events_B[:, None]
    x_BLF = rng.normal(3.0, 2.0, (rows, inputs.length, len(inputs.x))).astype(np.float32)
    sizes = [size for _, size in inputs.codes]
    codes_BLK = rng.integers(0, sizes, (rows, inputs.length, len(sizes))).astype(np.int32)
    context_BC = rng.normal(-1.0, 4.0, (rows, len(inputs.context))).astype(np.float32)
    x_BLF[~mask_BL], codes_BLK[~mask_BL] = 0.0, 0
    profiles, verdicts, _ = inputs.verdict_shape
    verdicts_BJSG = rng.normal(2.0, 3.0, (rows, *inputs.verdict_shape)).astype(np.float32)
    verdicts_BJSG[..., 0] = 1.0
    verdicts_BJSG[..., 1] = rng.random(verdicts_BJSG.shape[:3]) < 0.3
    known_BJ = rng.integers(0, verdicts + 1, (rows, profiles))
    verdicts_BJSG[np.arange(verdicts) < verdicts - known_BJ[..., None]] = 0.0
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)
