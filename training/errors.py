"""The training side's own branches of the error family (roots in `models/errors.py`)."""

from __future__ import annotations

from models.errors import LeptonError

__all__ = ["HistoryError", "TrainingError"]


class HistoryError(LeptonError):
    """The history on disk, or the topic or file it is made from, cannot be used."""


class TrainingError(LeptonError):
    """There is not enough, or not the right, data to train or evaluate on."""
