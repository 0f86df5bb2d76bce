"""Synthetic windows and a small bundle, for the tests of everything between features and registry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import Detector, build_detector
from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline

SMALL = """
[pipeline]
name = "small"
entity = "card"
event_id = "id"
time = "at"

[fields]
id = { type = "id" }
at = { type = "time", unit = "ms" }
card = { type = "entity" }
shop = { type = "entity" }
amount = { type = "number", required = false }
kind = { type = "category", buckets = 7 }
place = { type = "geo" }

[window]
length = 20
horizons = ["1h", "1d"]

[profiles.shop]
key = "shop"
half_lives = ["1d", "7d"]
"""

MakeWindows = Callable[..., Encoded]


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return parse_pipeline(SMALL, "small.toml")


@pytest.fixture(scope="session")
def inputs(pipeline: Pipeline) -> InputSpec:
    return Layout(pipeline).inputs


@pytest.fixture(scope="session")
def make_windows(inputs: InputSpec) -> MakeWindows:
    """make_windows(rows, seed=0): windows of all lengths from one event to full, left-padded."""

    def make(rows: int, seed: int = 0) -> Encoded:
        rng = np.random.default_rng(seed)
        events_B = rng.integers(1, inputs.length + 1, rows)
        mask_BL = np.arange(inputs.length) >= inputs.length - events_B[:, None]
        x_BLF = rng.normal(3.0, 2.0, (rows, inputs.length, len(inputs.x))).astype(np.float32)
        sizes = [size for _, size in inputs.codes]
        codes_BLK = rng.integers(0, sizes, (rows, inputs.length, len(sizes))).astype(np.int32)
        context_BC = rng.normal(-1.0, 4.0, (rows, len(inputs.context))).astype(np.float32)
        x_BLF[~mask_BL], codes_BLK[~mask_BL] = 0.0, 0
        return Encoded(x_BLF, codes_BLK, mask_BL, context_BC)

    return make


@pytest.fixture
def detector(inputs: InputSpec, make_windows: MakeWindows) -> Detector:
    """A small GRU with a fitted scaler, in eval mode."""
    torch.manual_seed(5)
    detector = build_detector("gru", inputs, hidden=6, embedding=3)
    detector.fit_scaler(make_windows(50, seed=9))
    return detector.eval()


@pytest.fixture
def make_bundle(
    tmp_path: Path, pipeline: Pipeline, detector: Detector, make_windows: MakeWindows
) -> Callable[..., Bundle]:
    """make_bundle(name, created_ms): a bundle in its own folder."""

    def make(name: str = "bundle", created_ms: int = 1_700_000_000_000) -> Bundle:
        return write_bundle(
            tmp_path / name, pipeline, detector,
            calibration=Calibration((0.0, 0.5, 1.0), (0.0, 0.02, 0.9)), threshold=0.75,
            metrics={"average_precision": 0.5}, training={"events": 50, "seed": 5},
            golden=make_windows(7, seed=3), created_ms=created_ms,
        )  # fmt: skip

    return make
