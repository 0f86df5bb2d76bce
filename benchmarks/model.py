"""An untrained but real model: it costs what a trained one does, and its scores are as deterministic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import build_detector
from models.detectors.base import tensors
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.spec import Pipeline

__all__ = ["write_model"]

CHUNK = 512


def write_model(pipeline: Pipeline, windows: Encoded, counted: Encoded, folder: Path, alert_share: float) -> Path:
    """A bundle with random weights from a fixed seed.

    windows: for the scaler and the golden case. counted: windows whose scores reach the threshold in this share.
    """
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spec = pipeline.detector
    detector = build_detector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    detector.fit_scaler(windows)
    detector.eval()
    parts = [counted.take(slice(a, a + CHUNK)) for a in range(0, len(counted), CHUNK)]
    with torch.inference_mode():
        logits: NDArray[np.float32] = np.concatenate([detector(*tensors(part)).numpy() for part in parts])
    threshold = float(np.quantile(1 / (1 + np.exp(-logits.astype(np.float64))), 1 - alert_share))
    write_bundle(
        folder, pipeline, detector, calibration=Calibration.identity(), threshold=threshold, metrics={},
        training={"seed": 0}, golden=windows.take(slice(0, 32)),
    )  # fmt: skip
    return folder
