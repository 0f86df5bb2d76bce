"""The training side's own branches of the error family (roots in `models/errors.py`)."""

from __future__ import annotations

from models.errors import LeptonError

__all__ = ["CheckpointError", "HistoryError", "PretrainedError", "TrainingError"]


class HistoryError(LeptonError):
    """The history on disk, or the topic or file it is made from, cannot be used."""


class TrainingError(LeptonError):
    """There is not enough, or not the right, data to train or evaluate on."""


class CheckpointError(LeptonError):
    """A training cannot go on from a checkpoint; `reason` is a stable code (`recipe`, `data`, `digest`, …)."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")


class PretrainedError(LeptonError):
    """A pre-trained trunk is refused; `reason` is a stable code (`checksum`, `digest`, `weights`, …)."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail
        super().__init__(f"{reason}: {detail}")
