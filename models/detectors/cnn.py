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

    def last_state(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """As `Trunk` has it. Newest first, so that each block only works at the places that the next one looks at:
        every second one of its own (le Paine et al., arXiv:1611.09482)."""
        there_BL1 = mask_BL.flip(1).unsqueeze(2).to(event_BLD.dtype)
        state_BLH = self.first(event_BLD.flip(1)) * there_BL1
        for block in self.blocks:
            state_BLH, there_BL1 = cast(_Block, block).halved(state_BLH, there_BL1)
        return cast(Tensor, self.last(state_BLH[:, 0]))


class _Block(nn.Module):
    """Adds to each state what a causal convolution makes of those before it."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, CNN_KERNEL, dilation=dilation)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, state_BLH: Tensor, there_BL1: Tensor) -> Tensor:
        before = (CNN_KERNEL - 1) * self.dilation
        seen_BHL = self.convolution(functional.pad(self._normed(state_BLH, there_BL1), (before, 0)))
        return self._added(state_BLH, seen_BHL, there_BL1)

    def halved(self, state_BLH: Tensor, there_BL1: Tensor) -> tuple[Tensor, Tensor]:
        """The states at every second place and which of them are there; newest first, and so far apart that what this
        block's convolution sees are neighbours."""
        normed_BHL = functional.pad(self._normed(state_BLH, there_BL1), (0, CNN_KERNEL - 1))
        newest_first = self.convolution.weight.flip(2)
        seen_BHL = functional.conv1d(normed_BHL, newest_first, self.convolution.bias, stride=2)
        there_BL1 = there_BL1[:, ::2]
        return self._added(state_BLH[:, ::2], seen_BHL, there_BL1), there_BL1

    def _normed(self, state_BLH: Tensor, there_BL1: Tensor) -> Tensor:
        return cast(Tensor, self.norm(state_BLH) * there_BL1).transpose(1, 2)

    def _added(self, state_BLH: Tensor, seen_BHL: Tensor, there_BL1: Tensor) -> Tensor:
        added_BLH = self.dropout(self.mix(functional.gelu(seen_BHL.transpose(1, 2))))
        return cast(Tensor, (state_BLH + added_BLH) * there_BL1)
