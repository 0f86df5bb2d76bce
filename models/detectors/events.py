"""What detectors with a trunk have in common: events as scaled numbers beside embedded codes, and the trunk itself.

Dimension letters: as in `base`; H hidden (`width` wide), E numbers a code is embedded into, D = F + K·E numbers an
event is turned into.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from models.detectors.base import Detector
from models.detectors.trunk import ARCHITECTURES
from models.features.encoded import InputSpec
from models.weights import layer_width

__all__ = ["SCALED_LIMIT", "EventDetector"]

SCALED_LIMIT = 10.0  # standard deviations; one absurd amount must not drown everything else
EMBEDDING_STD = 0.1


class EventDetector(Detector):
    """A detector whose trunk reads the window's events. trunk: a name of ARCHITECTURES; ValueError for another."""

    first_row_K: Tensor

    def __init__(self, architecture: str, trunk: str, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__(architecture, inputs, hidden, embedding)
        if trunk not in ARCHITECTURES:
            raise ValueError(f"architecture = {architecture!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
        self.width = layer_width(hidden)
        # One table for all codes: a single gather instead of one per field.
        rows = [size for _, size in inputs.codes]
        first = np.cumsum([0, *rows[:-1]]) if rows else np.zeros(0)
        self.register_buffer("first_row_K", torch.tensor(first, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(max(sum(rows), 1), embedding)
        with torch.no_grad():
            nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
            # Code 0 is "missing". Where training never saw it missing, it shall add nothing.
            self.table.weight[self.first_row_K] = 0.0
        self.trunk = ARCHITECTURES[trunk](self.event_width, self.width, inputs.length)

    @property
    def event_width(self) -> int:
        """D, the numbers that one event is turned into."""
        return len(self.inputs.x) + len(self.inputs.codes) * self.embedding

    def embed_events(self, x_BLF: Tensor, codes_BLK: Tensor) -> Tensor:
        """event_BLD: scaled numbers beside embedded codes, of every position."""
        scaled_BLF = ((x_BLF - self.x_mean_F) / self.x_std_F).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        embedded_BLKE = self.table(codes_BLK.long() + self.first_row_K)
        return torch.cat([scaled_BLF, embedded_BLKE.flatten(2)], dim=2)
