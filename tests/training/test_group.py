"""Training in two processes: the steps of one with the same batches, one that writes, and none that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.bundle import load_bundle
from models.errors import SettingsError
from models.pipeline.load import load_pipeline
from models.samples import write_file
from models.simulate import simulate
from tests.training.parts import new_detector, part
from training.errors import CheckpointError, TrainingError
from training.fit import Recipe, fit
from training.group import Group, open_group
from training.history import import_file
from training.settings import Launch, load_launch
from training.tables import Mapped, read_file

ROOT = Path(__file__).resolve().parent.parent.parent
# 999 and 256: the last batch is of 231, an odd number
TRAIN, VALIDATION = part(999), part(400, seed=1)
RECIPE = Recipe(epochs=3, batch=256, threads=1, learning_rate=1e-2)
NOISE = 1e-5

# one process of two: fits, and the first writes what came of it
FIT = f"""
import json, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import replace
from tests.training.parts import new_detector
from tests.training.test_group import RECIPE, TRAIN, VALIDATION
from training.fit import fit
from training.group import open_group
from training.settings import load_launch
from training.together import shared

folder, architecture, changes, stop = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])

def report(epoch, _):
    if epoch == stop:
        raise SystemExit(3)

with open_group(load_launch()) as group:
    train = shared(group, TRAIN if group.first else None)
    detector = new_detector(TRAIN, architecture=architecture, seed=group.rank)
    group.align(detector)
    checkpoint = folder / "checkpoint" if stop >= 0 else None
    fitted = fit(detector, train, VALIDATION if group.first else None, replace(RECIPE, **changes), report,
                 checkpoint=checkpoint, group=group)
    rows = [str(type(train.encoded.x_BLF).__name__), len(train.entity), group.tell("said" if group.first else None)]
    weights = {{name: tensor.tolist() for name, tensor in detector.state_dict().items()}}
    found = {{"loss": fitted.loss, "ap": fitted.validation_ap, "best": fitted.best_epoch}}
    found |= {{"rows": rows, "weights": weights}}
    (folder / f"{{group.rank}}.json").write_text(json.dumps(found))
"""


def torchrun(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Two processes of one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=240, check=False, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode == 0) == (code == 0), done.stderr[-3000:]
    return done


def in_two(folder: Path, architecture: str, changes: dict[str, Any], stop: int = -1) -> dict[str, Any]:
    (folder / "one.py").write_text(FIT)
    torchrun(folder / "one.py", folder, architecture, json.dumps(changes), str(stop), code=int(stop > 0))
    return json.loads((folder / "0.json").read_text()) if stop <= 0 else {}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [("gru", {}), ("transformer", {"batch": 333}), ("cnn", {"augment": True}), ("gru", {"batch": 499, "epochs": 2})],
)
def test_two_processes_make_the_steps_of_one(tmp_path: Path, architecture: str, changes: dict[str, Any]) -> None:
    """Loss and precision of every epoch and the weights in the end are those of one process, dropout included; also
    when a batch (the last of 499 is of one event) has nothing for the second."""
    recipe = replace(RECIPE, **changes)
    detector = new_detector(TRAIN, architecture=architecture)
    expected = fit(detector, TRAIN, VALIDATION, recipe)
    found = in_two(tmp_path, architecture, changes)
    np.testing.assert_allclose(found["loss"], expected.loss, rtol=NOISE)
    np.testing.assert_allclose(found["ap"], expected.validation_ap, atol=1e-3)
    assert found["best"] == expected.best_epoch
    for name, tensor in detector.state_dict().items():
        np.testing.assert_allclose(found["weights"][name], tensor.numpy(), atol=1e-3, err_msg=name)
    other = json.loads((tmp_path / "1.json").read_text())
    assert (other["loss"], other["ap"], other["best"]) == (found["loss"], found["ap"], found["best"])
    assert found["rows"] == ["ndarray", len(TRAIN), "said"]
    assert other["rows"] == ["memmap", 0, "said"]


def test_a_killed_training_goes_on_in_both(tmp_path: Path) -> None:
    """The first dies after an epoch, which ends the second; called again they end with the weights of an unbroken run,
    and one process does not take their checkpoint for its own."""
    (tmp_path / "whole").mkdir()
    expected = in_two(tmp_path / "whole", "gru", {})
    in_two(tmp_path, "gru", {}, stop=1)
    assert (tmp_path / "checkpoint").exists()
    with pytest.raises(CheckpointError, match=r"processes: .*with another processes"):
        fit(new_detector(TRAIN), TRAIN, VALIDATION, RECIPE, checkpoint=tmp_path / "checkpoint")
    assert in_two(tmp_path, "gru", {}, stop=0)["weights"] == expected["weights"]


def test_finetune_under_torchrun(tmp_path: Path) -> None:
    """The command in two processes: one result, one bundle, its curve that of one process; a full folder ends both."""
    write_file(simulate(seed=3, customers=150, merchants=40, days=40, fraud_share=0.03), tmp_path / "payments.parquet")
    pipeline = load_pipeline("payments")
    mapped = Mapped(read_file(tmp_path / "payments.parquet"), pipeline, labels="is_fraud", label_time="label_time")
    import_file(pipeline, tmp_path / "history", mapped)
    arguments = [
        "-m", "training", "finetune", "--history", tmp_path / "history", "--epochs", "2", "--batch", "256",
        "--max-legit", "3000", "--threads", "1", "--gap", "2d", "--validation", "6d", "--holdout", "6d", "--refit",
        "--json",
    ]  # fmt: skip
    alone = subprocess.run(
        [sys.executable, *map(str, arguments), "--out", str(tmp_path / "one")], capture_output=True, text=True,
        timeout=240, check=True, cwd=ROOT,
    )  # fmt: skip
    together = torchrun(*arguments, "--out", tmp_path / "two")
    assert len(together.stdout.splitlines()) == len(alone.stdout.splitlines()) == 1
    one, two = (load_bundle(tmp_path / name, pipeline).info for name in ("one", "two"))
    assert (one.training["processes"], two.training["processes"]) == (1, 2)
    np.testing.assert_allclose(two.training["loss"], one.training["loss"], rtol=NOISE)
    assert two.training["refit_events"] == one.training["refit_events"] > 0
    assert two.metrics["average_precision"] == pytest.approx(one.metrics["average_precision"], abs=1e-3)
    refused = torchrun(*arguments, "--out", tmp_path / "two", code=1)
    assert "two is not empty: expected a new or empty folder" in refused.stderr
    assert list(Path(os.environ.get("TMPDIR", "/tmp")).glob("lepton-windows-*")) == []


def test_dropout_stays_as_it_was() -> None:
    """After a batch modules have their own rate again, and a group of one is not touched."""
    model = nn.Sequential(nn.Dropout(0.5))
    for group in (Group(), Group(1, 2)):
        torch.manual_seed(0)
        with group.dropout_of(model, 6):
            found = model(torch.ones(6, 4)[group.share(6)])
        torch.manual_seed(0)
        assert torch.equal(found, nn.functional.dropout(torch.ones(6, 4), 0.5)[group.share(6)])
        assert model[0].p == 0.5
        assert torch.equal(model.eval()(torch.ones(2, 3)), torch.ones(2, 3))
        model.train()


def test_what_torchrun_says_is_read_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchrun there is one process; several machines, and a variable that is missing, are refused by name."""
    for name in ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a job scheduler
    assert load_launch() == Launch()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(SettingsError, match=r"RANK = .*expected a number"):
        load_launch()
    for name, value in (("RANK", 3), ("LOCAL_RANK", 1), ("LOCAL_WORLD_SIZE", 2)):
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SettingsError, match=r"WORLD_SIZE = 8, LOCAL_WORLD_SIZE = 2: expected all processes on one"):
        load_launch()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert load_launch() == Launch(3, 8, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_gpu_that_is_not_there_is_refused_when_it_is_asked_for() -> None:
    """`auto` trains on the processor instead."""
    with open_group(Launch(), "auto") as group:
        assert (group.device.type, group.first, group.size) == ("cpu", True, 1)
    with pytest.raises(TrainingError, match="--device cuda: torch sees 0 GPUs"), open_group(Launch(), "cuda"):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_the_same() -> None:
    """The curve of the processor within what other kernels round."""
    expected = fit(new_detector(TRAIN), TRAIN, VALIDATION, RECIPE)
    with open_group(Launch(), "cuda") as group:
        found = fit(new_detector(TRAIN), TRAIN, VALIDATION, RECIPE, group=group)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=0.05)
