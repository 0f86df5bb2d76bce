"""The attention trunk: a causal transformer that normalises before each layer (Vaswani et al., arXiv:1706.03762;
Xiong et al., arXiv:2002.04745).

Its heads prefer near events by linear biases instead of positions (ALiBi: Press et al., arXiv:2108.12409), so it does
not matter how much padding stands before the first event.

Dimension letters beside those of `trunk`: A heads, M the events that an event looks at.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.detectors.trunk import DROPOUT, Trunk, register
from models.weights import FEED_FORWARD, TRANSFORMER_LAYERS

__all__ = ["TransformerTrunk"]

HEADS = 4
UNSEEN = -1e4  # added to the logit of a weight that has to be 0: its exponential is


@register("transformer")
class TransformerTrunk(Trunk):
    """Every event looks at all events before it, and at itself."""

    slope_A: Tensor

    def __init__(self, inputs_width: int, width: int, length: int) -> None:
        super().__init__(inputs_width, width, length)
        self.first = nn.Linear(inputs_width, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(TRANSFORMER_LAYERS))
        self.last = nn.LayerNorm(width)
        self.register_buffer("slope_A", 2.0 ** (-8.0 / HEADS * torch.arange(1.0, HEADS + 1)), persistent=False)

    def states(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        bias_BALM = self._bias(mask_BL)
        state_BLH = self.first(event_BLD)
        for layer in self.layers:
            state_BLH = layer(state_BLH, bias_BALM)
        return cast(Tensor, self.last(state_BLH))

    def last_state(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """As `Trunk` has it: the last layer works for the last event alone."""
        bias_BALM = self._bias(mask_BL)
        state_BLH = self.first(event_BLD)
        for layer in self.layers[:-1]:
            state_BLH = layer(state_BLH, bias_BALM)
        state_B1H = self.layers[-1](state_BLH, bias_BALM[:, :, -1:])
        return cast(Tensor, self.last(state_B1H).squeeze(1))

    def _bias(self, mask_BL: Tensor) -> Tensor:
        """What is added to the logit of the weight of event m for event l, by head: (B, heads, L, L)."""
        place_BL = torch.ones_like(mask_BL, dtype=torch.float32).cumsum(1)  # `arange` would fix the length of a graph
        ago_BLM = place_BL.unsqueeze(2) - place_BL.unsqueeze(1)
        unseen_BLM = (ago_BLM < 0) | ~mask_BL.unsqueeze(1)
        biased_BALM = -self.slope_A.view(1, HEADS, 1, 1) * ago_BLM.unsqueeze(1)
        return biased_BALM.masked_fill(unseen_BLM.unsqueeze(1), UNSEEN)


class _Layer(nn.Module):
    """Attention, then a layer for each event by itself; each adds to what there is."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm, self.event_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, FEED_FORWARD * width), nn.Linear(FEED_FORWARD * width, width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, state_BLH: Tensor, bias_BALM: Tensor) -> Tensor:
        """The states of as many of the last events as the bias has rows."""
        own_BLH: Tensor = state_BLH[:, -bias_BALM.shape[2] :]
        own_BLH = own_BLH + self.dropout(self._attend(self.attention_norm(state_BLH), bias_BALM))
        wide = functional.gelu(self.wide(self.event_norm(own_BLH)))
        return cast(Tensor, own_BLH + self.dropout(self.narrow(wide)))

    def _attend(self, normed_BMH: Tensor, bias_BALM: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in self.queries_keys_values(normed_BMH).chunk(3, 2)
        )
        seen = functional.scaled_dot_product_attention(query[:, :, -bias_BALM.shape[2] :], key, value, bias_BALM)
        return cast(Tensor, self.mix(seen.transpose(1, 2).flatten(2)))
