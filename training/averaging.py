"""The exponential moving average of a model's weights over the steps of training (Polyak and Juditsky 1992; in this
form Tarvainen and Valpola, arXiv:1703.01780): what the last few hundred steps agree on, without their noise."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

__all__ = ["Average"]

AnyModel = TypeVar("AnyModel", bound=nn.Module)


class Average(Generic[AnyModel]):
    """model: a second model, never trained itself, whose parameters follow those of the first; buffers stay.

    decay: the share of the old average in the new one, 0 for none. It grows from step to step up to this, as an average
    over more steps than there have been would be of the random start.
    """

    def __init__(self, model: AnyModel, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: AnyModel) -> None:
        """After a step of `model`."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps)) if self.decay else 0.0
        mine: list[Tensor] = list(self.model.parameters())
        new: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(mine, new, 1.0 - decay)
