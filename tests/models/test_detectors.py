"""Detectors: masking, scaling, determinism, gradients, and the names of their weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.detectors import ARCHITECTURES, Detector, build_detector
from models.detectors.base import tensors
from models.features.encoded import Encoded, InputSpec
from models.weights import ARCHITECTURES as WEIGHTS_KNOWN
from models.weights import weight_shapes


def logits(detector: Detector, encoded: Encoded) -> np.ndarray:
    with torch.inference_mode():
        return detector(*tensors(encoded)).numpy()


def states(detector: Detector, encoded: Encoded) -> np.ndarray:
    x_BLF, codes_BLK, mask_BL, _ = tensors(encoded)
    with torch.inference_mode():
        event_BLD = detector.embed_events(x_BLF, codes_BLK).masked_fill(~mask_BL.unsqueeze(2), 0.0)
        return detector.states(event_BLD, mask_BL).numpy()


@pytest.fixture(params=sorted(ARCHITECTURES))
def any_detector(request, inputs, make_windows) -> Detector:
    """Every registered architecture must pass these tests."""
    torch.manual_seed(1)
    detector = build_detector(request.param, inputs, hidden=6, embedding=3)
    detector.fit_scaler(make_windows(40, seed=1))
    return detector.eval()


def test_what_stands_at_masked_positions_does_not_matter(any_detector, make_windows):
    """Padding is never read: not its numbers, not its codes, not even NaN."""
    encoded = make_windows(11)
    dirty = Encoded(encoded.x_BLF.copy(), encoded.codes_BLK.copy(), encoded.mask_BL, encoded.context_BC)
    dirty.x_BLF[~encoded.mask_BL] = np.nan
    dirty.codes_BLK[~encoded.mask_BL] = 3
    assert not encoded.mask_BL.all()
    np.testing.assert_array_equal(logits(any_detector, dirty), logits(any_detector, encoded))


def test_the_amount_of_padding_does_not_matter(any_detector, make_windows):
    """A short history scores the same in a short window as in a long one."""
    encoded = make_windows(30)
    short = encoded.take(encoded.mask_BL.sum(axis=1) <= 6)
    cut = Encoded(short.x_BLF[:, -6:], short.codes_BLK[:, -6:], short.mask_BL[:, -6:], short.context_BC)
    assert len(short) >= 3
    np.testing.assert_allclose(logits(any_detector, cut), logits(any_detector, short), atol=1e-6)


def test_the_future_does_not_matter(any_detector, make_windows):
    """A state is of the events up to its own: what comes later changes it by no bit. Pre-training rests on that."""
    encoded = make_windows(9)
    full = encoded.take(encoded.mask_BL.all(axis=1) | (np.arange(9) < 3))
    full.mask_BL[:] = True
    changed = Encoded(full.x_BLF.copy(), full.codes_BLK.copy(), full.mask_BL, full.context_BC)
    changed.x_BLF[:, 7:] += 5.0
    changed.codes_BLK[:, 7:] = 0
    before, after = states(any_detector, full), states(any_detector, changed)
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(axis=2).all()


def test_a_window_has_the_same_logit_by_itself(any_detector, make_windows):
    """Up to rounding: to the bit it is the engines' promise."""
    encoded = make_windows(12)
    alone = [logits(any_detector, encoded.take(slice(n, n + 1))) for n in range(12)]
    np.testing.assert_allclose(np.concatenate(alone), logits(any_detector, encoded), atol=2e-6)


@pytest.mark.parametrize("position", [-1, -2, -5])
def test_every_event_of_the_window_counts(any_detector, make_windows, position):
    """The current event and the past reach the logit, and so do codes and context."""
    encoded = make_windows(40)
    full = encoded.take(encoded.mask_BL.all(axis=1))
    before = logits(any_detector, full)
    for change in ("x", "code"):
        other = Encoded(full.x_BLF.copy(), full.codes_BLK.copy(), full.mask_BL, full.context_BC)
        if change == "x":
            other.x_BLF[:, position] += 1.0
        else:
            other.codes_BLK[:, position] = (other.codes_BLK[:, position] + 1) % 7
        assert (logits(any_detector, other) != before).all()
    moved = Encoded(full.x_BLF, full.codes_BLK, full.mask_BL, full.context_BC + 1)
    assert (logits(any_detector, moved) != before).all()


def test_the_order_of_past_events_counts(any_detector, make_windows):
    """It is a sequence detector: the same past in another order is another past."""
    full = make_windows(40).take(np.arange(5))
    full.mask_BL[:] = True
    swapped = full.x_BLF.copy()
    swapped[:, [-3, -2]] = swapped[:, [-2, -3]]
    other = Encoded(swapped, full.codes_BLK, full.mask_BL, full.context_BC)
    assert (logits(any_detector, other) != logits(any_detector, full)).all()


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


def test_it_learns_what_only_the_past_tells(any_detector, make_windows):
    """Gradients pass through the mask to every weight, and a rule on an earlier event can be learned."""
    encoded = make_windows(256, seed=4)
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
    windows = Encoded(
        np.ones((2, 5, 3), np.float32),
        np.zeros((2, 5, 0), np.int32),
        np.ones((2, 5), bool),
        np.ones((2, 1), np.float32),
    )
    assert logits(detector, windows).shape == (2,)


def test_the_shapes_of_weights_are_known_without_torch(any_detector):
    """What a bundle's weights are checked against is what torch makes, for every architecture and odd sizes."""
    assert set(WEIGHTS_KNOWN) == set(ARCHITECTURES)
    for hidden, embedding, codes in ((6, 3, any_detector.inputs.codes), (33, 2, ())):
        inputs = InputSpec(any_detector.inputs.x, codes, any_detector.inputs.context, 20)
        made = build_detector(any_detector.architecture, inputs, hidden, embedding)
        shapes = weight_shapes(any_detector.architecture, inputs, hidden, embedding)
        assert {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()} == shapes
