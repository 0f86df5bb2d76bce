"""The detector without labels that a fleet teaches: what its trunk cannot forecast is evidence beside surprise.

The trunk reads the events before; from its state after each of them a head says how the numbers of the next will be
distributed, each by how far it is from its entity's usual value, so that machines of different size are alike. The
evidence is the negative log likelihood of what came, its mean over the fields and its greatest, averaged over the last
1, 4, 16 and all events of the window, each above what is usual in the fleet, in spreads, among entities of the same
age: the usual values of new ones are not settled. The mean of their logarithms is a level as that of surprise is
(`models.surprise.level`), in units that make both equally high at the fleet's highest twentieth; the detector's level
is the mean of both. Of an entity that surprise does not know yet it is the forecasts' alone, in units that make the
highest twentieth of its age as high as that of known ones.

Dimension letters: as in `events`; N number fields, R horizons, A ages.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.detectors.events import EventDetector
from models.detectors.surprise import carried_share, level_of
from models.features.encoded import InputSpec
from models.pipeline.spec import SURPRISE
from models.weights import AGES, FORECAST_HORIZONS, SURPRISE_LIMIT, forecast_columns, surprise_columns

__all__ = ["ForecastDetector"]

LOG_SPREAD = (-5.0, 3.0)
MOST = 20.0  # nats: what is further off is no stranger
FLAGGED = 0.5


class ForecastDetector(EventDetector):
    """Raises ValueError for a trunk nobody registered and for inputs of a pipeline without `[surprise]`."""

    used_D: Tensor
    target_N: Tensor
    missing_N: Tensor
    carried_N: Tensor
    usual_AR2: Tensor
    spread_AR2: Tensor
    gain_A: Tensor

    def __init__(self, trunk: str, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__(f"{SURPRISE}-{trunk}", trunk, inputs, hidden, embedding)
        self.score, self.total, carried = surprise_columns(inputs)
        self.known = inputs.context.index("surprise.known")
        targets, missing, plain = forecast_columns(inputs)
        used_D = torch.ones(self.event_width)
        used_D[plain] = 0.0  # machines of a fleet differ in what is usual
        for name, value in (
            ("used_D", used_D), ("target_N", torch.tensor(targets)), ("missing_N", torch.tensor(missing)),
            ("carried_N", torch.tensor(carried)),
        ):  # fmt: skip
            self.register_buffer(name, value, persistent=False)
        self.forecast = nn.Sequential(
            nn.Linear(self.width, self.width), nn.GELU(), nn.Linear(self.width, 2 * len(targets))
        )  # fmt: skip
        ages, horizons = len(AGES) + 1, len(FORECAST_HORIZONS)
        self.register_buffer("usual_AR2", torch.zeros(ages, horizons, 2))
        self.register_buffer("spread_AR2", torch.ones(ages, horizons, 2))
        self.register_buffer("gain_A", torch.ones(ages))

    def forward(
        self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor,
        verdicts_BJSG: Tensor,  # noqa: ARG002, there are no labels
    ) -> Tensor:  # fmt: skip
        """logit_B = log(level · share); inputs as in `Encoded`."""
        surprise_B, age_B = level_of(context_BC[:, self.score]), self.ages(context_BC)
        forecast_B = self.forecast_level(self.evidence(x_BLF, codes_BLK, mask_BL), age_B)
        forecast_B = self.gain_A[age_B] * forecast_B
        level_B = torch.where(age_B == len(AGES), 0.5 * (surprise_B + forecast_B), forecast_B)
        level_B = level_B.clamp(min=SURPRISE_LIMIT)
        return torch.log(level_B) + torch.log(carried_share(context_BC, self.carried_N, self.total))

    def unlikelihood(self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
        """nats_BLN, the negative log likelihood of each number given the events before, 0 where there is none to be
        had; and where there is, bool."""
        event_BLD = self.embed_events(x_BLF, codes_BLK).masked_fill(~mask_BL.unsqueeze(2), 0.0)
        read_BLD = event_BLD * self.used_D
        before_BLD = torch.cat([torch.zeros_like(read_BLD[:, :1]), read_BLD[:, :-1]], dim=1)
        known_BL = torch.cat([torch.zeros_like(mask_BL[:, :1]), mask_BL[:, :-1]], dim=1)
        middle_BLN, spread_BLN = self.forecast(self.trunk.states(before_BLD, known_BL)).chunk(2, dim=2)
        spread_BLN = spread_BLN.clamp(*LOG_SPREAD)
        off_BLN = (event_BLD[..., self.target_N] - middle_BLN) * torch.exp(-spread_BLN)
        nats_BLN = (0.5 * off_BLN * off_BLN + spread_BLN).clamp(max=MOST)
        there_BLN = (mask_BL & known_BL).unsqueeze(2) & self._present(x_BLF)
        return nats_BLN.masked_fill(~there_BLN, 0.0), there_BLN

    def evidence(self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor) -> Tensor:
        """evidence_BR2: averages over each horizon of the mean over the fields, and of the greatest."""
        nats_BLN, there_BLN = self.unlikelihood(x_BLF, codes_BLK, mask_BL)
        count_BL = there_BLN.sum(2)
        top_BL = nats_BLN.masked_fill(~there_BLN, LOG_SPREAD[0]).amax(2)
        both_BL2 = torch.stack([nats_BLN.sum(2) / count_BL.clamp(min=1), top_BL], dim=2)
        weight_BL1 = (count_BL > 0).to(nats_BLN.dtype).unsqueeze(2)
        averages = []
        for horizon in FORECAST_HORIZONS:
            first = -horizon if horizon else 0
            weight = weight_BL1[:, first:]
            count_B1 = weight.sum(1)
            average = (both_BL2[:, first:] * weight).sum(1) / count_B1.clamp(min=1)
            averages.append(torch.where(count_B1 > 0, average, LOG_SPREAD[0]))  # of nothing: nothing strange
        return torch.stack(averages, dim=1)

    def forecast_level(self, evidence_BR2: Tensor, age_B: Tensor) -> Tensor:
        """level_B before `gain_A`, against what is usual of entities of the same age."""
        above_BR2 = (evidence_BR2 - self.usual_AR2[age_B]).clamp(min=0.0) / self.spread_AR2[age_B]
        return torch.log1p(above_BR2).mean((1, 2))

    def ages(self, context_BC: Tensor) -> Tensor:
        """age_B, int64: how many of AGES the entity has reached; all of them: surprise knows it."""
        known_B = context_BC[:, self.known]
        return torch.stack([known_B >= age for age in AGES]).long().sum(0)

    def _present(self, x_BLF: Tensor) -> Tensor:
        """there_BLN of the fields by their flags; a field without one is always there."""
        padded = torch.cat([x_BLF, torch.zeros_like(x_BLF[..., :1])], dim=2)
        return padded[..., self.missing_N] < FLAGGED
