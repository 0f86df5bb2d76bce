"""The optimisation: probabilities that mean what they say, averaged weights, and training that survives a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.detectors import Detector
from tests.support import ROOT
from tests.training.parts import new_detector, part, true_rate, windows
from training.averaging import Average
from training.errors import CheckpointError, TrainingError
from training.fit import Recipe, fit, refit, score
from training.metrics import average_precision, expected_calibration_error

RECIPE = Recipe(epochs=3, batch=64, threads=1, average=0.9)
TRAIN, VALIDATION = part(500, seed=1), part(300, seed=2)


def weights(detector: Detector) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in detector.weights().items()}


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_scores_are_probabilities_whatever_share_of_the_legitimate_was_kept(share: float) -> None:
    """With a tenth of the legitimate events frauds are ten times as frequent in training, and not in the scores."""
    train, validation = part(12_000, seed=3, share=share), part(3_000, seed=4)
    assert train.prior == pytest.approx(validation.prior, rel=0.2)
    detector = new_detector(train)
    fit(detector, train, validation, replace(RECIPE, epochs=6, average=0.98))
    encoded = windows(20_000, seed=5)
    rate_N, score_N = true_rate(encoded), score(detector, encoded)
    assert score_N.mean() == pytest.approx(rate_N.mean(), rel=0.15)
    fraud_N = np.random.default_rng(6).random(20_000) < rate_N
    assert expected_calibration_error(fraud_N, score_N) < 0.02


def test_the_average_of_the_weights_is_what_is_kept() -> None:
    """It differs from the weights of the last step, and at decay 0 it does not."""
    kept = {}
    for average in (0.9, 0.0):
        detector = new_detector(TRAIN)
        fitted = fit(detector, TRAIN, VALIDATION, replace(RECIPE, average=average))
        assert max(fitted.validation_ap) == fitted.validation_ap[fitted.best_epoch - 1]
        found = average_precision(VALIDATION.fraud_N, score(detector, VALIDATION.encoded))
        assert found == fitted.validation_ap[fitted.best_epoch - 1]
        kept[average] = weights(detector)
    assert kept[0.9] != kept[0.0]


def test_an_average_forgets_its_start() -> None:
    """Constant weights are reached although the average began elsewhere; decay 0 is there at once."""
    model = torch.nn.Linear(2, 1)
    slow, plain = Average(model, 0.99), Average(model, 0.0)
    with torch.no_grad():
        model.weight.fill_(3.0)
    for _ in range(60):
        slow.update(model)
    plain.update(model)
    assert plain.model.weight.tolist() == [[3.0, 3.0]]
    np.testing.assert_allclose(slow.model.weight.numpy(), 3.0, atol=0.05)


@pytest.mark.parametrize("augment", [False, True])
def test_a_training_that_stops_goes_on_to_the_same_weights(tmp_path: Path, augment: bool) -> None:
    """Interrupted twice and resumed by a new detector, it ends where the uninterrupted one does, to the bit."""
    recipe = replace(RECIPE, augment=augment)
    whole = new_detector(TRAIN)
    expected = fit(whole, TRAIN, VALIDATION, recipe)

    def stop(epoch: int, note: str) -> None:
        raise KeyboardInterrupt

    for _ in range(2):  # the second goes on from the first, for one more epoch
        with pytest.raises(KeyboardInterrupt):
            fit(new_detector(TRAIN), TRAIN, VALIDATION, recipe, stop, checkpoint=tmp_path / "a")
    seen: list[int] = []
    resumed = new_detector(TRAIN)
    torch.rand(17)  # the global generator is put back, too
    fitted = fit(resumed, TRAIN, VALIDATION, recipe, lambda epoch, _: seen.append(epoch), checkpoint=tmp_path / "a")
    assert seen == [3]
    assert fitted == expected
    assert weights(resumed) == weights(whole)


KILLED = """
import os, signal
from pathlib import Path
from tests.training.test_fit import RECIPE, TRAIN, VALIDATION, fit, new_detector

def kill(epoch, note):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

fit(new_detector(TRAIN), TRAIN, VALIDATION, RECIPE, kill, checkpoint=Path({path!r}))
"""


def test_a_killed_process_loses_no_more_than_its_epoch(tmp_path: Path) -> None:
    """SIGKILL after the second of three epochs: another process ends with the weights of a run without it."""
    path = tmp_path / "deep" / "fit.safetensors"
    done = subprocess.run([sys.executable, "-c", KILLED.format(path=str(path))], cwd=ROOT, timeout=200, check=False)
    assert done.returncode == -signal.SIGKILL
    whole, resumed = new_detector(TRAIN), new_detector(TRAIN)
    fit(whole, TRAIN, VALIDATION, RECIPE)
    seen: list[int] = []
    fit(resumed, TRAIN, VALIDATION, RECIPE, lambda epoch, _: seen.append(epoch), checkpoint=path)
    assert seen == [3]
    assert weights(resumed) == weights(whole)


def test_a_refit_takes_the_epochs_it_is_told_and_goes_on_too(tmp_path: Path) -> None:
    """Two epochs of a cycle of three are the first two of `fit`; interrupted after one, the result is the same."""
    once, again, plain = new_detector(TRAIN), new_detector(TRAIN), new_detector(TRAIN)
    assert len(refit(once, TRAIN, RECIPE, 2).loss) == 2

    def stop(epoch: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(new_detector(TRAIN), TRAIN, RECIPE, 2, stop, checkpoint=tmp_path / "a")
    refit(again, TRAIN, RECIPE, 2, checkpoint=tmp_path / "a")
    assert weights(once) == weights(again)
    losses = fit(plain, TRAIN, VALIDATION, RECIPE).loss
    assert refit(new_detector(TRAIN), TRAIN, RECIPE, 2).loss == losses[:2]


def test_a_foreign_checkpoint_is_refused_with_what_differs(tmp_path: Path) -> None:
    """Another recipe, other data, other weights to start from, a refit, a damaged file: each has its reason."""
    path = tmp_path / "fit.safetensors"
    fit(new_detector(TRAIN), TRAIN, VALIDATION, RECIPE, checkpoint=path)

    def reason(detector: Detector, train: object = TRAIN, recipe: Recipe = RECIPE) -> str:
        with pytest.raises(CheckpointError) as caught:
            fit(detector, train, VALIDATION, recipe, checkpoint=path)  # type: ignore[arg-type]
        return caught.value.reason

    assert reason(new_detector(TRAIN), recipe=replace(RECIPE, learning_rate=1e-3)) == "recipe"
    other = new_detector(TRAIN)
    assert reason(other, train=part(499, seed=1)) == "data"
    assert reason(new_detector(TRAIN, seed=1)) == "start"
    with pytest.raises(CheckpointError, match="kind"):
        refit(new_detector(TRAIN), TRAIN, RECIPE, 3, checkpoint=path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert reason(new_detector(TRAIN)) == "digest"
    path.write_bytes(data[:100])
    assert reason(new_detector(TRAIN)) == "format"


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"trunk_rate": 0.0}, {"average": 1.0}, {"average": -0.1}])
def test_a_recipe_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    """The message names the value."""
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        Recipe(**wrong)  # type: ignore[arg-type]


def test_a_lower_rate_keeps_the_trunk_nearer_to_its_start() -> None:
    """`trunk_rate` is the trunk's and the table's; the head moves as before."""
    moved = {}
    for rate in (1.0, 0.01):
        detector = new_detector(TRAIN)
        start = {name: array.copy() for name, array in detector.weights().items()}
        fit(detector, TRAIN, VALIDATION, replace(RECIPE, epochs=1, trunk_rate=rate))
        now = detector.weights()
        moved[rate] = [
            max(float(np.abs(now[n] - start[n]).max()) for n in now if n.startswith(p)) for p in ("trunk.", "head.")
        ]
    assert moved[0.01][0] < 0.1 * moved[1.0][0]
    assert moved[0.01][1] > 0.3 * moved[1.0][1]
