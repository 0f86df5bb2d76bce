"""The choice of an engine: the fastest that is right, a named reason for each that is left out."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle, load_bundle
from models.detectors.export import to_onnx
from models.engines import Measured, choose
from models.engines.choose import fastest
from models.engines.torch_engine import TorchEngine, detector_of
from models.errors import BundleError
from models.scorer import load_scorer

ROOT = Path(__file__).resolve().parents[2]


def with_graph(bundle: Bundle, graph: bytes) -> Path:
    """The bundle's folder with another model.onnx, and a manifest that agrees."""
    path = bundle.folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"]["model.onnx"] = hashlib.sha256(graph).hexdigest()
    (bundle.folder / "model.onnx").write_bytes(graph)
    path.write_text(json.dumps(manifest))
    return bundle.folder


def rows_of(table: tuple[Measured, ...]) -> dict[str, Measured]:
    return {row.engine: row for row in table}


def test_the_fastest_right_engine_is_taken_by_measurement(make_bundle):
    """What `auto` takes follows from the table it returns, and the table has real times of real engines."""
    choice = choose(make_bundle())
    measured = [row for row in choice.table if row.left_out is None]
    assert len(measured) >= 2
    assert choice.engine.name == fastest(measured)
    for row in measured:
        assert row.golden is not None
        assert row.golden <= 1e-5
        assert 0 < row.large_s < row.small_s < 0.01  # overhead is shared by more events


def test_reduced_precision_and_torch_are_not_tried_unasked(make_bundle):
    """Scores change in the third digit with one, and importing the other costs a worker most of its memory."""
    assert set(rows_of(choose(make_bundle()).table)) == {"native", "onnxruntime", "openvino"}


def test_a_named_engine_is_used_or_none(make_bundle):
    """A setting is obeyed, whatever is faster."""
    for name in ("torch", "onnxruntime", "openvino-bf16"):
        choice = choose(make_bundle(name), name)
        assert (choice.engine.name, len(choice.table)) == (name, 1)
    with pytest.raises(ValueError, match="'tensorrt': expected one of auto, native"):
        choose(make_bundle("b"), "tensorrt")


def test_the_rule():
    """Least time in large batches; a slow small batch excludes; a later engine must be clearly faster."""

    def row(name: str, small_us: float, large_us: float) -> Measured:
        return Measured(name, small_us / 1e6, large_us / 1e6, 0.0)

    assert fastest([row("a", 20, 10), row("b", 90, 5)]) == "b"
    assert fastest([row("a", 20, 10), row("b", 500, 5)]) == "a", "4 ms for 8 events"
    assert fastest([row("a", 900, 10), row("b", 500, 5)]) == "b", "all are slow in small batches"
    assert fastest([row("a", 20, 10), row("b", 20, 9)]) == "a", "within what chance may do"


def test_a_damaged_graph_leaves_the_engines_that_need_it_out(make_bundle, pipeline):
    """Its manifest is right, so nobody damaged it on the way: it was made wrong. Others may still run the bundle."""
    folder = with_graph(make_bundle(), b"\x08\x08 this is no graph")
    scorer = load_scorer(folder, pipeline)
    rows = rows_of(scorer.measured)
    assert scorer.engine in ("native", "torch")
    assert rows["onnxruntime"].left_out.startswith("InvalidProtobuf")
    assert rows["openvino"].left_out.startswith("RuntimeError")
    with pytest.raises(BundleError, match=r"engine: .* with engine = 'onnxruntime': onnxruntime: InvalidProtobuf"):
        load_scorer(folder, pipeline, "onnxruntime")


def test_a_graph_of_another_model_fails_the_golden_case(make_bundle, pipeline, detector):
    """A graph that runs but scores the golden windows differently is left out by how much it is off."""
    bundle = make_bundle()
    with torch.no_grad():
        detector.head[5].bias += 0.01
    folder = with_graph(bundle, to_onnx(detector))
    row = rows_of(load_scorer(folder, pipeline).measured)["onnxruntime"]
    assert 1e-4 < row.golden < 0.01
    assert row.left_out.startswith("golden: score_B is off by")
    with pytest.raises(BundleError) as caught:
        load_scorer(folder, pipeline, "onnxruntime")
    assert caught.value.reason == "golden"


def test_a_bundle_without_a_graph_is_told_of(make_bundle, pipeline):
    """Bundles of early versions run on the engines that read the weights."""
    bundle = replace(make_bundle(), onnx=None)
    choice = choose(bundle)
    assert choice.engine.name in ("native", "torch")
    assert "no model.onnx" in rows_of(choice.table)["onnxruntime"].left_out


def test_an_engine_whose_bits_depend_on_company_is_left_out(make_bundle, monkeypatch):
    """The promise is tried on the machine that will rely on it."""

    def by_rank(self: TorchEngine, encoded: object) -> np.ndarray:
        logits = right(self, encoded)
        return logits + 1e-6 * np.arange(len(logits), dtype=np.float32)

    right = TorchEngine.logits
    monkeypatch.setattr(TorchEngine, "logits", by_rank)
    with pytest.raises(BundleError, match="changes with its company"):
        choose(make_bundle(), "torch")


def test_torch_runs_what_nothing_else_can(make_bundle, pipeline):
    """With the other packages away `auto` falls back to torch, and without torch says which extras would help."""
    bundle = make_bundle()
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(sys.argv[2].split(',')))\n"  # importing a module that is None fails
        "from pathlib import Path\n"
        "from models.bundle import load_bundle\n"
        "from models.engines import choose\n"
        "from models.errors import BundleError\n"
        "from models.pipeline.load import parse_pipeline\n"
        "pipeline = parse_pipeline(sys.stdin.read(), 'small.toml')\n"
        "try:\n"
        "    print(choose(load_bundle(Path(sys.argv[1]), pipeline)).engine.name)\n"
        "except BundleError as error:\n"
        "    print(error)\n"
    )
    text = Path(__file__).with_name("conftest.py").read_text().split('SMALL = """')[1].split('"""')[0]

    def without(packages: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, str(bundle.folder), packages], input=text, text=True,
                              capture_output=True, check=True, cwd=ROOT, timeout=120)  # fmt: skip
        return done.stdout.strip()

    others = "models.engines.native_gru,onnxruntime,openvino"
    assert without(others) == "torch"
    error = without(f"{others},torch")
    assert error.startswith(f"engine: {bundle.version} with engine = 'auto'")
    for extra in ("lepton[onnx]", "lepton[openvino]", "lepton[torch]"):
        assert extra in error


def test_the_loaded_detector_is_the_written_one(make_bundle, pipeline, detector):
    """Training starts from a bundle's weights: torch gets them back to the bit."""
    again = detector_of(load_bundle(make_bundle().folder, pipeline))
    assert not again.training
    assert {n: w.tobytes() for n, w in again.weights().items()} == {
        n: w.tobytes() for n, w in detector.weights().items()
    }
