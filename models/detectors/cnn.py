"""The convolutional trunk: causal dilated convolutions, after the temporal convolutional network of Bai, Kolter and
Koltun (arXiv:1803.01271), with layer normalisation."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from models.detectors.trunk import DROPOUT, Trunk, register
from models.weights import CNN_KERNEL, cnn_dilations

__all__ = ["CnnTrunk"]


@register("cnn")
class CnnTrunk(Trunk):
    """Blocks that each look twice as far back as the one before, as many as the longest sequence needs."""

    def __init__(self, inputs_width: int, width: int, length: int) -> None:
        super().__init__(inputs_width, width, length)
        self.first = nn.Linear(inputs_width, width)
        self.blocks = nn.ModuleList(_Block(width, dilation) for dilation in cnn_dilations(length))
        self.last = nn.LayerNorm(width)

    def states(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        there_BL1 = mask_BL.unsqueeze(2).to(event_BLD.dtype)
        # Masked positions are zero before each convolution, as is what it is padded with: padding does not matter.
        state_BLH = self.first(event_BLD) * there_BL1
        for block in self.blocks:
            state_BLH = block(state_BLH, there_BL1)
        return cast(Tensor, self.last(state_BLH))


class _Block(nn.Module):
    """Adds to each state what a causal convolution makes of those before it."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.before = (CNN_KERNEL - 1) * dilation
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, CNN_KERNEL, dilation=dilation)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, state_BLH: Tensor, there_BL1: Tensor) -> Tensor:
        normed_BHL = (self.norm(state_BLH) * there_BL1).transpose(1, 2)
        seen_BLH = self.convolution(functional.pad(normed_BHL, (self.before, 0))).transpose(1, 2)
        added_BLH = self.dropout(self.mix(functional.gelu(seen_BLH)))
        return cast(Tensor, (state_BLH + added_BLH) * there_BL1)
