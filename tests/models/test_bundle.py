"""Bundles: what is written comes back, and whatever is damaged or does not fit is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.bundle import BundleInfo, load_bundle, read_info
from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.detectors import build_detector
from models.engines.torch_engine import TorchEngine, detector_of
from models.errors import BundleError
from models.features.encoded import InputSpec
from models.pipeline.load import parse_pipeline
from models.scorer import load_scorer
from tests.models.windows import random_windows, with_verdicts

FILES = ["MANIFEST.json", "bundle.json", "card.md", "golden.safetensors", "model.onnx", "weights.safetensors"]


def reseal(folder: Path, **changes: bytes) -> None:
    """Replace files and mend the manifest, as someone would who builds a bundle by hand."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    for name, data in changes.items():
        file = next(f for f in FILES if f.startswith(name))
        (folder / file).write_bytes(data)
        manifest["sha256"][file] = hashlib.sha256(data).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))


def refusal(folder: Path, pipeline) -> BundleError:
    with pytest.raises(BundleError) as caught:
        load_scorer(folder, pipeline, "torch")
    return caught.value


def test_what_is_written_comes_back(make_bundle, pipeline, detector, make_windows):
    """Everything a caller gave is in the loaded bundle, and torch gives the same bits with it."""
    bundle = make_bundle()
    assert sorted(os.listdir(bundle.folder)) == FILES
    assert (bundle.threshold, bundle.info.calibration) == (0.75, Calibration((0.0, 0.5, 1.0), (0.0, 0.02, 0.9)))
    info = bundle.info
    assert (info.metrics, info.training) == ({"average_precision": 0.5}, {"events": 50, "seed": 5})
    assert (info.architecture, info.hidden, info.embedding, info.pipeline) == ("gru", 6, 3, "small")
    assert info.created_at == "2023-11-14T22:13:20.000Z"
    assert info.version.startswith("20231114T221320-")
    encoded, again = make_windows(80), TorchEngine(detector_of(bundle))
    np.testing.assert_array_equal(again.logits(encoded), TorchEngine(detector).logits(encoded))


def test_the_card_tells_people(make_bundle):
    """Version, metrics, training data and limits are in the model card."""
    bundle = make_bundle()
    card = (bundle.folder / "card.md").read_text()
    for text in (bundle.version, bundle.info.digest, "average_precision | 0.5", "seed | 5", "0.75", "Limits"):
        assert text in card


def test_versions_differ_with_content_and_sort_by_time(make_bundle, detector):
    """Equal content at an equal time is one version; any change, or another second, is another."""
    first, same, later = make_bundle("a"), make_bundle("b"), make_bundle("c", created_ms=1_700_000_001_000)
    with torch.no_grad():
        next(detector.parameters())[0, 0] += 1.0
    changed = make_bundle("d")
    assert first.version == same.version
    assert len({first.version, later.version, changed.version}) == 3
    assert first.version < later.version


def test_metrics_may_be_numpy_scalars(tmp_path, pipeline, detector, make_windows):
    """What training measured is stored as plain JSON numbers."""
    metrics = {"ap": np.float64(0.25), "auc": np.float32(0.5), "events": np.int64(3)}
    bundle = write_bundle(
        tmp_path / "b", pipeline, detector, calibration=Calibration.identity(), threshold=float(np.float32(0.3)),
        metrics=metrics, training={}, golden=make_windows(100),
    )  # fmt: skip
    assert bundle.info.metrics == {"ap": 0.25, "auc": 0.5, "events": 3}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(make_bundle, pipeline, name):
    """Half a bundle is no bundle."""
    folder = make_bundle().folder
    (folder / name).unlink()
    error = refusal(folder, pipeline)
    assert error.reason == "missing"
    assert name in error.detail


@pytest.mark.parametrize("name", [f for f in FILES if f != "MANIFEST.json"])
def test_one_flipped_bit_is_found(make_bundle, pipeline, name):
    """Any change of any file since it was written is refused before the file is read further."""
    folder = make_bundle().folder
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    error = refusal(folder, pipeline)
    assert error.reason == "checksum"
    assert name in error.detail


@pytest.mark.parametrize(
    "manifest", [b"", b"{", b"[]", b'{"sha256": {"bundle.json": "00"}}', b'{"sha256": 3}', b"\xff"]
)
def test_a_manifest_that_is_none_is_refused(make_bundle, pipeline, manifest):
    """Truncated, foreign or incomplete manifests are of the wrong format, not a crash."""
    folder = make_bundle().folder
    (folder / "MANIFEST.json").write_bytes(manifest)
    assert refusal(folder, pipeline).reason == "format"


@pytest.mark.parametrize("change", [{"format": 2}, {"format": None}, {"architecture": "lstm"}, {"hidden": "many"},
                                    {"threshold": None}, {"calibration": {"scores": [1, 0], "probabilities": [0, 1]}},
                                    {"hidden": -16}])  # fmt: skip
def test_a_description_nobody_can_read_is_refused(make_bundle, pipeline, change):
    """A newer format, an unknown architecture, a value of the wrong kind."""
    folder = make_bundle().folder
    facts = json.loads((folder / "bundle.json").read_text()) | change
    reseal(folder, bundle=json.dumps(facts).encode())
    assert refusal(folder, pipeline).reason == "format"


def test_unknown_keys_are_for_later_versions(make_bundle, pipeline):
    """A bundle that says more than this version knows still loads."""
    folder = make_bundle().folder
    facts = json.loads((folder / "bundle.json").read_text()) | {"drift": {"psi": 0.1}}
    reseal(folder, bundle=json.dumps(facts).encode())
    assert isinstance(load_bundle(folder, pipeline).info, BundleInfo)


def test_a_bundle_for_another_pipeline_is_refused(make_bundle, pipeline):
    """A changed field, window or name makes another digest; a changed alert budget does not."""
    bundle = make_bundle()
    text = Path(__file__).with_name("conftest.py").read_text().split('SMALL = """')[1].split('"""')[0]
    for before, after in (("buckets = 7", "buckets = 8"), ("length = 20", "length = 21"), ('"small"', '"other"')):
        other = parse_pipeline(text.replace(before, after), "other.toml")
        error = refusal(bundle.folder, other)
        assert error.reason == "digest"
        assert bundle.info.digest in error.detail
    budget = parse_pipeline(text + "\n[policy]\nalerts_per_day = 7", "budget.toml")
    assert load_bundle(bundle.folder, budget).version == bundle.version


def test_inputs_the_features_do_not_give_are_refused(make_bundle, pipeline):
    """Even with the right digest: the feature code may have changed under an unchanged pipeline file."""
    folder = make_bundle().folder
    facts = json.loads((folder / "bundle.json").read_text())
    facts["inputs"]["context"][0] = "renamed"
    reseal(folder, bundle=json.dumps(facts).encode())
    error = refusal(folder, pipeline)
    assert error.reason == "digest"
    assert "inputs.context" in error.detail


@pytest.mark.parametrize("damage", ["nan", "shape", "missing", "extra", "text"])
def test_weights_that_cannot_be_used_are_refused(make_bundle, pipeline, damage):
    """NaN, another shape, a tensor too few or too many, a file that is none."""
    bundle = make_bundle()
    weights = {name: torch.from_numpy(array) for name, array in bundle.weights.items()}
    name = "head.0.bias"
    if damage == "nan":
        weights[name][1] = float("nan")
    elif damage == "shape":
        weights[name] = torch.zeros(3)
    elif damage == "missing":
        del weights[name]
    elif damage == "extra":
        weights["more"] = torch.zeros(3)
    data = b"no tensors" if damage == "text" else safetensors.torch.save(weights)
    reseal(bundle.folder, weights=data)
    assert refusal(bundle.folder, pipeline).reason == "weights"


def test_a_golden_case_of_another_curve_is_refused(make_bundle, pipeline):
    """The probabilities of the golden case must be those of the bundle's calibration at its scores."""
    folder = make_bundle().folder
    facts = json.loads((folder / "bundle.json").read_text())
    facts["calibration"]["probabilities"] = [0.0, 0.03, 0.9]
    reseal(folder, bundle=json.dumps(facts).encode())
    error = refusal(folder, pipeline)
    assert error.reason == "golden"
    assert "probability_B is off by" in error.detail


def test_a_bundle_of_an_early_version_has_no_graph(make_bundle, pipeline):
    """A bundle without model.onnx loads; one that the manifest does not vouch for is not read."""
    folder = make_bundle().folder
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["sha256"]["model.onnx"]
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert load_bundle(folder, pipeline).onnx is None
    (folder / "model.onnx").unlink()
    assert load_bundle(folder, pipeline).onnx is None


def test_a_golden_case_that_comes_out_differently_is_refused(make_bundle, pipeline):
    """Weights that are fine by themselves but score the golden windows differently are not this model."""
    bundle = make_bundle()
    weights = {name: torch.from_numpy(array) for name, array in bundle.weights.items()}
    weights["head.5.bias"] += 0.001
    reseal(bundle.folder, weights=safetensors.torch.save(weights))
    error = refusal(bundle.folder, pipeline)
    assert error.reason == "golden"
    assert "expected at most 1e-05" in error.detail


@pytest.mark.parametrize("data", [b"", b"\x00" * 40, safetensors.torch.save({"x_BLF": torch.zeros(2, 20, 3)})])
def test_a_golden_file_that_is_none_is_refused(make_bundle, pipeline, data):
    """A golden case that cannot be run is a refusal, not a pass."""
    folder = make_bundle().folder
    reseal(folder, golden=data)
    assert refusal(folder, pipeline).reason == "golden"


def test_verdicts_are_part_of_a_bundle(tmp_path, pipeline, inputs, monkeypatch):
    """Golden case, scaler and graph have them; features that give none do not fit, nor do those of other size."""
    judged = with_verdicts(inputs, 2)
    detector, windows = build_detector("gru", judged, 6, 3), random_windows(judged, 9)
    detector.fit_scaler(windows)
    with monkeypatch.context() as patched:
        for module in ("models.bundle", "models.bundle_write"):
            patched.setattr(f"{module}.check_inputs", lambda *_: None)  # the small pipeline keeps no verdicts
        bundle = write_bundle(
            tmp_path / "b", pipeline, detector, calibration=Calibration.identity(), threshold=0.5, metrics={},
            training={}, golden=windows,
        )  # fmt: skip
        assert bundle.info.inputs == judged
        np.testing.assert_array_equal(bundle.golden.encoded.verdicts_BJSG, windows.verdicts_BJSG)
        np.testing.assert_array_equal(bundle.weights["verdict_std_JG"], detector.verdict_std_JG.numpy())
        assert "the last 5 verdicts on profile0 and profile1" in (bundle.folder / "card.md").read_text()
        assert load_scorer(bundle.folder, pipeline).score(windows).score_B.shape == (9,)
        case = safetensors.torch.load_file(bundle.folder / "golden.safetensors")
        case["verdicts_BJSG"] = case["verdicts_BJSG"][:, :1].contiguous()
        whole = (bundle.folder / "golden.safetensors").read_bytes()
        reseal(bundle.folder, golden=safetensors.torch.save(case))
        assert "verdicts_BJSG is" in refusal(bundle.folder, pipeline).detail
        reseal(bundle.folder, golden=whole)
    assert "inputs.verdicts" in refusal(bundle.folder, pipeline).detail


def test_nothing_is_written_over(make_bundle):
    """A folder with something in it is left alone."""
    folder = make_bundle().folder
    before = {f: (folder / f).read_bytes() for f in FILES}
    with pytest.raises(BundleError, match=r"exists: .*not empty"):
        make_bundle(created_ms=1)
    assert {f: (folder / f).read_bytes() for f in FILES} == before


def test_a_bundle_that_would_be_refused_is_not_written(tmp_path, pipeline, detector, make_windows, inputs):
    """No golden windows, or a detector with other inputs: the folder stays absent."""
    rest = {"calibration": Calibration.identity(), "threshold": 0.5, "metrics": {}, "training": {}}
    with pytest.raises(BundleError, match="golden: 0 golden windows"):
        write_bundle(tmp_path / "b", pipeline, detector, golden=make_windows(0), **rest)
    narrow = build_detector("gru", InputSpec(inputs.x, inputs.codes, inputs.context[1:], inputs.length), 4, 2)
    with pytest.raises(BundleError, match=r"digest: the detector's inputs\.context"):
        write_bundle(tmp_path / "b", pipeline, narrow, golden=make_windows(3), **rest)
    with torch.no_grad():
        detector.x_mean_F[0] = float("nan")
    with pytest.raises(BundleError, match=r"weights: .*x_mean_F"):
        write_bundle(tmp_path / "b", pipeline, detector, golden=make_windows(3), **rest)
    assert os.listdir(tmp_path) == []


def test_info_is_read_without_the_pipeline(make_bundle):
    """Listing and publishing need checksums and facts, not a pipeline file."""
    bundle = make_bundle()
    assert read_info(bundle.folder) == bundle.info
