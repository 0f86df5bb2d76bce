"""What `diff` tells of two bundles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import Bundle
from models.bundle_diff import diff
from models.bundle_write import write_bundle
from models.calibration import Calibration


@pytest.fixture
def two(tmp_path: Path, pipeline, detector, make_windows) -> tuple[Bundle, Bundle]:
    """The same model with another threshold, metric and seed, and one weight tensor changed by hand."""
    bundles = []
    for name, threshold, facts in (("a", 0.5, {"seed": 1, "days": 3}), ("b", 0.25, {"seed": 2, "days": 3})):
        bundles.append(
            write_bundle(
                tmp_path / name,
                pipeline,
                detector,
                calibration=Calibration.identity(),
                threshold=threshold,
                metrics={"average_precision": 1 - threshold},
                training=facts,
                golden=make_windows(4, seed=3),
            )  # fmt: skip
        )
        with torch.no_grad():
            tensor = next(p for p in detector.parameters() if p.ndim == 2)
            tensor[0, 0] += 0.5
    return bundles[0], bundles[1]


def test_facts_that_differ_are_told_by_dotted_name_and_others_are_not(two):
    """A reader sees threshold, metric and seed of both sides, and nothing that is the same."""
    facts = diff(two[0].folder, two[1].folder)["facts"]
    assert facts["threshold"] == [0.5, 0.25]
    assert facts["metrics.average_precision"] == [0.5, 0.75]
    assert facts["training.seed"] == [1, 2]
    assert "training.days" not in facts
    assert "architecture" not in facts


def test_a_weight_that_moved_is_told_by_how_far(two):
    """One element by a half: largest 0.5, mean a half over the elements, the cosine of numpy; the others have not."""
    moved = diff(two[0].folder, two[1].folder)["weights"]
    changed = {name: row for name, row in moved.items() if row["largest"] > 0}
    ((name, row),) = changed.items()
    before, after = (bundle.weights[name].astype(np.float64).ravel() for bundle in two)
    assert row["largest"] == pytest.approx(0.5)
    assert row["mean"] == pytest.approx(0.5 / before.size)
    assert row["cosine"] == pytest.approx(before @ after / np.linalg.norm(before) / np.linalg.norm(after))
    assert all(row["cosine"] == pytest.approx(1) for other, row in moved.items() if other != name)


def test_a_tensor_of_another_shape_has_no_distance(two):
    """And one that went from nothing to something points nowhere."""
    from models.bundle_diff import _moved

    assert _moved(np.zeros((2, 3)), np.zeros((3, 2))) is None
    assert _moved(None, np.zeros(3)) is None
    assert _moved(np.zeros(3), np.ones(3)) == {"largest": 1.0, "mean": 1.0, "cosine": 0.0}
    assert _moved(np.zeros(3), np.zeros(3))["cosine"] == 1.0
