"""The recurrent trunk: one GRU over the sequence (Cho et al., EMNLP 2014, arXiv:1406.1078)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.detectors.trunk import Trunk, register

__all__ = ["GruTrunk"]

# Added to the update gate where there is no event: sigmoid gives exactly 1, so the state stays exactly what
# it was, zero. The fused kernel then does the masking, at no cost and without packing.
KEEP_STATE = 1e4


@register("gru")
class GruTrunk(Trunk):
    """A state that each event updates; the cheapest of the three to run, and the only one with kernels of our own."""

    keep_gate: Tensor

    def __init__(self, inputs_width: int, width: int, length: int) -> None:
        super().__init__(inputs_width, width, length)
        self.gru = nn.GRU(inputs_width, width, batch_first=True)
        # Gates are stacked as reset, update, new: the middle third is the update gate.
        keep = torch.zeros(3 * width, 1)
        keep[width : 2 * width] = KEEP_STATE
        self.register_buffer("keep_gate", keep, persistent=False)

    def states(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        padding_BL1 = (~mask_BL).unsqueeze(2).to(event_BLD.dtype)
        steps = torch.cat([event_BLD, padding_BL1], dim=2)
        first = event_BLD.new_zeros(1, event_BLD.shape[0], self.width)  # `len` would fix the batch of an ONNX graph
        input_weight, state_weight, input_bias, state_bias = self.gru.all_weights[0]
        weights = [torch.cat([input_weight, self.keep_gate], dim=1), state_weight, input_bias, state_bias]
        state_BLH, _ = torch.gru(steps, first, weights, True, 1, 0.0, self.training, False, True)
        return state_BLH
