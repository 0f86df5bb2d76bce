"""The recurrent detector: one GRU over the window, read at the last event, then a small head.

The head sees the last hidden state, the current event itself and its context (horizons and profiles).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.detectors.base import Detector, register
from models.features.encoded import InputSpec

__all__ = ["GruDetector"]

# Added to the update gate where there is no event: sigmoid gives exactly 1, so the state stays exactly what
# it was, zero. The fused kernel then does the masking, at no cost and without packing.
KEEP_STATE = 1e4
DROPOUT = 0.1


@register("gru")
class GruDetector(Detector):
    """GRU over scaled events, masked; logit from its last state, the current event and the context."""

    keep_gate: Tensor

    def __init__(self, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__(inputs, hidden, embedding)
        width = self.width
        self.gru = nn.GRU(self.event_width, width, batch_first=True)
        # Gates are stacked as reset, update, new: the middle third is the update gate.
        keep = torch.zeros(3 * width, 1)
        keep[width : 2 * width] = KEEP_STATE
        self.register_buffer("keep_gate", keep, persistent=False)
        self.head = nn.Sequential(
            nn.Linear(width + self.event_width + len(inputs.context), width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(width, width),
            nn.GELU(),
            nn.Linear(width, 1),
        )

    def forward(self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor) -> Tensor:
        event_BLD = self.embed_events(x_BLF, codes_BLK)
        hidden_BH = self._last_state(event_BLD, mask_BL)
        seen = torch.cat([hidden_BH, event_BLD[:, -1], self.scale_context(context_BC)], dim=1)
        return cast(Tensor, self.head(seen).squeeze(1))

    def _last_state(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        padding_BL1 = (~mask_BL).unsqueeze(2).to(event_BLD.dtype)
        # A masked event's numbers are cleared, so that not even NaN there could reach the state.
        steps = torch.cat([event_BLD.masked_fill(~mask_BL.unsqueeze(2), 0.0), padding_BL1], dim=2)
        first = event_BLD.new_zeros(1, event_BLD.shape[0], self.width)  # `len` would fix the batch of an ONNX graph
        input_weight, state_weight, input_bias, state_bias = self.gru.all_weights[0]
        weights = [torch.cat([input_weight, self.keep_gate], dim=1), state_weight, input_bias, state_bias]
        _, last_1BH = torch.gru(steps, first, weights, True, 1, 0.0, self.training, False, True)
        return last_1BH[0]
