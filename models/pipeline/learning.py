"""`[learning]` of a pipeline file: what a new model is trained on, and what it must show to be let in."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from models.clock import duration_ms
from models.pipeline.parts import Duration, Part

__all__ = ["Gate", "LabelSource", "Learning"]

Share = Annotated[float, Meta(ge=0, le=1)]


class LabelSource(Part, frozen=True):
    """`[learning.sources.<name>]`: how far verdicts of one source are believed."""

    weight: Annotated[float, Meta(gt=0, le=1)] = 1.0  # the heavier of two that differ counts; also in training
    # At most this share of the frauds and of the legitimate verdicts learnt from may come from this source alone; what
    # is above it, the newest first, is left out: a source that is wrong, or bought, moves a model only so far.
    cap: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Gate(Part, frozen=True):
    """`[learning.gate]`: what a challenger must show against the champion on the same newest matured labels."""

    confidence: Annotated[float, Meta(ge=0.5, lt=1)] = 0.9  # that its average precision is the higher one
    loss: Share = 0.05  # recall or precision at the budget that may be lost
    segment_loss: Share = 0.10  # average precision that may be lost within a segment
    calibration: Annotated[float, Meta(ge=0, le=1)] = 0.005  # expected calibration error that may be gained
    alert_rate: Annotated[float, Meta(ge=1)] = 2.0  # alerts may be so many times the budget, or one so many-th
    latency: Annotated[float, Meta(ge=1)] = 2.0  # scoring may take so many times as long
    leak: Share = 0.9  # average precision of one input alone from which on it tells the label
    frauds: Annotated[int, Meta(ge=2)] = 30  # fewer frauds to compare by decide nothing


class Learning(Part, frozen=True):
    """`[learning]`: a turn of the learning loop."""

    window: Duration = "28d"  # what is learnt from in full: so long before the newest matured label
    older: Share = 0.1  # of what is older this share is replayed, so that old patterns are not forgotten
    # So long before the window is read, so that states are what they were; of a history of many years less than all.
    # What decays slowly is then a little less than the worker has it.
    warm_up: Duration = "520w"
    holdout: Duration = "7d"  # the newest matured days, of which
    holdout_share: Annotated[float, Meta(gt=0, lt=1)] = 0.5  # so many entities are held back, to decide by
    epochs: Annotated[int, Meta(ge=1, le=100)] = 3
    learning_rate: Annotated[float, Meta(gt=0, le=1)] = 4e-3
    events: Annotated[int, Meta(ge=1000)] = 150_000  # legitimate events learnt from, about
    sources: dict[str, LabelSource] = msgspec.field(default_factory=dict)
    gate: Gate = msgspec.field(default_factory=Gate)

    @property
    def window_ms(self) -> int:
        return duration_ms(self.window)

    @property
    def warm_up_ms(self) -> int:
        return duration_ms(self.warm_up)

    @property
    def holdout_ms(self) -> int:
        return duration_ms(self.holdout)
