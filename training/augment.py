"""Windows as they might have been: events missing, gaps a little longer or shorter, fewer verdicts.

For training only, and on batches of a detector's inputs (`models.detectors.base.tensors`), before scaling. What follows
from other columns is kept consistent where it can be: a dropped event's gap is added to that of the next one. Distances
and the context stay as they were. The last event is the one that is judged: it is never dropped.

Dimension letters as in `models.features.encoded`; N rows of places, P places, F columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from models.features.encoded import VERDICT_FEATURES, InputSpec

__all__ = ["Augment", "Augmenter"]

PHASES = (("hour_sin", "hour_cos", 1.0), ("week_sin", "week_cos", 7.0))  # and the days they turn once in
PRESENT, VERDICT_GAP = VERDICT_FEATURES.index("present"), VERDICT_FEATURES.index("gap")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How much. Shares are within [0, 1]; 0 leaves that part out. Raises ValueError."""

    drop: float = 0.05  # of the earlier events, each by itself
    truncate: float = 0.1  # of the windows: their oldest events go, how many is drawn evenly
    jitter: float = 0.1  # standard deviation of the logarithm by which a gap is stretched
    shift_hours: float = 0.5  # standard deviation of a move of the whole window in the day and the week
    drop_verdicts: float = 0.05  # of the present verdicts, each by itself
    truncate_verdicts: float = 0.1  # of the rows of verdicts: their oldest go

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0 or (value > 1 and name not in ("jitter", "shift_hours")):
                raise ValueError(f"{name} = {value}: expected a share within [0, 1], or a deviation of at least 0")


class Augmenter:
    """Call it on a batch; the generator alone decides what happens, so a seed repeats it."""

    def __init__(self, inputs: InputSpec, amounts: Augment | None = None) -> None:
        self.amounts = amounts or Augment()
        place = {name: i for i, name in enumerate(inputs.x)}
        self.gap = place.get("gap")
        self.phases = [(place[s], place[c], days) for s, c, days in PHASES if s in place and c in place]

    def __call__(self, batch: list[Tensor], generator: Generator) -> list[Tensor]:
        """New tensors of the same shapes; what is not changed is shared with `batch`."""
        amounts = self.amounts
        x_BLF, codes_BLK, mask_BL, context_BC, *verdicts = batch
        keep_BL = mask_BL & _kept(mask_BL, amounts.drop, generator)
        young_BL = _young(mask_BL, amounts.truncate, generator)
        keep_BL &= young_BL
        keep_BL[:, -1] = young_BL[:, -1] = True
        x_BLF = self._shifted(x_BLF, generator)
        if self.gap is not None:
            stretch_BL = torch.exp(amounts.jitter * torch.randn(mask_BL.shape, generator=generator))
            # What is truncated has not happened: its time is not added to the first event that is left.
            x_BLF = _with_gaps(x_BLF, self.gap, stretch_BL * young_BL, keep_BL)
        order_BL = torch.argsort(keep_BL.int(), dim=1, stable=True)
        mask_BL = keep_BL.gather(1, order_BL)
        kept = [_ordered(x_BLF, order_BL, mask_BL), _ordered(codes_BLK, order_BL, mask_BL), mask_BL, context_BC]
        return kept + [self._fewer(verdicts_BJSG, generator) for verdicts_BJSG in verdicts]

    def _shifted(self, x_BLF: Tensor, generator: Generator) -> Tensor:
        """The whole window earlier or later; padding, all 0, stays 0."""
        x_BLF = x_BLF.clone()
        days_B1 = self.amounts.shift_hours / 24 * torch.randn((len(x_BLF), 1), generator=generator)
        for sine, cosine, period in self.phases:
            angle_B1 = 2 * math.pi / period * days_B1
            s_BL, c_BL = x_BLF[..., sine].clone(), x_BLF[..., cosine].clone()
            x_BLF[..., sine] = s_BL * torch.cos(angle_B1) + c_BL * torch.sin(angle_B1)
            x_BLF[..., cosine] = c_BL * torch.cos(angle_B1) - s_BL * torch.sin(angle_B1)
        return x_BLF

    def _fewer(self, verdicts_BJSG: Tensor, generator: Generator) -> Tensor:
        if verdicts_BJSG.numel() == 0:
            return verdicts_BJSG
        rows_NPF = verdicts_BJSG.flatten(0, 1)
        present_NP = rows_NPF[..., PRESENT] > 0
        young_NP = _young(present_NP, self.amounts.truncate_verdicts, generator)
        keep_NP = present_NP & young_NP & _kept(present_NP, self.amounts.drop_verdicts, generator)
        rows_NPF = _with_gaps(rows_NPF, VERDICT_GAP, young_NP.float(), keep_NP)
        order_NP = torch.argsort(keep_NP.int(), dim=1, stable=True)
        return _ordered(rows_NPF, order_NP, keep_NP.gather(1, order_NP)).view_as(verdicts_BJSG)


def _kept(there_NP: Tensor, share: float, generator: Generator) -> Tensor:
    return torch.rand(there_NP.shape, generator=generator) >= share


def _young(there_NP: Tensor, share: float, generator: Generator) -> Tensor:
    """True but for the oldest of a share of the rows; from none to all of the present places go, evenly."""
    rows, places = there_NP.shape
    count_N = there_NP.sum(1)
    gone_N = torch.floor(torch.rand(rows, generator=generator) * (count_N + 1)).long()
    gone_N = torch.where(torch.rand(rows, generator=generator) < share, gone_N, torch.zeros_like(gone_N))
    return torch.arange(places) >= (places - count_N + gone_N).unsqueeze(1)


def _with_gaps(rows_NPF: Tensor, gap: int, factor_NP: Tensor, keep_NP: Tensor) -> Tensor:
    """Each gap times its factor, and to a kept place those of the dropped ones just before it are added.

    Gaps are log1p of a time; places that are absent have 0.
    """
    since_NP = torch.expm1(rows_NPF[..., gap].double()) * factor_NP
    clock_NP = since_NP.cumsum(1)
    zero_N1 = torch.zeros_like(clock_NP[:, :1])
    kept_NP = torch.where(keep_NP, clock_NP, zero_N1).cummax(1).values  # the clock of the last one kept
    before_NP = torch.cat([zero_N1, kept_NP[:, :-1]], dim=1)
    changed_NPF = rows_NPF.clone()
    changed_NPF[..., gap] = torch.log1p((clock_NP - before_NP).clamp(min=0.0)).to(rows_NPF.dtype)
    return changed_NPF


def _ordered(rows_NPF: Tensor, order_NP: Tensor, there_NP: Tensor) -> Tensor:
    """Rows moved to the end in this order, and 0 where there is none."""
    moved_NPF = rows_NPF.gather(1, order_NP.unsqueeze(2).expand_as(rows_NPF))
    return moved_NPF.masked_fill(~there_NP.unsqueeze(2), 0)
