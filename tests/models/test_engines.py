"""What every engine promises, tried on all that are installed: right scores, the same bits in any company."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import FORMAT, Bundle, BundleInfo, Golden
from models.calibration import Calibration
from models.detectors import ARCHITECTURES, Detector, build_detector
from models.detectors.base import tensors
from models.detectors.export import to_onnx
from models.engines import Engine, choose, scores_of
from models.engines.base import TOLERANCE
from models.engines.blocks import BLOCK, block_lengths, probe_windows
from models.engines.torch_engine import TorchEngine, detector_of
from models.features.encoded import Encoded, InputSpec
from models.features.layout import Layout
from models.pipeline.load import load_pipeline, parse_pipeline
from models.weights import Scaling
from tests.models.windows import MakeWindows, random_windows, with_verdicts

PACKAGE = {
    "native": "numba", "native-int16": "numba", "onnxruntime": "onnxruntime", "openvino": "openvino",
    "openvino-bf16": "openvino", "torch": "torch",
}  # fmt: skip
PLAIN = """
[pipeline]
name = "plain"
entity = "machine"
event_id = "id"
time = "at"
[fields]
id = { type = "id" }
at = { type = "time", unit = "ms" }
machine = { type = "entity" }
heat = { type = "number" }
[window]
length = 9
horizons = ["1h"]
"""


@pytest.fixture(params=sorted(PACKAGE))
def name(request) -> str:
    if importlib.util.find_spec(PACKAGE[request.param]) is None:
        pytest.skip(f"{PACKAGE[request.param]} is not installed")
    return request.param


@pytest.fixture(params=[0, 2], ids=["no-verdicts", "2-profiles"])
def inputs(request, pipeline) -> InputSpec:
    """Every engine runs what reads verdicts and what reads none."""
    return with_verdicts(Layout(pipeline).inputs, request.param)


@pytest.fixture
def make_windows(inputs) -> MakeWindows:
    return partial(random_windows, inputs)


@pytest.fixture
def bundle(detector, make_windows) -> Bundle:
    return bundled(detector, make_windows(7, seed=3))


@pytest.fixture
def engine(name, bundle) -> Engine:
    return choose(bundle, name).engine


def bundled(detector: Detector, golden: Encoded) -> Bundle:
    """A detector as it is read back from a folder."""
    info = BundleInfo(
        format=FORMAT, version="1", created_at="", pipeline="", digest="", architecture=detector.architecture,
        hidden=detector.hidden, embedding=detector.embedding, inputs=detector.inputs,
        calibration=Calibration.identity(), threshold=0.5, metrics={}, training={},
    )  # fmt: skip
    score_B = scores_of(TorchEngine(detector).logits(golden))
    return Bundle(Path(), info, detector.weights(), to_onnx(detector), Golden(golden, score_B))


def large_bundle(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Bundle:
    """An untrained model in the size it is meant for."""
    torch.manual_seed(3)
    detector = build_detector(architecture, inputs, hidden, embedding).eval()
    standard = Scaling.of(detector.weights())
    detector.fit_scaler(probe_windows(inputs, 50, inputs.length, standard))
    return bundled(detector, probe_windows(inputs, 32, inputs.length, standard))


def payments() -> InputSpec:
    """The inputs of the shipped pipeline, with the verdicts of one profile."""
    return with_verdicts(Layout(load_pipeline("payments")).inputs, 1, 32)


def mixed(bundle: Bundle, rows: int) -> Encoded:
    """Windows of all lengths of any bundle, shuffled."""
    inputs, scaling = bundle.info.inputs, Scaling.of(bundle.weights)
    events = np.arange(rows) % inputs.length + 1
    parts = [probe_windows(inputs, int((events == n).sum()), n, scaling) for n in np.unique(events).tolist()]
    return Encoded.concatenate(parts).take(np.random.default_rng(7).permutation(rows))


def last_events(encoded: Encoded) -> Encoded:
    last = slice(-1, None)
    return replace(
        encoded, x_BLF=encoded.x_BLF[:, last], codes_BLK=encoded.codes_BLK[:, last], mask_BL=encoded.mask_BL[:, last]
    )


def assert_company_changes_nothing(engine: Engine, encoded: Encoded) -> None:
    together = engine.logits(encoded)
    rng = np.random.default_rng(1)
    count = len(encoded)
    for size in (1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 130):
        order = rng.permutation(count)
        for start in range(0, min(count, 12 * size), size):
            index = order[start : start + size]
            np.testing.assert_array_equal(engine.logits(encoded.take(index)), together[index])


def test_scores_are_those_of_torch_within_the_stated_tolerance(engine, bundle, detector, make_windows):
    """Not on the golden case alone: on windows the engine has never seen, of every length."""
    encoded = make_windows(300, seed=21)
    expected = scores_of(TorchEngine(detector).logits(encoded))
    scores = scores_of(engine.logits(encoded))
    assert engine.logits(encoded).dtype == np.float32
    assert np.abs(scores - expected).max() <= TOLERANCE[engine.precision]
    assert np.ptp(expected) > 5 * TOLERANCE[engine.precision]


def test_a_window_has_the_same_bits_in_any_company(engine, make_windows):
    """One by one, in pieces of any size and in any order."""
    assert_company_changes_nothing(engine, make_windows(270, seed=4))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_promise_holds_at_the_size_of_a_real_model(name, architecture):
    """Kernels choose by size: windows of 32 payments and layers 64 wide, as they ship, are tried, too."""
    if name.startswith("native") and architecture != "gru":
        pytest.skip("our own kernels are the GRU's")
    bundle = large_bundle(architecture, payments(), 64, 8)
    engine = choose(bundle, name).engine
    encoded = mixed(bundle, 270)
    assert_company_changes_nothing(engine, encoded)
    expected = scores_of(TorchEngine(detector_of(bundle)).logits(encoded))
    assert np.abs(scores_of(engine.logits(encoded)) - expected).max() <= TOLERANCE[engine.precision]


def test_windows_that_share_a_past_have_the_same_bits_as_by_themselves(engine, make_windows):
    """What explanations rest on: another last event, context and verdicts after the past of some window, or of none."""
    past, other, rng = make_windows(40, seed=8), make_windows(120, seed=9), np.random.default_rng(3)
    past_V = rng.integers(-1, 40, 120)
    last = last_events(other)
    whole = past.take(np.maximum(past_V, 0))
    for part, own in ((whole.x_BLF, last.x_BLF), (whole.codes_BLK, last.codes_BLK), (whole.mask_BL, last.mask_BL)):
        part[:, -1:] = own
    whole.mask_BL[past_V < 0, :-1] = False
    expected = engine.logits(replace(whole, context_BC=last.context_BC, verdicts_BJSG=last.verdicts_BJSG))
    assert (past_V < 0).any()
    np.testing.assert_array_equal(engine.logits_after(past, last, past_V), expected)
    assert engine.logits_after(past, last.take(slice(0)), past_V[:0]).shape == (0,)


@pytest.mark.parametrize("name", ["native", "native-int16"])
def test_a_shared_past_is_rounded_as_a_step_rounds_it(name):
    """Our kernels begin in the middle of a window: of thousands of states, none may be off by a unit of int16."""
    bundle = large_bundle("gru", payments(), 64, 8)
    engine, windows = choose(bundle, name).engine, mixed(bundle, 1500)
    logit_B = engine.logits_after(windows, last_events(windows), np.arange(1500))
    np.testing.assert_array_equal(logit_B, engine.logits(windows))


def test_what_stands_at_masked_positions_is_never_read(engine, make_windows):
    """Neither numbers, nor codes, nor NaN there reach a logit; nor does anything where no verdict is."""
    encoded = make_windows(90, seed=5)
    dirty = deepcopy(encoded)
    dirty.x_BLF[~encoded.mask_BL] = np.nan
    dirty.codes_BLK[~encoded.mask_BL] = 3
    dirty.verdicts_BJSG[..., 1:][encoded.verdicts_BJSG[..., 0] == 0] = np.nan
    assert not encoded.mask_BL.all()
    np.testing.assert_array_equal(engine.logits(dirty), engine.logits(encoded))


def test_an_engine_keeps_nothing_of_earlier_batches(engine, make_windows):
    """NaN in one batch does not reach the next one's windows; inputs and earlier answers stay as they were."""
    encoded, spoilt = make_windows(70, seed=6), make_windows(70, seed=7)
    copy = deepcopy(encoded)
    first = engine.logits(encoded)
    kept = first.copy()
    spoilt.x_BLF[:], spoilt.context_BC[:], spoilt.verdicts_BJSG[..., 1:] = np.nan, np.nan, np.nan
    engine.logits(spoilt)  # most answer NaN; OpenVINO takes a NaN for the lower limit of a scaled number
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(engine.logits(encoded.take(slice(0, 9))), kept[:9])
    for field in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
        np.testing.assert_array_equal(getattr(encoded, field), getattr(copy, field))


def test_views_of_larger_arrays_are_as_good_as_arrays(engine, make_windows):
    """Every third window of a batch, which does not lie together in memory."""
    encoded = make_windows(90, seed=8)
    third = encoded.take(slice(0, None, 3))
    assert not third.x_BLF.flags.c_contiguous
    np.testing.assert_array_equal(engine.logits(third), engine.logits(encoded)[::3])


def test_no_windows_have_no_logits(engine, make_windows):
    """An empty batch is a batch."""
    assert engine.logits(make_windows(0)).shape == (0,)


def test_a_pipeline_without_categories_runs(name):
    """K = 0 is a size like any other, and a window of 9 events is no multiple of anything."""
    bundle = large_bundle("gru", Layout(parse_pipeline(PLAIN, "plain.toml")).inputs, 5, 2)
    engine = choose(bundle, name).engine
    assert bundle.info.inputs.codes == ()
    assert_company_changes_nothing(engine, mixed(bundle, 90))


@pytest.mark.parametrize(
    ("length", "lengths"), [(5, [5]), (8, [8]), (9, [8, 9]), (32, [8, 16, 32]), (40, [8, 16, 32, 40])]
)
def test_block_lengths_end_with_the_whole_window(length, lengths):
    """Every history fits into one of the lengths."""
    assert block_lengths(length) == lengths


@pytest.mark.parametrize("rows", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_blocks_give_what_one_call_gives(detector, make_windows, rows):
    """Cutting into blocks of rows and lengths changes no logit beyond rounding, and no order."""
    encoded = make_windows(rows, seed=rows)
    with torch.inference_mode():
        expected = detector(*tensors(encoded)).numpy()
    np.testing.assert_allclose(TorchEngine(detector).logits(encoded), expected, atol=2e-6)


def test_smaller_blocks_are_used_only_where_they_give_the_same_bits(detector, inputs, make_windows):
    """An engine whose kernels round small batches differently keeps to whole blocks; another need not."""

    def sizes_used(run: Callable[[Encoded, np.ndarray], np.ndarray]) -> set[int]:
        used = set()

        class Odd(TorchEngine):
            def run_block(self, block: Encoded) -> np.ndarray:
                used.add(len(block))
                return run(block, super().run_block(block))

        engine = Odd(detector)
        engine.settle(Scaling.of(detector.weights()))
        used.clear()
        engine.logits(make_windows(3))
        return used

    exact = sizes_used(lambda _, logits: np.rint(logits))
    small_round_otherwise = sizes_used(lambda block, logits: np.rint(logits) + (len(block) < BLOCK))
    assert exact == {1}
    assert small_round_otherwise == {BLOCK}


def test_torch_refuses_training_mode(detector, make_windows):
    """Dropout must never reach a score."""
    with pytest.raises(ValueError, match="expected eval mode"):
        TorchEngine(detector.train()).logits(make_windows(2))


@pytest.mark.parametrize("count", [1, 7, 63, 64, 65, 1000])
def test_a_score_depends_on_its_logit_alone(count):
    """The sigmoid's bits do not depend on where in how long an array a logit stands; far logits are 0 and 1."""
    logit = np.random.default_rng(count).normal(0, 20, count).astype(np.float32)
    logit[:1] = -5000.0
    together = scores_of(logit)
    alone = [scores_of(logit[i : i + 1])[0] for i in range(count)]
    assert np.array(alone, np.float32).tobytes() == together.tobytes()
    np.testing.assert_allclose(together, torch.from_numpy(logit).double().sigmoid().numpy(), rtol=1e-6)
    assert scores_of(np.array([5000.0], np.float32))[0] == 1.0
