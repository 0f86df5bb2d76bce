"""Augmented windows are windows that could have been: right-aligned, consistent, and with the event that is judged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from models.detectors.base import tensors
from models.features.encoded import VERDICT_FEATURES
from tests.training.parts import INPUTS, windows
from training.augment import Augment, Augmenter

NOTHING = {"drop": 0.0, "truncate": 0.0, "jitter": 0.0, "shift_hours": 0.0, "drop_verdicts": 0.0,
           "truncate_verdicts": 0.0}  # fmt: skip
GAP, PRESENT, VERDICT_GAP = INPUTS.x.index("gap"), VERDICT_FEATURES.index("present"), VERDICT_FEATURES.index("gap")


def augmented(batch: list[Tensor], seed: int = 0, **amounts: float) -> list[Tensor]:
    return Augmenter(INPUTS, Augment(**{**NOTHING, **amounts}))(batch, Generator().manual_seed(seed))


@pytest.fixture
def batch() -> list[Tensor]:
    return list(tensors(windows(400)))


def test_without_amounts_nothing_changes(batch: list[Tensor]) -> None:
    """All shares 0: the same windows, up to rounding of the gaps."""
    for old, new in zip(batch, augmented(batch), strict=True):
        np.testing.assert_allclose(new.numpy(), old.numpy(), rtol=1e-5, atol=1e-5)


def test_a_seed_repeats_it_and_the_batch_stays_as_it_was(batch: list[Tensor]) -> None:
    """The generator alone decides."""
    before = [tensor.clone() for tensor in batch]
    first, again, other = (Augmenter(INPUTS)(batch, Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, batch, strict=True))


@pytest.mark.parametrize("amounts", [{"drop": 0.7}, {"truncate": 1.0}, {"drop": 0.4, "truncate": 0.6}])
def test_the_last_event_stays_and_windows_stay_windows(batch: list[Tensor], amounts: dict[str, float]) -> None:
    """Fewer events, no hole between them, padding of zeros, the newest event with its fields; the context untouched."""
    x, codes, mask, context, _ = augmented(batch, **amounts)
    assert mask[:, -1].all()
    assert mask.sum() < 0.8 * batch[2].sum()
    assert (mask.int().diff(dim=1) >= 0).all()
    assert (x[~mask] == 0).all()
    assert (codes[~mask] == 0).all()
    others = [i for i in range(len(INPUTS.x)) if i != GAP]
    assert torch.equal(x[:, -1, others], batch[0][:, -1, others])
    assert torch.equal(codes[:, -1], batch[1][:, -1])
    assert context is batch[3]


def test_time_goes_on_through_dropped_events(batch: list[Tensor]) -> None:
    """Two events, seconds 100 and 50 after the ones before them, and a third 7 s later: without the second, 57 s."""
    x, codes, mask, *rest = (tensor[:64].clone() for tensor in batch)
    mask[:] = torch.arange(INPUTS.length) >= INPUTS.length - 3
    x[:] = 0.0
    x[:, -3:, GAP] = torch.log1p(torch.tensor([100.0, 50.0, 7.0]))
    new_x, _, new_mask, *_ = augmented([x, codes, mask, *rest], drop=0.5)
    seconds = torch.expm1(new_x[:, :, GAP])
    assert set(new_mask.sum(1).tolist()) == {1, 2, 3}
    np.testing.assert_allclose(seconds.sum(1).numpy(), 157.0, rtol=1e-4)
    cut_x, _, cut_mask, *_ = augmented([x, codes, mask, *rest], truncate=1.0)
    for count, total in ((1, 7.0), (2, 57.0)):  # what is cut off never was: its time is not the first's
        np.testing.assert_allclose(torch.expm1(cut_x[cut_mask.sum(1) == count][:, :, GAP]).sum(1), total, rtol=1e-4)


def test_jitter_and_shift_move_times_a_little(batch: list[Tensor]) -> None:
    """Gaps are stretched by about the deviation; phases stay on their circle, and a window moves as one."""
    mask = batch[2]
    jittered = augmented(batch, jitter=0.2)[0]
    ratio = torch.log(torch.expm1(jittered[mask][:, GAP]) / torch.expm1(batch[0][mask][:, GAP]))
    assert ratio.std().item() == pytest.approx(0.2, rel=0.1)
    shifted = augmented(batch, shift_hours=1.0)[0]
    for name, hours in (("hour", 24.0), ("week", 168.0)):
        s, c = INPUTS.x.index(f"{name}_sin"), INPUTS.x.index(f"{name}_cos")
        np.testing.assert_allclose((shifted[..., s] ** 2 + shifted[..., c] ** 2)[mask].numpy(), 1.0, atol=1e-5)
        turn = torch.atan2(shifted[..., s], shifted[..., c]) - torch.atan2(batch[0][..., s], batch[0][..., c])
        turned = ((turn[:, -1] + np.pi) % (2 * np.pi) - np.pi) * hours / (2 * np.pi)
        assert turned.std().item() == pytest.approx(1.0, rel=0.15)
    assert (shifted[~mask] == 0).all()


@pytest.mark.parametrize("amounts", [{"drop_verdicts": 0.5}, {"truncate_verdicts": 1.0}])
def test_verdicts_go_and_the_rest_stays_in_order(batch: list[Tensor], amounts: dict[str, float]) -> None:
    """Fewer of them, right-aligned, with the fields they had, but for gaps over what is missing."""
    old, new = batch[4], augmented(batch, **amounts)[4]
    there = new[..., PRESENT] > 0
    assert there.sum() < 0.7 * (old[..., PRESENT] > 0).sum()
    assert (there.int().diff(dim=2) >= 0).all()
    assert (new[~there] == 0).all()
    others = [i for i in range(len(VERDICT_FEATURES)) if i != VERDICT_GAP]
    rows = {tuple(row) for row in old[..., others].flatten(0, 2).tolist()}
    assert {tuple(row) for row in new[..., others].flatten(0, 2).tolist()} <= rows
    hours = [torch.expm1(v[..., VERDICT_GAP]).sum().item() for v in (old, new)]
    assert hours[1] < hours[0]


def test_a_detector_without_verdicts_or_times_is_no_trouble() -> None:
    """No profile with verdicts, no gap column: what is there is augmented."""
    from dataclasses import replace

    inputs = replace(INPUTS, x=("amount",), verdicts=(), verdict_length=0)
    batch = list(tensors(windows(50)))
    batch[0], batch[4] = batch[0][..., :1], torch.zeros(50, 0, 0, len(VERDICT_FEATURES))
    new = Augmenter(inputs)(batch, Generator().manual_seed(0))
    assert [tensor.shape for tensor in new] == [tensor.shape for tensor in batch]


def test_wrong_amounts_are_refused() -> None:
    """The message names the value and the range."""
    with pytest.raises(ValueError, match=r"drop = 1\.5"):
        Augment(drop=1.5)
    with pytest.raises(ValueError, match="jitter = -1"):
        Augment(jitter=-1)
