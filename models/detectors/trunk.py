"""What reads a sequence: the interface of an architecture. A detector has one for its events and one for the verdicts
of each shared profile that keeps them, all of the same architecture.

Dimension letters: B windows, L places in a sequence, D numbers of a place, H the trunk's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar

from torch import Tensor, nn

__all__ = ["ARCHITECTURES", "DROPOUT", "Trunk", "register"]

DROPOUT = 0.1

ARCHITECTURES: dict[str, type[Trunk]] = {}

AnyTrunk = TypeVar("AnyTrunk", bound="type[Trunk]")


def register(name: str) -> Callable[[AnyTrunk], AnyTrunk]:
    """Class decorator: makes an architecture known to `build_detector` under this name."""

    def add(kind: AnyTrunk) -> AnyTrunk:
        kind.architecture = name
        ARCHITECTURES[name] = kind
        return kind

    return add


class Trunk(nn.Module):
    """Turns a sequence into states. A subclass implements `states`, and promises:

    - the state after a place depends on that place and those before it, and can depend on each of them;
    - nothing depends on how many masked places there are before the first that is not;
    - one sequence's states do not depend on the other sequences of the batch (up to float rounding;
      `models.engines.blocks` removes even that, as long as `width` comes from `models.weights.layer_width`);
    - in eval mode the same input gives the same output, bit for bit.
    """

    architecture: ClassVar[str]

    def __init__(self, inputs_width: int, width: int, length: int) -> None:  # noqa: ARG002, for those it concerns
        """inputs_width: D. width: H. length: of the longest sequence."""
        super().__init__()
        self.width = width

    def states(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """state_BLH after each place; of masked places, whose numbers are 0, it is anything finite."""
        raise NotImplementedError

    def last_state(self, event_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """state_BH after the last place: that of `states` up to float rounding, with no work for what it does not
        depend on where an architecture can tell."""
        return self.states(event_BLD, mask_BL)[:, -1]
