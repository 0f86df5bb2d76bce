"""A detector around the trunks of an architecture: its inputs, their scaling, the embedding of codes, and the head.

A detector is a pure function of encoded windows (`models.features.encoded`). It keeps nothing between calls
and knows neither thresholds nor calibration.

Dimension letters: B windows, L events in a window, F numeric features, K codes, C context features,
H hidden (`width` wide), E numbers a code is embedded into, D = F + K·E numbers an event is turned into;
J profiles with verdicts, S verdicts of each, G features of a verdict, V what they are summed up in (`verdict_width`).
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.detectors.trunk import ARCHITECTURES, DROPOUT, Trunk
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from models.weights import layer_width, verdict_width

__all__ = ["Detector", "build_detector", "tensors"]

SCALED_LIMIT = 10.0  # standard deviations; one absurd amount must not drown everything else
SMALL_STD = 1e-6  # a feature that hardly varies is only centred
EMBEDDING_STD = 0.1
PRESENT = VERDICT_FEATURES.index("present")


def build_detector(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Detector:
    """A new detector with random weights from torch's global generator, in training mode, on the CPU.

    Raises ValueError for an architecture nobody registered.
    """
    return Detector(architecture, inputs, hidden, embedding)


def tensors(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of a detector: x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG; they share numpy's memory."""
    return (
        torch.from_numpy(np.ascontiguousarray(encoded.x_BLF)),
        torch.from_numpy(np.ascontiguousarray(encoded.codes_BLK)),
        torch.from_numpy(np.ascontiguousarray(encoded.mask_BL)),
        torch.from_numpy(np.ascontiguousarray(encoded.context_BC)),
        torch.from_numpy(np.ascontiguousarray(encoded.verdicts_BJSG)),
    )


class Detector(nn.Module):
    """A trunk that reads the events, one for each profile's verdicts, and a small head that judges the last event.

    The head sees the trunk's state after the last event, the state after the newest verdict of each profile (0 without
    any verdict), the last event itself and its context (horizons and profiles). What stands at masked events and at
    absent verdicts does not matter, not even NaN. The rest is what `Trunk` promises.
    """

    x_mean_F: Tensor
    x_std_F: Tensor
    context_mean_C: Tensor
    context_std_C: Tensor
    verdict_mean_JG: Tensor
    verdict_std_JG: Tensor
    first_row_K: Tensor

    def __init__(self, architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__()
        if architecture not in ARCHITECTURES:
            raise ValueError(f"architecture = {architecture!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
        self.architecture, self.inputs, self.hidden, self.embedding = architecture, inputs, hidden, embedding
        self.width, self.verdict_width = layer_width(hidden), verdict_width(hidden)
        profiles, verdicts, features = inputs.verdict_shape
        self.register_buffer("x_mean_F", torch.zeros(len(inputs.x)))
        self.register_buffer("x_std_F", torch.ones(len(inputs.x)))
        self.register_buffer("context_mean_C", torch.zeros(len(inputs.context)))
        self.register_buffer("context_std_C", torch.ones(len(inputs.context)))
        self.register_buffer("verdict_mean_JG", torch.zeros(profiles, features))
        self.register_buffer("verdict_std_JG", torch.ones(profiles, features))
        # One table for all codes: a single gather instead of one per field.
        rows = [size for _, size in inputs.codes]
        first = np.cumsum([0, *rows[:-1]]) if rows else np.zeros(0)
        self.register_buffer("first_row_K", torch.tensor(first, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(max(sum(rows), 1), embedding)
        with torch.no_grad():
            nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
            # Code 0 is "missing". Where training never saw it missing, it shall add nothing.
            self.table.weight[self.first_row_K] = 0.0
        trunk = ARCHITECTURES[architecture]
        self.trunk = trunk(self.event_width, self.width, inputs.length)
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

    @property
    def event_width(self) -> int:
        """D, the numbers that one event is turned into."""
        return len(self.inputs.x) + len(self.inputs.codes) * self.embedding

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

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all weights and the scaler, by the names of `models.weights`."""
        return {name: tensor.numpy(force=True).copy() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def fit_scaler(self, encoded: Encoded) -> None:
        """Set mean and standard deviation of every numeric input from these windows.

        Padding and absent verdicts are ignored; the numbers of a profile without any verdict are left unscaled.

        Raises ValueError for no windows, and for a value that is not finite.
        """
        if len(encoded) == 0:
            raise ValueError("fit_scaler: 0 windows: expected at least one")
        _set(self.x_mean_F, self.x_std_F, encoded.x_BLF[encoded.mask_BL], self.inputs.x)
        _set(self.context_mean_C, self.context_std_C, encoded.context_BC, self.inputs.context)
        self.verdict_mean_JG.zero_()
        self.verdict_std_JG.fill_(1.0)
        for j, profile in enumerate(self.inputs.verdicts):
            verdict_BSG = encoded.verdicts_BJSG[:, j]
            present_NG = verdict_BSG[verdict_BSG[..., PRESENT] > 0]
            if len(present_NG) > 0:
                names = tuple(f"{profile}.verdicts.{feature}" for feature in VERDICT_FEATURES)
                _set(self.verdict_mean_JG[j], self.verdict_std_JG[j], present_NG, names)
        self.verdict_mean_JG[:, PRESENT], self.verdict_std_JG[:, PRESENT] = 0.0, 1.0

    def embed_events(self, x_BLF: Tensor, codes_BLK: Tensor) -> Tensor:
        """event_BLD: scaled numbers beside embedded codes, of every position."""
        scaled_BLF = ((x_BLF - self.x_mean_F) / self.x_std_F).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        embedded_BLKE = self.table(codes_BLK.long() + self.first_row_K)
        return torch.cat([scaled_BLF, embedded_BLKE.flatten(2)], dim=2)

    def embed_verdicts(self, verdicts_BJSG: Tensor) -> tuple[Tensor, Tensor]:
        """event_BJSG, scaled, 0 where no verdict is; there_BJS: where one is."""
        there_BJS = verdicts_BJSG[..., PRESENT] > 0
        mean_J1G, std_J1G = self.verdict_mean_JG.unsqueeze(1), self.verdict_std_JG.unsqueeze(1)
        scaled_BJSG = ((verdicts_BJSG - mean_J1G) / std_J1G).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        return scaled_BJSG.masked_fill(~there_BJS.unsqueeze(3), 0.0), there_BJS

    def scale_context(self, context_BC: Tensor) -> Tensor:
        scaled_BC = (context_BC - self.context_mean_C) / self.context_std_C
        return scaled_BC.clamp(-SCALED_LIMIT, SCALED_LIMIT)


def _set(mean_F: Tensor, std_F: Tensor, rows_NF: NDArray[np.float32], names: tuple[str, ...]) -> None:
    mean = rows_NF.mean(axis=0, dtype=np.float64)
    std = rows_NF.std(axis=0, dtype=np.float64)
    for name, value in zip(names, mean + std, strict=True):
        if not np.isfinite(value):
            raise ValueError(f"fit_scaler: {name} has a value that is not finite: expected finite float32")
    mean_F.copy_(torch.from_numpy(mean))
    std_F.copy_(torch.from_numpy(np.where(std < SMALL_STD, 1.0, std)))
