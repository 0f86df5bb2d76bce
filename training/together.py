"""The training in one or several processes, the same lines for all: fit, and then perhaps fit again on newer days too.

Only the first process of a group has replayed the history. It writes the windows to a temporary folder, which all
others map into memory and which is then removed: the pages are there once for all, and nothing is left behind.
Identifiers are not written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.detectors import SequenceDetector
from models.features.encoded import Encoded
from training.dataset import Part
from training.fit import Fitted, Recipe, fit, refit
from training.group import Group

__all__ = ["Taught", "shared", "teach"]

CHECKPOINTS = ("fit.safetensors", "refit.safetensors")
ARRAYS = ("fraud_N", "time_N", "weight_N")  # of a part, beside its windows

Origin = dict[str, str | None]
# report(stage, done, total, note)
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Taught:
    """origin: what the detector started from. fitted: of the training that was validated."""

    detector: SequenceDetector
    origin: Origin
    fitted: Fitted


def teach(
    make: Callable[[Part], tuple[SequenceDetector, Origin]],
    recipe: Recipe,
    *,
    train: Part | None,
    validation: Part | None,
    newest: Part | None,
    again: bool,
    group: Group,
    checkpoint: Path | None = None,
    report: Report | None = None,
) -> Taught:
    """Train a detector that `make` makes for its windows. All processes of a group call this with the same arguments,
    but only the first has parts and a report; what the others end with is not the best epoch's.

    again: train once more, on `train` and `newest`, for as many epochs as validation chose.
    """
    tell = report or (lambda *_: None)
    first, second = (None, None) if checkpoint is None else (checkpoint / name for name in CHECKPOINTS)
    part = shared(group, train)
    detector, origin = make(part)
    group.align(detector)
    fitted = fit(
        detector, part, validation, recipe, lambda epoch, note: tell("train", epoch, recipe.epochs, note),
        checkpoint=first, group=group,
    )  # fmt: skip
    if again:
        part = shared(group, None if train is None or newest is None else Part.concatenate([train, newest]))
        detector, origin = make(part)
        group.align(detector)
        refit(
            detector, part, recipe, fitted.best_epoch,
            lambda epoch, note: tell("refit", epoch, fitted.best_epoch, note), checkpoint=second, group=group,
        )  # fmt: skip
    return Taught(detector, origin, fitted)


def shared(group: Group, part: Part | None) -> Part:
    """The first's part in every process; the others' has no entities and no event ids."""
    if group.size == 1:
        assert part is not None
        return part
    if not group.first:
        folder, legit_share, names = group.tell()
        found = _mapped(Path(folder), legit_share, names)
        group.wait()
        return found
    assert part is not None
    with tempfile.TemporaryDirectory(prefix="lepton-windows-") as folder:
        arrays = {name: getattr(part.encoded, name) for name in Encoded.__slots__}
        arrays |= {name: getattr(part, name) for name in ARRAYS if getattr(part, name) is not None}
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array, allow_pickle=False)
        group.tell([folder, part.legit_share, list(arrays)])
        group.wait()  # what is mapped stays when its name is gone
    return part


def _mapped(folder: Path, legit_share: float, names: list[str]) -> Part:
    # "c", copy on write: nobody writes, but torch warns of arrays that could not be written to
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in names}
    encoded = Encoded(*(arrays[name] for name in Encoded.__slots__))
    return Part(encoded, arrays["fraud_N"], [], arrays["time_N"], legit_share, arrays.get("weight_N"))
