"""Synthetic windows with verdicts, to train on in a second."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.detectors import Detector, build_detector
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from training.dataset import Part

INPUTS = InputSpec(
    x=("amount", "gap", "hour_sin", "hour_cos", "week_sin", "week_cos"), codes=(("kind", 5), ("channel", 3)),
    context=("history", "count"), length=7, verdicts=("shop", "device"), verdict_length=4,
)  # fmt: skip


def windows(rows: int, seed: int = 0, inputs: InputSpec = INPUTS) -> Encoded:
    """Windows of one event to full, gaps of seconds to days, and from no verdict to as many as there is room for."""
    rng = np.random.default_rng(seed)
    count_B = rng.integers(1, inputs.length + 1, rows)
    mask_BL = np.arange(inputs.length) >= inputs.length - count_B[:, None]
    x_BLF = rng.normal(0.0, 1.0, (rows, inputs.length, len(inputs.x))).astype(np.float32)
    x_BLF[..., inputs.x.index("gap")] = np.log1p(rng.exponential(40_000.0, (rows, inputs.length)))
    turn_BL = rng.uniform(0, 2 * np.pi, (rows, inputs.length))
    for name in ("hour", "week"):
        x_BLF[..., inputs.x.index(f"{name}_sin")] = np.sin(turn_BL)
        x_BLF[..., inputs.x.index(f"{name}_cos")] = np.cos(turn_BL)
    codes_BLK = rng.integers(0, [n for _, n in inputs.codes], (rows, inputs.length, len(inputs.codes))).astype(np.int32)
    x_BLF[~mask_BL], codes_BLK[~mask_BL] = 0.0, 0
    profiles, verdicts, features = inputs.verdict_shape
    verdicts_BJSG = np.abs(rng.normal(1.0, 1.0, (rows, profiles, verdicts, features))).astype(np.float32)
    absent_BJS = np.arange(verdicts) < verdicts - rng.integers(0, verdicts + 1, (rows, profiles, 1))
    verdicts_BJSG[..., VERDICT_FEATURES.index("present")] = 1.0
    verdicts_BJSG[absent_BJS] = 0.0
    context_BC = rng.normal(0.0, 1.0, (rows, len(inputs.context))).astype(np.float32)
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)


def part(rows: int, seed: int = 0, share: float = 1.0) -> Part:
    """Events that are fraud with odds that grow with the amount; of the legitimate a share is kept."""
    encoded = windows(rows, seed)
    logit_N = 2.0 * encoded.x_BLF[:, -1, 0].astype(np.float64) - 4.0
    rng = np.random.default_rng(seed + 1000)
    fraud_N = rng.random(rows) < 1.0 / (1.0 + np.exp(-logit_N))
    whole = Part(encoded, fraud_N, [f"card-{i}" for i in range(rows)], np.arange(rows, dtype=np.int64))
    return replace(whole.take(fraud_N | (rng.random(rows) < share)), legit_share=share)


def new_detector(train: Part, seed: int = 0, architecture: str = "gru") -> Detector:
    torch.manual_seed(seed)
    detector = build_detector(architecture, INPUTS, hidden=16, embedding=3)
    detector.fit_scaler(train.encoded)
    return detector


def true_rate(encoded: Encoded) -> NDArray[np.float64]:
    """What `part` draws frauds by."""
    return np.asarray(1.0 / (1.0 + np.exp(4.0 - 2.0 * encoded.x_BLF[:, -1, 0].astype(np.float64))))
