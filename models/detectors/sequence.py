"""The detector that learns from labels: a trunk for the events, one for each profile's verdicts, and a head.

Dimension letters: as in `base` and `events`; V what verdicts are summed up in (`verdict_width`).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from models.detectors.base import PRESENT
from models.detectors.events import SCALED_LIMIT, EventDetector
from models.detectors.trunk import ARCHITECTURES, DROPOUT, Trunk
from models.features.encoded import InputSpec
from models.weights import verdict_width

__all__ = ["SequenceDetector"]


class SequenceDetector(EventDetector):
    """A trunk that reads the events, one for each profile's verdicts, and a small head that judges the last event.

    The head sees the trunk's state after the last event, the state after the newest verdict of each profile (0 without
    any verdict), the last event itself and its context (horizons and profiles). What stands at masked events and at
    absent verdicts does not matter, not even NaN. The rest is what `Trunk` promises.
    """

    def __init__(self, architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__(architecture, architecture, inputs, hidden, embedding)
        self.verdict_width = verdict_width(hidden)
        profiles, verdicts, features = inputs.verdict_shape
        trunk = ARCHITECTURES[architecture]
        self.verdict_trunks = nn.ModuleList(trunk(features, self.verdict_width, verdicts) for _ in range(profiles))
        seen = self.width + profiles * self.verdict_width + self.event_width + len(inputs.context)
        self.head = nn.Sequential(
            nn.Linear(seen, self.width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(self.width, self.width),
            nn.GELU(),
            nn.Linear(self.width, 1),
        )

    def forward(
        self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor, verdicts_BJSG: Tensor
    ) -> Tensor:
        """logit_B, float32: higher is likelier fraud. Inputs as in `Encoded`; L may be below `inputs.length`."""
        event_BLD = self.embed_events(x_BLF, codes_BLK)
        # A masked event's numbers are cleared, so that not even NaN there could reach a state.
        state_BH = self.trunk.last_state(event_BLD.masked_fill(~mask_BL.unsqueeze(2), 0.0), mask_BL)
        summaries = self.sum_up(verdicts_BJSG)
        seen = torch.cat([state_BH, *summaries, event_BLD[:, -1], self.scale_context(context_BC)], dim=1)
        return cast(Tensor, self.head(seen).squeeze(1))

    def sum_up(self, verdicts_BJSG: Tensor) -> list[Tensor]:
        """For each profile the state after its newest verdict, (B, V); 0 where no verdict has arrived."""
        if not self.verdict_trunks:
            return []
        event_BJSG, there_BJS = self.embed_verdicts(verdicts_BJSG)
        summaries = []
        for j, trunk in enumerate(self.verdict_trunks):
            state_BV = cast(Trunk, trunk).last_state(event_BJSG[:, j], there_BJS[:, j])
            summaries.append(state_BV.masked_fill(~there_BJS[:, j].any(1, keepdim=True), 0.0))
        return summaries

    def embed_verdicts(self, verdicts_BJSG: Tensor) -> tuple[Tensor, Tensor]:
        """event_BJSG, scaled, 0 where no verdict is; there_BJS: where one is."""
        there_BJS = verdicts_BJSG[..., PRESENT] > 0
        mean_J1G, std_J1G = self.verdict_mean_JG.unsqueeze(1), self.verdict_std_JG.unsqueeze(1)
        scaled_BJSG = ((verdicts_BJSG - mean_J1G) / std_J1G).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        return scaled_BJSG.masked_fill(~there_BJS.unsqueeze(3), 0.0), there_BJS

    def scale_context(self, context_BC: Tensor) -> Tensor:
        scaled_BC = (context_BC - self.context_mean_C) / self.context_std_C
        return scaled_BC.clamp(-SCALED_LIMIT, SCALED_LIMIT)
