"""Detectors: masking, scaling, determinism, gradients, and the names of their weights."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
import torch

from models.detectors import ARCHITECTURES, Detector, build_detector
from models.detectors.base import tensors
from models.detectors.export import to_onnx
from models.features.encoded import Encoded, InputSpec
from models.weights import ARCHITECTURES as WEIGHTS_KNOWN
from models.weights import weight_shapes
from tests.models.windows import MakeWindows, random_windows, with_verdicts


def logits(detector: Detector, encoded: Encoded) -> np.ndarray:
    with torch.inference_mode():
        return detector(*tensors(encoded)).numpy()


def states(detector: Detector, encoded: Encoded) -> np.ndarray:
    x_BLF, codes_BLK, mask_BL, _, _ = tensors(encoded)
    with torch.inference_mode():
        event_BLD = detector.embed_events(x_BLF, codes_BLK).masked_fill(~mask_BL.unsqueeze(2), 0.0)
        return detector.trunk.states(event_BLD, mask_BL).numpy()


def copied(encoded: Encoded) -> Encoded:
    return Encoded(*(getattr(encoded, field.name).copy() for field in fields(Encoded)))


def absent(encoded: Encoded) -> np.ndarray:
    return encoded.verdicts_BJSG[..., 0] == 0


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request) -> str:
    """Every registered architecture must pass these tests."""
    return request.param


@pytest.fixture(params=[0, 1, 2], ids=["no-verdicts", "1-profile", "2-profiles"])
def any_inputs(request, inputs) -> InputSpec:
    return with_verdicts(inputs, request.param)


@pytest.fixture
def windows(any_inputs) -> MakeWindows:
    """windows(rows, seed=0): of the detector's inputs."""
    return partial(random_windows, any_inputs)


@pytest.fixture
def any_detector(architecture, any_inputs, windows) -> Detector:
    """With any number of profiles whose verdicts are read."""
    return made(architecture, any_inputs)


@pytest.fixture
def verdict_detector(architecture, inputs) -> Detector:
    """With two such profiles."""
    return made(architecture, with_verdicts(inputs, 2))


def made(architecture: str, inputs: InputSpec) -> Detector:
    torch.manual_seed(1)
    detector = build_detector(architecture, inputs, hidden=6, embedding=3)
    detector.fit_scaler(random_windows(inputs, 40, seed=1))
    return detector.eval()


def test_what_stands_at_masked_positions_does_not_matter(any_detector, windows):
    """Padding is never read: not its numbers, not its codes, not even NaN; nor is a verdict that is not there."""
    encoded = windows(11)
    dirty = copied(encoded)
    dirty.x_BLF[~encoded.mask_BL] = np.nan
    dirty.codes_BLK[~encoded.mask_BL] = 3
    dirty.verdicts_BJSG[..., 1:][absent(encoded)] = np.nan
    assert not encoded.mask_BL.all()
    np.testing.assert_array_equal(logits(any_detector, dirty), logits(any_detector, encoded))


def test_the_amount_of_padding_does_not_matter(any_detector, windows):
    """A short history scores the same in a short window as in a long one."""
    encoded = windows(30)
    short = encoded.take(encoded.mask_BL.sum(axis=1) <= 6)
    cut = replace(short, x_BLF=short.x_BLF[:, -6:], codes_BLK=short.codes_BLK[:, -6:], mask_BL=short.mask_BL[:, -6:])
    assert len(short) >= 3
    np.testing.assert_allclose(logits(any_detector, cut), logits(any_detector, short), atol=1e-6)


def test_the_future_does_not_matter(any_detector, windows):
    """A state is of the events up to its own: what comes later changes it by no bit. Pre-training rests on that."""
    encoded = windows(9)
    full = encoded.take(encoded.mask_BL.all(axis=1) | (np.arange(9) < 3))
    full.mask_BL[:] = True
    changed = copied(full)
    changed.x_BLF[:, 7:] += 5.0
    changed.codes_BLK[:, 7:] = 0
    before, after = states(any_detector, full), states(any_detector, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=2).all()


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_the_last_state_is_the_last_of_all_states(any_detector, windows, length):
    """What is left out to be faster is nothing that the last state depends on, at even and odd lengths."""
    x_BLF, codes_BLK, mask_BL, _, _ = tensors(windows(30))
    assert x_BLF.shape[1] >= 12
    assert not mask_BL[:, -12:].all()
    with torch.inference_mode():
        event_BLD = any_detector.embed_events(x_BLF, codes_BLK).masked_fill(~mask_BL.unsqueeze(2), 0.0)
        event_BLD, mask_BL = event_BLD[:, -length:], mask_BL[:, -length:]
        all_BLH = any_detector.trunk.states(event_BLD, mask_BL)
        last_BH = any_detector.trunk.last_state(event_BLD, mask_BL)
    assert float(all_BLH[:, -1].std()) > 0.01
    torch.testing.assert_close(last_BH, all_BLH[:, -1], atol=2e-6, rtol=1e-5)


def test_a_window_has_the_same_logit_by_itself(any_detector, windows):
    """Up to rounding: to the bit it is the engines' promise."""
    encoded = windows(12)
    alone = [logits(any_detector, encoded.take(slice(n, n + 1))) for n in range(12)]
    np.testing.assert_allclose(np.concatenate(alone), logits(any_detector, encoded), atol=2e-6)


@pytest.mark.parametrize("position", [-1, -2, -5])
def test_every_event_of_the_window_counts(any_detector, windows, position):
    """The current event and the past reach the logit, and so do codes and context."""
    encoded = windows(40)
    full = encoded.take(encoded.mask_BL.all(axis=1))
    before = logits(any_detector, full)
    for change in ("x", "code"):
        other = copied(full)
        if change == "x":
            other.x_BLF[:, position] += 1.0
        else:
            other.codes_BLK[:, position] = (other.codes_BLK[:, position] + 1) % 7
        assert (logits(any_detector, other) != before).all()
    moved = replace(full, context_BC=full.context_BC + 1)
    assert (logits(any_detector, moved) != before).all()


def test_the_order_of_past_events_counts(any_detector, windows):
    """It is a sequence detector: the same past in another order is another past."""
    full = windows(40).take(np.arange(5))
    full.mask_BL[:] = True
    swapped = full.x_BLF.copy()
    swapped[:, [-3, -2]] = swapped[:, [-2, -3]]
    other = replace(full, x_BLF=swapped)
    assert (logits(any_detector, other) != logits(any_detector, full)).all()


def test_every_verdict_counts(verdict_detector):
    """Each of a profile's verdicts reaches the logit, the oldest, too; so does the profile that it is of."""
    full = random_windows(verdict_detector.inputs, 20)
    full.verdicts_BJSG[:] = np.random.default_rng(1).normal(2.0, 3.0, full.verdicts_BJSG.shape)
    full.verdicts_BJSG[..., 0] = 1.0
    before = logits(verdict_detector, full)
    for j, place in np.ndindex(2, verdict_detector.inputs.verdict_length):
        other = copied(full)
        other.verdicts_BJSG[:, j, place, 2] += 1.0
        assert (logits(verdict_detector, other) != before).all()
    swapped = replace(full, verdicts_BJSG=full.verdicts_BJSG[:, ::-1].copy())
    assert (logits(verdict_detector, swapped) != before).all()
    backwards = replace(full, verdicts_BJSG=full.verdicts_BJSG[:, :, ::-1].copy())
    assert (logits(verdict_detector, backwards) != before).all()


@pytest.mark.parametrize("length", [16, 32, 64])
def test_the_oldest_place_of_a_long_sequence_is_reached(architecture, inputs, length):
    """However long the window or the verdicts are."""
    torch.manual_seed(2)
    long = replace(with_verdicts(inputs, 1, length), length=length)
    detector = build_detector(architecture, long, hidden=6, embedding=3).eval()
    encoded = random_windows(long, 3)
    encoded.mask_BL[:], encoded.verdicts_BJSG[..., 0] = True, 1.0
    with torch.enable_grad():
        x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG = tensors(encoded)
        read = (x_BLF.requires_grad_(), verdicts_BJSG.requires_grad_())
        detector(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG).sum().backward()
    for tensor in read:
        assert (tensor.grad.flatten(0, -3).abs().amax(dim=-1) > 0).all()


def test_windows_without_any_verdict_are_those_of_no_news(verdict_detector):
    """The summary is 0, whatever stands at the places; the logit is finite."""
    encoded = random_windows(verdict_detector.inputs, 12)
    encoded.verdicts_BJSG[:] = 0.0
    dirty = copied(encoded)
    dirty.verdicts_BJSG[..., 1:] = np.nan
    dirty.verdicts_BJSG[::2, 0, :, 0] = np.nan
    with torch.inference_mode():
        summaries = verdict_detector.sum_up(tensors(dirty)[4])
    assert [summary.abs().max().item() for summary in summaries] == [0.0, 0.0]
    assert np.isfinite(logits(verdict_detector, encoded)).all()
    np.testing.assert_array_equal(logits(verdict_detector, dirty), logits(verdict_detector, encoded))


def test_absent_places_before_the_first_verdict_do_not_matter(architecture, inputs):
    """Four verdicts are four verdicts, whether there is room for four or for seven."""
    roomy, tight = with_verdicts(inputs, 2, 7), with_verdicts(inputs, 2, 4)
    detector, other = made(architecture, roomy), made(architecture, tight)
    other.load_state_dict(detector.state_dict())
    encoded = random_windows(roomy, 20)
    encoded.verdicts_BJSG[:, :, :-4] = 0.0
    cut = replace(encoded, verdicts_BJSG=encoded.verdicts_BJSG[:, :, -4:])
    np.testing.assert_allclose(logits(other, cut), logits(detector, encoded), atol=1e-6)


def test_the_same_input_has_the_same_logit(any_detector, windows):
    """To the bit, and again from weights that were saved."""
    encoded = windows(30)
    first = logits(any_detector, encoded)
    np.testing.assert_array_equal(logits(any_detector, encoded), first)
    other = build_detector(any_detector.architecture, any_detector.inputs, 6, 3).eval()
    other.load_state_dict({name: torch.from_numpy(array) for name, array in any_detector.weights().items()})
    np.testing.assert_array_equal(logits(other, encoded), first)


def test_its_graph_gives_the_same_logits(any_detector, windows):
    """ONNX, in one graph for all batches and lengths; without profiles it asks for no verdicts."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(to_onnx(any_detector), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    assert ("verdicts_BJSG" in names) == bool(any_detector.inputs.verdicts)
    encoded = windows(21)
    encoded.verdicts_BJSG[:3] = 0.0
    short = encoded.take(encoded.mask_BL.sum(axis=1) <= 6)
    cut = replace(short, x_BLF=short.x_BLF[:, -6:], codes_BLK=short.codes_BLK[:, -6:], mask_BL=short.mask_BL[:, -6:])
    for part in (encoded, encoded.take(slice(0, 1)), cut):
        found = session.run(["logit_B"], {name: getattr(part, name) for name in names})[0]
        np.testing.assert_allclose(found, logits(any_detector, part), atol=2e-6)


def test_verdicts_are_scaled_by_those_that_are_there(inputs):
    """A profile's own mean and deviation; `present` stays as it is, and so does a profile that nobody judged."""
    inputs = with_verdicts(inputs, 2)
    detector = build_detector("gru", inputs, hidden=4, embedding=2)
    encoded = random_windows(inputs, 60)
    encoded.verdicts_BJSG[:, 1] = 0.0
    encoded.verdicts_BJSG[..., 1:][absent(encoded)] = np.nan
    detector.fit_scaler(encoded)
    rows = encoded.verdicts_BJSG[:, 0][encoded.verdicts_BJSG[:, 0, :, 0] == 1].astype(np.float64)
    np.testing.assert_allclose(detector.verdict_mean_JG[0, 1:].numpy(), rows.mean(axis=0)[1:], rtol=1e-5)
    np.testing.assert_allclose(detector.verdict_std_JG[0, 1:].numpy(), rows.std(axis=0)[1:], rtol=1e-5)
    assert (detector.verdict_mean_JG[0, 0].item(), detector.verdict_std_JG[0, 0].item()) == (0.0, 1.0)
    assert (detector.verdict_mean_JG[1] == 0).all()
    assert (detector.verdict_std_JG[1] == 1).all()


def test_scaler_ignores_padding_and_constant_features(inputs: InputSpec, make_windows):
    """Mean and deviation are those of real events only; a feature that never varies stays finite."""
    encoded = make_windows(60)
    encoded.context_BC[:, 0] = 4.0
    detector = build_detector("gru", inputs, hidden=4, embedding=2)
    detector.fit_scaler(encoded)
    rows = encoded.x_BLF[encoded.mask_BL].astype(np.float64)
    np.testing.assert_allclose(detector.x_mean_F.numpy(), rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(detector.x_std_F.numpy(), rows.std(axis=0), rtol=1e-5)
    assert (detector.context_mean_C[0].item(), detector.context_std_C[0].item()) == (4.0, 1.0)


def test_scaler_names_the_feature_that_is_not_finite(inputs: InputSpec, make_windows):
    """A NaN in training data stops training at once, by name."""
    encoded = make_windows(5)
    encoded.x_BLF[2, -1, 0] = np.nan
    detector = build_detector("gru", inputs, hidden=4, embedding=2)
    with pytest.raises(ValueError, match=rf"{inputs.x[0]} .*not finite"):
        detector.fit_scaler(encoded)
    with pytest.raises(ValueError, match="0 windows"):
        detector.fit_scaler(encoded.take(slice(0, 0)))
    judged = with_verdicts(inputs, 1)
    encoded = random_windows(judged, 5)
    encoded.verdicts_BJSG[3, 0, -1, [0, 4]] = 1.0, np.nan
    with pytest.raises(ValueError, match=r"profile0\.verdicts\.gap .*not finite"):
        build_detector("gru", judged, hidden=4, embedding=2).fit_scaler(encoded)


def test_it_learns_what_only_the_past_tells(any_detector, windows):
    """Gradients pass through the mask to every weight, and a rule on an earlier event can be learned."""
    encoded = windows(256, seed=4)
    encoded.mask_BL[:, -2:] = True
    wanted = torch.from_numpy((encoded.x_BLF[:, -2, 0] > 3.0).astype(np.float32))
    detector = any_detector.train()
    optimiser = torch.optim.Adam(detector.parameters(), lr=0.02)
    for _ in range(150):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(detector(*tensors(encoded)), wanted)
        loss.backward()
        optimiser.step()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in detector.parameters())
    assert loss.item() < 0.35


def test_an_unknown_architecture_is_refused_by_name(inputs: InputSpec):
    """The error says which names there are."""
    with pytest.raises(ValueError, match=r"'lstm': expected one of .*gru"):
        build_detector("lstm", inputs, hidden=4, embedding=2)


def test_a_pipeline_without_categories_has_a_detector():
    """K = 0 is a size like any other."""
    inputs = InputSpec(x=("a", "b", "c"), codes=(), context=("d",), length=5)
    detector = build_detector("gru", inputs, hidden=4, embedding=2).eval()
    assert logits(detector, random_windows(inputs, 2)).shape == (2,)


def test_the_shapes_of_weights_are_known_without_torch(any_detector, any_inputs):
    """What a bundle's weights are checked against is what torch makes, for every architecture and odd sizes."""
    assert set(WEIGHTS_KNOWN) == set(ARCHITECTURES)
    for hidden, embedding, codes in ((6, 3, any_detector.inputs.codes), (33, 2, ())):
        inputs = replace(any_inputs, codes=codes, length=33, verdict_length=7 * any_inputs.verdict_length)
        made = build_detector(any_detector.architecture, inputs, hidden, embedding)
        shapes = weight_shapes(any_detector.architecture, inputs, hidden, embedding)
        assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == shapes
