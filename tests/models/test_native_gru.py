"""The GRU in compiled kernels: torch's numbers without torch, and every window on its own to the bit."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.detectors import Detector, build_detector
from models.detectors.base import tensors
from models.engines import kernels, packing
from models.engines.dense import dense_gelu
from models.engines.native_gru import FOLDED_LIMIT, NativeGru
from models.engines.vectors import LANES
from models.features.encoded import Encoded, InputSpec


def spec(
    numbers: int = 5, codes: tuple[int, ...] = (7, 3), context: int = 9, length: int = 11, profiles: int = 1
) -> InputSpec:  # fmt: skip
    return InputSpec(
        tuple(f"x{n}" for n in range(numbers)),
        tuple((f"code{n}", rows) for n, rows in enumerate(codes)),
        tuple(f"context{n}" for n in range(context)),
        length,
        tuple(f"profile{n}" for n in range(profiles)),
        7 if profiles else 0,
    )


def random_windows(inputs: InputSpec, rows: int, seed: int = 0) -> Encoded:
    """Windows of all lengths, some with gaps, and any number of verdicts.

    NaN and codes without embedding stand wherever there is no event or verdict.
    """
    rng = np.random.default_rng(seed)
    length, sizes = inputs.length, [size for _, size in inputs.codes]
    mask_BL = np.arange(length) >= rng.integers(0, length, rows)[:, None]
    mask_BL &= (rng.random((rows, length)) < 0.8) | (rng.random(rows) < 0.5)[:, None]
    mask_BL[:, -1] = True
    x_BLF = rng.normal(1.0, 3.0, (rows, length, len(inputs.x))).astype(np.float32)
    codes_BLK = rng.integers(0, sizes, (rows, length, len(sizes))).astype(np.int32)
    x_BLF[~mask_BL], codes_BLK[~mask_BL] = np.nan, -5
    context_BC = rng.normal(0.0, 30.0, (rows, len(inputs.context))).astype(np.float32)
    profiles, verdicts, _ = inputs.verdict_shape
    verdicts_BJSG = rng.normal(1.0, 3.0, (rows, *inputs.verdict_shape)).astype(np.float32)
    absent_BJS = np.arange(verdicts) < rng.integers(0, verdicts + 1, (rows, profiles, 1))
    verdicts_BJSG[absent_BJS] = np.nan
    verdicts_BJSG[..., 0] = ~absent_BJS
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)


def trained(inputs: InputSpec, hidden: int = 16, embedding: int = 4, seed: int = 0) -> Detector:
    """A detector with weights as large as those of a trained one, so that gates open and close."""
    torch.manual_seed(seed)
    detector = build_detector("gru", inputs, hidden, embedding).eval()
    with torch.no_grad():
        detector.table.weight.normal_()
        detector.x_mean_F.normal_()
        detector.verdict_mean_JG.normal_()
        for deviation in (detector.x_std_F, detector.context_std_C, detector.verdict_std_JG):
            deviation.uniform_(0.2, 3.0)
        for weight in (*detector.trunk.parameters(), *detector.verdict_trunks.parameters()):
            weight.mul_(2.0)
    return detector


def native(detector: Detector, short: bool = False) -> NativeGru:
    weights = {name: tensor.numpy() for name, tensor in detector.state_dict().items()}
    return NativeGru(weights, detector.inputs, detector.hidden, detector.embedding, short)


def by_torch(detector: Detector, encoded: Encoded) -> np.ndarray:
    readable = encoded.codes_BLK.clip(0)
    with torch.inference_mode():
        return detector(*tensors(replace(encoded, codes_BLK=readable))).numpy()


@pytest.mark.parametrize(
    ("hidden", "embedding", "numbers", "codes", "context", "profiles"),
    [
        (16, 4, 5, (7, 3), 9, 0),
        (24, 3, 8, (7, 3, 5), 1, 1),
        (64, 8, 13, (64, 8), 81, 2),
        (64, 8, 13, (64, 8), 81, 0),
        (16, 2, 1, (), 9, 3),
        (32, 4, 17, (7,), 0, 1),
    ],
)
def test_logits_are_those_of_torch(hidden, embedding, numbers, codes, context, profiles):
    """Within float32 rounding, for any width, any number of inputs of each kind, short windows and gaps."""
    inputs = spec(numbers, codes, context, profiles=profiles)
    detector = trained(inputs, hidden, embedding)
    encoded = random_windows(inputs, 150)
    expected_B = by_torch(detector, encoded)
    assert expected_B.std() > 1e-3
    np.testing.assert_allclose(native(detector).logits(encoded), expected_B, rtol=0, atol=2e-5)


@pytest.mark.parametrize("hidden", [16, 24, 64])
def test_short_products_cost_little(hidden):
    """int16 products change a logit, but by less than bfloat16 would, even with weights that fill the range."""
    inputs = spec()
    detector = trained(inputs, hidden)
    encoded = random_windows(inputs, 150)
    exact_B, short_B = by_torch(detector, encoded), native(detector, short=True).logits(encoded)
    assert (np.abs(short_B - native(detector).logits(encoded)) > 1e-7).any()
    np.testing.assert_allclose(short_B, exact_B, rtol=0, atol=1e-4)


def test_integer_sums_never_overflow():
    """The largest state times the largest weights stays within int32, for any row of weights; zeros are allowed."""
    rng = np.random.default_rng(0)
    weight_GH = rng.standard_t(2, (96, 32)).astype(np.float32)
    weight_GH[:4] = [[0.0], [1e-20], [5.0], [-1e6]]
    short, value_G = packing.pack_short(weight_GH)
    rows_GH = short.reshape(2, 16, 3, LANES, 2).transpose(2, 0, 3, 1, 4).reshape(96, 32).astype(np.int64)
    np.testing.assert_allclose(
        rows_GH * value_G[:, None] * packing.STATE_SCALE, weight_GH, atol=np.abs(weight_GH).max() * 1e-3, rtol=0
    )
    assert (np.abs(rows_GH).reshape(96, 2, 16).sum(axis=2) * (packing.STATE_SCALE + 1) < 2**31).all()


def test_a_code_field_too_large_to_fold_is_embedded():
    """Code fields of both kinds, mixed in any order, reach the logit as in torch."""
    inputs = spec(codes=(5, FOLDED_LIMIT, 4, FOLDED_LIMIT // 2))
    detector = trained(inputs, embedding=3)
    encoded = random_windows(inputs, 70)
    np.testing.assert_allclose(native(detector).logits(encoded), by_torch(detector, encoded), rtol=0, atol=2e-5)


def test_a_shorter_window_is_the_same_to_the_bit_without_its_padding():
    """How much padding there is before the first event does not matter, nor how long the longest window is."""
    inputs = spec()
    engine = native(trained(inputs))
    encoded = random_windows(inputs, 60)
    short = encoded.take(~encoded.mask_BL[:, :-4].any(axis=1))
    assert len(short) > 3
    cut = replace(short, x_BLF=short.x_BLF[:, -4:], codes_BLK=short.codes_BLK[:, -4:], mask_BL=short.mask_BL[:, -4:])
    np.testing.assert_array_equal(engine.logits(cut), engine.logits(short))


@pytest.mark.parametrize("short", [False, True])
def test_a_window_does_not_depend_on_its_company(short):
    """The same bits alone, in any order, and in batches of every size; also beside windows full of NaN."""
    inputs = spec()
    engine = native(trained(inputs), short)
    encoded = random_windows(inputs, 200)
    logit_B = engine.logits(encoded)
    assert len(np.unique(logit_B)) == 200
    for rows in (*range(1, 40), 63, 64, 65, 199):
        np.testing.assert_array_equal(engine.logits(encoded.take(slice(0, rows))), logit_B[:rows])
        np.testing.assert_array_equal(engine.logits(encoded.take(slice(200 - rows, 200))), logit_B[-rows:])
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(engine.logits(encoded.take(order)), logit_B[order])
    many = np.tile(np.arange(200), 4)  # more than are computed at once
    np.testing.assert_array_equal(engine.logits(encoded.take(many)), logit_B[many])
    broken = replace(encoded, x_BLF=encoded.x_BLF.copy(), verdicts_BJSG=encoded.verdicts_BJSG.copy())
    broken.x_BLF[::4] = np.nan
    broken.verdicts_BJSG[2::4, :, :, 1:], broken.verdicts_BJSG[2::4, :, -1, 0] = np.nan, 1.0
    broken_B = engine.logits(broken)
    np.testing.assert_array_equal(broken_B[1::2], logit_B[1::2])
    assert np.isnan(broken_B[::2]).all()


def test_views_and_read_only_arrays_are_accepted():
    """Inputs may be slices of other arrays and may be protected."""
    inputs = spec()
    engine = native(trained(inputs))
    encoded = random_windows(inputs, 20)
    expected_B = engine.logits(encoded)
    view = encoded.take(slice(None, None, 2))
    for array in (view.x_BLF, view.codes_BLK, view.mask_BL, view.context_BC, view.verdicts_BJSG):
        array.setflags(write=False)
    np.testing.assert_array_equal(engine.logits(view), expected_B[::2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_absurd_numbers_do_what_they_do_in_torch(value):
    """A number beyond the clamp counts as its limit; NaN makes the window's logit NaN, wherever it is."""
    inputs = spec()
    detector = trained(inputs)
    encoded = random_windows(inputs, 6)
    encoded.mask_BL[:, -3] = True
    encoded.x_BLF[:, -3], encoded.codes_BLK[:, -3] = 0.5, 1
    encoded.x_BLF[0, -3, 2] = encoded.x_BLF[1, -1, 0] = encoded.context_BC[2, 4] = value
    encoded.verdicts_BJSG[3, 0, -1] = (1.0, 1.0, value, 0.5, 0.5, 0.5, 0.5)
    actual_B = native(detector).logits(encoded)
    np.testing.assert_allclose(actual_B, by_torch(detector, encoded), rtol=0, atol=2e-5)
    assert np.isfinite(actual_B[4:]).all()


def test_verdicts_are_read_as_those_of_the_window():
    """A profile's verdicts reach the logit, and only those that are there; a window without any is like the others."""
    inputs = spec(profiles=2)
    detector = trained(inputs)
    engine, encoded = native(detector), random_windows(inputs, 40)
    none = replace(encoded, verdicts_BJSG=np.zeros_like(encoded.verdicts_BJSG))
    none_B = engine.logits(none)
    np.testing.assert_allclose(none_B, by_torch(detector, none), rtol=0, atol=2e-5)
    has_B = (encoded.verdicts_BJSG[..., 0] > 0).any(axis=(1, 2))
    np.testing.assert_array_equal(engine.logits(encoded) != none_B, has_B)
    cleared = np.where(encoded.verdicts_BJSG[..., :1] > 0, encoded.verdicts_BJSG, 0)
    np.testing.assert_array_equal(engine.logits(replace(encoded, verdicts_BJSG=cleared)), engine.logits(encoded))


def test_no_windows():
    """An empty batch gives an empty answer."""
    inputs = spec()
    assert native(trained(inputs)).logits(random_windows(inputs, 0)).shape == (0,)


@pytest.mark.parametrize("code", [-1, 7])
def test_a_code_without_embedding_is_refused(code):
    """Memory beyond the table is never read: the window is named instead."""
    inputs = spec()
    encoded = random_windows(inputs, 50)
    encoded.codes_BLK[41, -1, 0] = code
    with pytest.raises(ValueError, match=r"window 41: .* expected 0 or more and code0 < 7, code1 < 3"):
        native(trained(inputs)).logits(encoded)


def test_arrays_of_another_size_are_refused():
    """Too long windows, or another number of features of some kind than the model was made for."""
    inputs = spec()
    engine = native(trained(inputs))
    good = random_windows(inputs, 3)
    with pytest.raises(ValueError, match="windows of 12 events: expected 1 to 11"):
        engine.logits(random_windows(spec(length=12), 3))
    for other, name in (
        (spec(numbers=6), "x_BLF"), (spec(codes=(7,)), "codes_BLK"), (spec(context=8), "context_BC"),
        (spec(profiles=2), "verdicts_BJSG"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name} has shape .*: expected"):
            engine.logits(random_windows(other, 3))
    assert engine.logits(good).shape == (3,)


def test_weights_that_do_not_fit_are_refused():
    """A missing or misshapen weight is named at construction, before anything is computed."""
    inputs = spec()
    detector = trained(inputs)
    weights = {name: tensor.numpy() for name, tensor in detector.state_dict().items()}
    with pytest.raises(ValueError, match=r"weight trunk.gru.weight_ih_l0 has shape \(48, 13\): expected \(96, 13\)"):
        NativeGru(weights, inputs, 32, 4)
    del weights["head.3.bias"]
    with pytest.raises(ValueError, match=r"weight head.3.bias is missing: expected shape \(16,\)"):
        NativeGru(weights, inputs, 16, 4)


def test_gelu_is_exact_to_float32():
    """The error of erf's approximation stays below 4e-7, and there is none in the tails."""
    x_B = np.concatenate([np.linspace(-9, 9, 20_001), [-1e30, -700.0, 700.0, 1e30]]).astype(np.float32)
    identity = packing.pack_dense(np.eye(LANES, dtype=np.float32), np.zeros(LANES, np.float32))
    y_BJ = np.empty((len(x_B), LANES), np.float32)
    dense_gelu(identity, np.repeat(x_B[:, None], LANES, axis=1), y_BJ)
    expected_B = np.array([x / 2 * math.erfc(-x / math.sqrt(2)) for x in x_B.astype(np.float64)])
    assert (y_BJ == y_BJ[:, :1]).all()
    scale_B = np.maximum(np.abs(x_B), 1.0)
    assert (np.abs(y_BJ[:, 0] - expected_B) / scale_B).max() < 4e-7
    np.testing.assert_array_equal(y_BJ[[0, -4, -3, -2, -1], 0], [0.0, 0.0, 0.0, 700.0, np.float32(1e30)])


def test_gates_are_exact_to_float32():
    """One unit's update from a zero state, over the whole range of the gates, against the definition in float64."""
    reset_sum, update_sum = np.meshgrid(np.linspace(-100, 100, 41), np.linspace(-100, 100, 41))
    new_input, new_state = np.linspace(-12, 12, 41)[:, None], np.linspace(5, -5, 41)[None]
    actual = np.empty((41, 41), np.float32)
    events = kernels.EventInputs(
        np.zeros(1, np.float32),
        np.ones(1, np.float32),
        np.zeros((1, 1), np.float32),
        np.zeros(0, int),
        np.zeros(0, int),
    )
    for i, j in np.ndindex(41, 41):
        bias_G = np.repeat([reset_sum[i, j], update_sum[i, j], new_input[i, 0]], LANES).astype(np.float32)
        state_bias_G = np.repeat([0.0, 0.0, new_state[0, j]], LANES).astype(np.float32)
        packed = packing.pack_gru(
            np.zeros((48, 1), np.float32), np.zeros((48, 16), np.float32), bias_G, state_bias_G, None
        )
        none = np.zeros(0, np.int64)
        gru = kernels.GruWeights(LANES, packed, np.zeros(0, np.int16), np.zeros((0, 48), np.float32), none, none, none)
        seen_BS = np.empty((1, LANES + 1), np.float32)
        one = np.ones((1, 1), np.bool_)
        x_BLF, codes_BLK, zero = (
            one[None].astype(np.float32),
            np.zeros((1, 1, 0), np.int32),
            np.empty((0, LANES), np.float32),
        )
        kernels.gru_states(x_BLF, codes_BLK, one, events, gru, zero, 0, seen_BS)
        actual[i, j] = seen_BS[0, 0]
    reset, update = (1 / (1 + np.exp(-s)) for s in (reset_sum, update_sum))
    expected = (1 - update) * np.tanh(new_input + reset * new_state)
    assert np.abs(actual - expected).max() < 4e-7
