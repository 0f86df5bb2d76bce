"""What every detector has in common: its inputs, their scaling, the embedding of codes, and the interface.

A detector is a pure function of encoded windows (`models.features.encoded`). It keeps nothing between calls
and knows neither thresholds nor calibration.

Dimension letters: B windows, L events in a window, F numeric features, K codes, C context features,
H hidden (`width` wide), E numbers a code is embedded into, D = F + K·E numbers an event is turned into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.features.encoded import Encoded, InputSpec
from models.weights import layer_width

__all__ = ["ARCHITECTURES", "Detector", "build_detector", "register", "tensors"]

SCALED_LIMIT = 10.0  # standard deviations; one absurd amount must not drown everything else
SMALL_STD = 1e-6  # a feature that hardly varies is only centred
EMBEDDING_STD = 0.1
DROPOUT = 0.1

ARCHITECTURES: dict[str, type[Detector]] = {}

AnyDetector = TypeVar("AnyDetector", bound="type[Detector]")


def register(name: str) -> Callable[[AnyDetector], AnyDetector]:
    """Class decorator: makes an architecture known to `build_detector` under this name."""

    def add(kind: AnyDetector) -> AnyDetector:
        kind.architecture = name
        ARCHITECTURES[name] = kind
        return kind

    return add


def build_detector(architecture: str, inputs: InputSpec, hidden: int, embedding: int) -> Detector:
    """A new detector with random weights from torch's global generator, in training mode, on the CPU.

    Raises ValueError for an architecture nobody registered.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture = {architecture!r}: expected one of {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[architecture](inputs, hidden, embedding)


def tensors(encoded: Encoded) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four arguments of a detector: x_BLF, codes_BLK, mask_BL, context_BC; they share numpy's memory."""
    return (
        torch.from_numpy(np.ascontiguousarray(encoded.x_BLF)),
        torch.from_numpy(np.ascontiguousarray(encoded.codes_BLK)),
        torch.from_numpy(np.ascontiguousarray(encoded.mask_BL)),
        torch.from_numpy(np.ascontiguousarray(encoded.context_BC)),
    )


class Detector(nn.Module):
    """Interface and shared parts: a trunk that reads the events, and a small head that judges the last one.

    The head sees the trunk's state after the last event, that event itself and its context (horizons and profiles).
    A subclass implements the trunk, `states`, and promises:

    - the state after an event depends on that event and those before it;
    - what stands at masked positions does not matter, nor how many there are before the first event;
    - one window's logit does not depend on the other windows of the batch (up to float rounding;
      `models.engines.blocks` removes even that, as long as its layers are `width` wide: `hidden`, rounded up);
    - in eval mode the same input gives the same output, bit for bit.
    """

    architecture: ClassVar[str]
    x_mean_F: Tensor
    x_std_F: Tensor
    context_mean_C: Tensor
    context_std_C: Tensor
    first_row_K: Tensor
    head: nn.Sequential

    def __init__(self, inputs: InputSpec, hidden: int, embedding: int) -> None:
        super().__init__()
        self.inputs, self.hidden, self.embedding = inputs, hidden, embedding
        self.width = layer_width(hidden)
        self.register_buffer("x_mean_F", torch.zeros(len(inputs.x)))
        self.register_buffer("x_std_F", torch.ones(len(inputs.x)))
        self.register_buffer("context_mean_C", torch.zeros(len(inputs.context)))
        self.register_buffer("context_std_C", torch.ones(len(inputs.context)))
        # One table for all codes: a single gather instead of one per field.
        rows = [size for _, size in inputs.codes]
        first = np.cumsum([0, *rows[:-1]]) if rows else np.zeros(0)
        self.register_buffer("first_row_K", torch.tensor(first, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(max(sum(rows), 1), embedding)
        with torch.no_grad():
            nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
            # Code 0 is "missing". Where training never saw it missing, it shall add nothing.
            self.table.weight[self.first_row_K] = 0.0

    def build_head(self) -> nn.Sequential:
        """Reads what the trunk, the last event and the context come to; a subclass makes it last, as `head`."""
        return nn.Sequential(
            nn.Linear(self.width + self.event_width + len(self.inputs.context), self.width),
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

    def forward(self, x_BLF: Tensor, codes_BLK: Tensor, mask_BL: Tensor, context_BC: Tensor) -> Tensor:
        """logit_B, float32: higher is likelier fraud. Inputs as in `Encoded`; L may be below `inputs.length`."""
        event_BLD = self.embed_events(x_BLF, codes_BLK)
        # A masked event's numbers are cleared, so that not even NaN there could reach a state.
        state_BLH = self.states(event_BLD.masked_fill(~mask_BL.unsqueeze(2), 0.0), mask_BL)
        seen = torch.cat([state_BLH[:, -1], event_BLD[:, -1], self.scale_context(context_BC)], dim=1)
        return cast(Tensor, self.head(seen).squeeze(1))

    def states(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """state_BLH after each event; of masked positions, whose event is 0, it is anything finite."""
        raise NotImplementedError

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Copies of all weights and the scaler, by the names of `models.weights`."""
        return {name: tensor.numpy(force=True).copy() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def fit_scaler(self, encoded: Encoded) -> None:
        """Set mean and standard deviation of every numeric input from these windows; padding is ignored.

        Raises ValueError for no windows, and for a value that is not finite.
        """
        if len(encoded) == 0:
            raise ValueError("fit_scaler: 0 windows: expected at least one")
        _set(self.x_mean_F, self.x_std_F, encoded.x_BLF[encoded.mask_BL], self.inputs.x)
        _set(self.context_mean_C, self.context_std_C, encoded.context_BC, self.inputs.context)

    def embed_events(self, x_BLF: Tensor, codes_BLK: Tensor) -> Tensor:
        """event_BLD: scaled numbers beside embedded codes, of every position."""
        scaled_BLF = ((x_BLF - self.x_mean_F) / self.x_std_F).clamp(-SCALED_LIMIT, SCALED_LIMIT)
        embedded_BLKE = self.table(codes_BLK.long() + self.first_row_K)
        return torch.cat([scaled_BLF, embedded_BLKE.flatten(2)], dim=2)

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
