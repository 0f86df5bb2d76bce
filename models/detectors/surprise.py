"""The detector that needs no labels: an event's logit is that of its surprise (`models.surprise`), a column of context.

What each field carries is taken out of the logit when that field's `carried` is lowered, as explanations do: a field
that carried half of the evidence halves the level.

Dimension letters: as in `base`; N number fields.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.detectors.base import Detector
from models.features.encoded import InputSpec
from models.pipeline.spec import SURPRISE
from models.weights import SURPRISE_LIMIT, surprise_columns

__all__ = ["SurpriseDetector", "carried_share", "level_of"]


class SurpriseDetector(Detector):
    """Nothing in it is trained but the scaler, which explanations read.

    Raises ValueError for inputs of a pipeline without `[surprise]`.
    """

    carried_N: Tensor

    def __init__(self, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__(SURPRISE, inputs, hidden, embedding)
        self.score, self.total, carried = surprise_columns(inputs)
        self.register_buffer("carried_N", torch.tensor(carried, dtype=torch.int64), persistent=False)

    def forward(
        self,
        x_BLF: Tensor,  # noqa: ARG002, surprise has seen them
        codes_BLK: Tensor,  # noqa: ARG002
        mask_BL: Tensor,  # noqa: ARG002
        context_BC: Tensor,
        verdicts_BJSG: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """logit_B = log(level · share), where share is 1 unless a `carried` column was lowered."""
        level_B = level_of(context_BC[:, self.score])
        return torch.log(level_B) + torch.log(carried_share(context_BC, self.carried_N, self.total))


def level_of(score_B: Tensor) -> Tensor:
    """level_B, from a score = level / (1 + level)."""
    held_B = score_B.clamp(SURPRISE_LIMIT, 1.0 - SURPRISE_LIMIT)
    return held_B / (1.0 - held_B)


def carried_share(context_BC: Tensor, carried_N: Tensor, total: int) -> Tensor:
    """share_B of what the fields carry that is still there: 1 as it came, less where a column was lowered."""
    carried_B = context_BC[:, carried_N].clamp(min=0.0).sum(1)
    return (carried_B + SURPRISE_LIMIT) / (context_BC[:, total].clamp(min=0.0) + SURPRISE_LIMIT)
