"""What every detector is: a pure function of encoded windows (`models.features.encoded`) with scaled inputs.

It keeps nothing between calls and knows neither thresholds nor calibration. `sequence` has those that learn from
labels, `surprise` the one that needs none.

Dimension letters: B windows, L events in a window, F numeric features, K codes, C context features; J profiles with
verdicts, S verdicts of each, G features of a verdict.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec

__all__ = ["PRESENT", "Detector", "tensors"]

SMALL_STD = 1e-6  # a feature that hardly varies is only centred
PRESENT = VERDICT_FEATURES.index("present")


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
    """From windows to logits. A subclass implements `forward`; what stands at masked events must not matter to it.

    hidden, embedding: sizes, as in the pipeline file; not every detector has such parts.
    """

    x_mean_F: Tensor
    x_std_F: Tensor
    context_mean_C: Tensor
    context_std_C: Tensor
    verdict_mean_JG: Tensor
    verdict_std_JG: Tensor

    def __init__(self, architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__()
        self.architecture, self.inputs, self.hidden, self.embedding = architecture, inputs, hidden, embedding
        profiles, _, features = inputs.verdict_shape
        self.register_buffer("x_mean_F", torch.zeros(len(inputs.x)))
        self.register_buffer("x_std_F", torch.ones(len(inputs.x)))
        self.register_buffer("context_mean_C", torch.zeros(len(inputs.context)))
        self.register_buffer("context_std_C", torch.ones(len(inputs.context)))
        self.register_buffer("verdict_mean_JG", torch.zeros(profiles, features))
        self.register_buffer("verdict_std_JG", torch.ones(profiles, features))

    def forward(
        self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor, verdicts_BJSG: Tensor
    ) -> Tensor:
        """logit_B, float32: higher is stranger. Inputs as in `Encoded`; L may be below `inputs.length`."""
        raise NotImplementedError

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


def _set(mean_F: Tensor, std_F: Tensor, rows_NF: NDArray[np.float32], names: tuple[str, ...]) -> None:
    mean = rows_NF.mean(axis=0, dtype=np.float64)
    std = rows_NF.std(axis=0, dtype=np.float64)
    for name, value in zip(names, mean + std, strict=True):
        if not np.isfinite(value):
            raise ValueError(f"fit_scaler: {name} has a value that is not finite: expected finite float32")
    mean_F.copy_(torch.from_numpy(mean))
    std_F.copy_(torch.from_numpy(np.where(std < SMALL_STD, 1.0, std)))
