"""Detectors that a fleet teaches: what their forecasts may know, what counts as evidence, and how both levels meet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import ARCHITECTURES, ForecastDetector, build_detector
from models.detectors.base import tensors
from models.engines import choose, scores_of
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline
from models.weights import weight_shapes
from tests.models.test_surprise_detector import MACHINES, windows

NUMBERS = ("speed", "heat", "noise")


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES))
def machines(request: pytest.FixtureRequest) -> Pipeline:
    text = MACHINES.replace('"surprise"', f'"surprise-{request.param}"').replace("length = 2", "length = 12")
    optional = 'noise = { type = "number", required = false }\nkind = { type = "category", buckets = 5 }'
    return parse_pipeline(text.replace('noise = { type = "number" }', optional), "machines.toml")


@pytest.fixture(scope="module")
def detector(machines: Pipeline) -> ForecastDetector:
    torch.manual_seed(1)
    made = build_detector(machines.detector.architecture, Layout(machines).inputs, 8, 4)
    assert isinstance(made, ForecastDetector)
    made.fit_scaler(windows(machines, 200, 1))
    made.gain_A.copy_(torch.tensor([0.4, 0.5, 0.7]))
    return made.eval()


def nats(detector: ForecastDetector, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        nats_BLN, there_BLN = detector.unlikelihood(*tensors(encoded)[:3])
    return nats_BLN.numpy(), there_BLN.numpy()


def full(pipeline: Pipeline, rows: int, seed: int) -> Encoded:
    """Windows without padding, with no number missing."""
    encoded = windows(pipeline, rows, seed)
    x_BLF = np.random.default_rng(seed).normal(3, 2, encoded.x_BLF.shape).astype(np.float32)
    x_BLF[..., Layout(pipeline).inputs.x.index("noise.missing")] = 0.0
    return replace(encoded, x_BLF=x_BLF, mask_BL=np.ones_like(encoded.mask_BL))


def test_a_forecast_knows_the_events_before_only(machines: Pipeline, detector: ForecastDetector) -> None:
    """Another last event changes what is said of it, and of none before."""
    encoded = full(machines, 20, 2)
    other = replace(encoded, x_BLF=encoded.x_BLF.copy())
    other.x_BLF[:, -1] += 1.0
    (first, there), (second, _) = nats(detector, encoded), nats(detector, other)
    assert first[:, :-1] == pytest.approx(second[:, :-1], abs=1e-6)
    assert (np.abs(first[:, -1] - second[:, -1]) > 1e-3).any(axis=1).all()
    assert not there[:, 0].any()
    assert there[:, 1:].all()


def test_a_machine_of_another_size_is_forecast_alike(machines: Pipeline, detector: ForecastDetector) -> None:
    """The plain values of a machine are not read, only how far they are from its usual."""
    encoded = full(machines, 20, 3)
    larger = replace(encoded, x_BLF=encoded.x_BLF.copy())
    larger.x_BLF[..., [Layout(machines).inputs.x.index(name) for name in NUMBERS]] *= 3.0
    assert np.array_equal(nats(detector, encoded)[0], nats(detector, larger)[0])


def test_what_is_missing_is_no_evidence(machines: Pipeline, detector: ForecastDetector) -> None:
    encoded, names = full(machines, 6, 4), Layout(machines).inputs.x
    encoded.x_BLF[:, 5, names.index("noise.missing")] = 1.0
    nats_BLN, there_BLN = nats(detector, encoded)
    assert not there_BLN[:, 5, 2].any()
    assert (nats_BLN[:, 5, 2] == 0.0).all()
    assert there_BLN[:, 5, :2].all()


def test_masked_events_do_not_matter_not_even_nan(machines: Pipeline, detector: ForecastDetector) -> None:
    encoded = windows(machines, 40, 5)
    dirty = replace(encoded, x_BLF=encoded.x_BLF.copy())
    dirty.x_BLF[~encoded.mask_BL] = np.nan
    with torch.no_grad():
        clean_B, dirty_B = (detector(*tensors(each)).numpy() for each in (encoded, dirty))
    assert np.isfinite(clean_B).all()
    assert np.array_equal(clean_B, dirty_B)


def test_both_levels_meet_in_the_middle_once_surprise_knows_the_entity(
    machines: Pipeline, detector: ForecastDetector
) -> None:
    """Known: the mean of surprise and .7 times the forecasts' level; half known: .5 times the forecasts' alone."""
    names, encoded = Layout(machines).inputs.context, full(machines, 30, 6)
    encoded.context_BC[:, names.index("surprise")] = 0.5  # level 1
    encoded.context_BC[:, names.index("surprise.known")] = 0.5 + np.arange(30) % 2 / 2
    known_B = torch.arange(30) % 2 == 1
    with torch.no_grad():
        forecast_B = detector.forecast_level(
            detector.evidence(*tensors(encoded)[:3]), torch.where(known_B, 2, 1)
        ).numpy()
        level_B = np.exp(detector(*tensors(encoded)).numpy())
    expected_B = np.where(known_B.numpy(), 0.5 * (1.0 + 0.7 * forecast_B), 0.5 * forecast_B)
    assert level_B == pytest.approx(expected_B, rel=1e-4, abs=1e-6)


def test_the_evidence_of_a_horizon_is_the_mean_of_its_events(machines: Pipeline, detector: ForecastDetector) -> None:
    encoded = full(machines, 8, 7)
    nats_BLN, _ = nats(detector, encoded)
    with torch.no_grad():
        found = detector.evidence(*tensors(encoded)[:3]).numpy()
    every = nats_BLN[:, 1:]
    for place, horizon in enumerate((1, 4, 11, 11)):
        assert found[:, place, 0] == pytest.approx(every[:, -horizon:].mean((1, 2)), abs=1e-5)
        assert found[:, place, 1] == pytest.approx(every[:, -horizon:].max(2).mean(1), abs=1e-5)


def test_every_engine_runs_it_in_any_company(machines: Pipeline, detector: ForecastDetector, tmp_path: Path) -> None:
    """`choose` refuses an engine that is off the golden case, or whose bits depend on company."""
    bundle = write_bundle(
        tmp_path / "bundle", machines, detector, calibration=Calibration.identity(), threshold=0.5, metrics={},
        training={}, golden=windows(machines, 40, 8),
    )  # fmt: skip
    encoded = windows(machines, 100, 9)
    with torch.no_grad():
        expected = scores_of(detector(*tensors(encoded)).numpy())
    for name in ("torch", "onnxruntime", "openvino"):
        assert scores_of(choose(bundle, name).engine.logits(encoded)) == pytest.approx(expected, abs=1e-5)
    assert choose(bundle).engine.name in ("onnxruntime", "openvino")


def test_the_shapes_of_weights_are_known_without_torch(machines: Pipeline, detector: ForecastDetector) -> None:
    shapes = weight_shapes(machines.detector.architecture, Layout(machines).inputs, 8, 4)
    assert {name: array.shape for name, array in detector.weights().items()} == shapes


def test_without_anything_to_go_by_nothing_is_strange(machines: Pipeline, detector: ForecastDetector) -> None:
    """The first event of all, and one with every number missing, are at the bottom, however usual forecasts are."""
    names, encoded = Layout(machines).inputs.context, full(machines, 4, 10)
    encoded.context_BC[:, names.index("surprise.known")] = 0.0
    encoded.mask_BL[:2, :-1] = False
    usual = detector.usual_AR2.clone()
    detector.usual_AR2.fill_(-2.0)  # forecasts that are right have less than no nats
    with torch.no_grad():
        logit_B = detector(*tensors(encoded)).numpy()
    detector.usual_AR2.copy_(usual)
    assert scores_of(logit_B)[:2] == pytest.approx(0.0, abs=2e-6)
    assert (scores_of(logit_B)[2:] > 0.01).all()
