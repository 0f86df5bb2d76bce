"""Synthetic windows and a small bundle, for the tests of everything between features and registry."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from models.bundle import Bundle
from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import Detector, build_detector
from models.features.encoded import InputSpec
from models.features.layout import Layout
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline
from tests.models.windows import MakeWindows, random_windows

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


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return parse_pipeline(SMALL, "small.toml")


@pytest.fixture(scope="session")
def inputs(pipeline: Pipeline) -> InputSpec:
    return Layout(pipeline).inputs


@pytest.fixture(scope="session")
def make_windows(inputs: InputSpec) -> MakeWindows:
    """make_windows(rows, seed=0): windows of the small pipeline."""
    return partial(random_windows, inputs)


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
