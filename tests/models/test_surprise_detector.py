"""The detector without labels: its logit is the surprise's, its reasons are the fields that carried it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.bundle import Bundle
from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import SurpriseDetector, build_detector
from models.engines import choose, scores_of
from models.errors import PipelineError
from models.features.encoded import SURPRISE, Encoded
from models.features.layout import Layout
from models.pipeline.load import parse_pipeline
from models.pipeline.spec import Pipeline
from models.scorer import load_scorer
from tests.models.windows import random_windows

MACHINES = """
[pipeline]
name = "machines"
entity = "machine"
event_id = "id"
time = "at"

[fields]
id = { type = "id" }
at = { type = "time", unit = "ms" }
machine = { type = "entity" }
speed = { type = "number" }
heat = { type = "number" }
noise = { type = "number" }

[window]
length = 2
horizons = ["1h"]

[surprise]
learn = 300

[detector]
architecture = "surprise"
"""


@pytest.fixture(scope="module")
def machines() -> Pipeline:
    return parse_pipeline(MACHINES, "machines.toml")


def windows(pipeline: Pipeline, rows: int, seed: int = 0) -> Encoded:
    """Random windows with columns of surprise as they may be."""
    names, random = Layout(pipeline).inputs.context, np.random.default_rng(seed)
    encoded = random_windows(Layout(pipeline).inputs, rows, seed)
    context_BC = encoded.context_BC.copy()
    for name in SURPRISE:
        context_BC[:, names.index(name)] = random.random(rows)
    carried = [names.index(f"{name}.carried") for name in ("speed", "heat", "noise")]
    context_BC[:, carried] = random.exponential(size=(rows, 3))
    context_BC[:, names.index("surprise.carried")] = context_BC[:, carried].sum(1)
    return replace(encoded, context_BC=context_BC)


@pytest.fixture(scope="module")
def bundle(machines: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    detector = build_detector("surprise", Layout(machines).inputs, 8, 4)
    detector.fit_scaler(windows(machines, 200, 1))
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "one", machines, detector, calibration=Calibration.identity(),
        threshold=0.5, metrics={}, training={}, golden=windows(machines, 40, 2),
    )  # fmt: skip


def test_the_score_is_the_surprise_and_the_probability_its_rank(machines: Pipeline, bundle: Bundle) -> None:
    names, encoded = Layout(machines).inputs.context, windows(machines, 300, 3)
    found = load_scorer(bundle.folder, machines).score(encoded)
    assert found.score_B == pytest.approx(encoded.context_BC[:, names.index("surprise")], abs=1e-6)
    assert np.array_equal(found.probability_B, encoded.context_BC[:, names.index("surprise.rank")])


@pytest.mark.parametrize("engine", ["native", "torch", "onnxruntime"])
def test_every_engine_runs_it(bundle: Bundle, machines: Pipeline, engine: str) -> None:
    """Also at the borders, and where a column is 0: finite logits."""
    names, encoded = Layout(machines).inputs.context, windows(machines, 65, 4)
    encoded.context_BC[:3, names.index("surprise")] = [0.0, 1.0, np.nextafter(np.float32(1), np.float32(0))]
    encoded.context_BC[3, [c for c, name in enumerate(names) if name.endswith("carried")]] = 0.0
    chosen = choose(bundle, engine).engine.logits(encoded)  # type: ignore[arg-type]
    assert np.isfinite(chosen).all()
    native = choose(bundle, "native").engine.logits(encoded)
    assert scores_of(chosen) == pytest.approx(scores_of(native), abs=1e-6)


def test_auto_takes_our_own_kernel_and_int16_says_why_not(bundle: Bundle) -> None:
    assert choose(bundle).engine.name == "native"
    with pytest.raises(Exception, match="cannot run surprise, only gru"):
        choose(bundle, "native-int16")


def test_the_reasons_are_the_fields_that_carried_it(machines: Pipeline, bundle: Bundle) -> None:
    """Without a field that carried all but a quarter, a quarter of the level is left."""
    names, encoded = Layout(machines).inputs.context, windows(machines, 4, 5)
    columns = [names.index(name) for name in ("surprise", "surprise.carried", "speed.carried", "heat.carried")]
    encoded.context_BC[0, [*columns, names.index("noise.carried")]] = [0.8, 64.0, 8.0, 48.0, 8.0]
    scorer = load_scorer(bundle.folder, machines)
    scorer._scaling.context_mean_C[[c for c, name in enumerate(names) if name.endswith(".carried")]] = 0.0
    reasons = scorer.explain(encoded, 3)[0]
    assert [reason.feature for reason in reasons] == ["heat.carried", "speed.carried", "noise.carried"]
    assert [reason.value for reason in reasons] == [48.0, 8.0, 8.0]
    left = 4.0 * 16.0 / 64.0
    assert reasons[0].effect == pytest.approx(0.8 - left / (1.0 + left), abs=1e-5)


def test_without_surprise_there_is_no_such_detector() -> None:
    without = MACHINES.replace("learn = 300", "learn = 0")
    with pytest.raises(PipelineError, match=r"detector.architecture = 'surprise': expected surprise.learn above 0"):
        parse_pipeline(without, "machines.toml")
    other = parse_pipeline(without.replace('architecture = "surprise"', 'architecture = "gru"'), "machines.toml")
    with pytest.raises(ValueError, match=r"expected a pipeline with \[surprise\] learn above 0"):
        SurpriseDetector(Layout(other).inputs, 8, 4)
