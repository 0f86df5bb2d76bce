"""Pre-training: it learns from events alone, gives a folder that is checked, and fine-tuning starts from it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.clock import DAY_MS, to_iso
from models.detectors import Detector, build_detector
from models.detectors.base import tensors
from models.features.layout import Layout
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from models.samples import write_file
from models.simulate import simulate
from tests.training.parts import INPUTS, new_detector, part, windows
from training.archive import Archive
from training.errors import PretrainedError, TrainingError
from training.history import import_file
from training.pretrain import PretrainRecipe, Tasks, pretrain, pretrain_history
from training.pretrained import is_pretrained, load_pretrained
from training.replay import load_history
from training.tables import Mapped, read_file

RECIPE = PretrainRecipe(epochs=2, batch=64, max_windows=1500, threads=1)
WEIGHTS = "weights.safetensors"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("payments")


@pytest.fixture(scope="module")
def history_root(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    write_file(simulate(seed=5, customers=60, merchants=30, days=25, fraud_share=0.02), folder / "payments.parquet")
    frame = read_file(folder / "payments.parquet")
    import_file(pipeline, folder / "history", Mapped(frame, pipeline, labels="is_fraud", label_time="label_time"))
    return folder / "history"


@pytest.fixture(scope="module")
def trunk(history_root: Path, pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretrained") / "first"
    pretrain(pipeline, history_root, out, recipe=RECIPE)
    return out


def fresh(pipeline: Pipeline, hidden: int | None = None) -> Detector:
    torch.manual_seed(1)
    spec = pipeline.detector
    return build_detector(spec.architecture, Layout(pipeline).inputs, hidden or spec.hidden, spec.embedding)


def test_it_learns_what_events_are_like(history_root: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    """The losses, on the newest windows, which are not trained on, fall from epoch to epoch; exchanged events are told
    from real ones better than by chance."""
    facts = pretrain(pipeline, history_root, tmp_path / "trunk", recipe=replace(RECIPE, epochs=3))
    for name in ("forecast_loss", "restore_loss", "exchange_loss"):
        assert facts[name][2] < facts[name][0] - 0.02
    assert facts["exchange_loss"][2] < math.log(2) - 0.1
    assert 1200 < facts["windows"] < 1700
    assert 1000 < facts["exchanged"] < 1700


def test_no_verdict_is_read(history_root: Path, trunk: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    """Without any file of labels, and with labels that lack their verdict, the same trunk comes out, to the bit."""
    bare = tmp_path / "history"
    shutil.copytree(history_root, bare)
    shutil.rmtree(bare / pipeline.name / "labels")
    pretrain(pipeline, bare, tmp_path / "bare", recipe=RECIPE)
    history = load_history(Archive(history_root, pipeline))
    assert history.labels.num_rows > 50
    blind = replace(history, labels=history.labels.drop_columns(["fraud"]))
    last = int(history.event_clock_M.max()) + 1
    pretrain_history(blind, last, tmp_path / "blind", recipe=RECIPE)
    expected = (trunk / WEIGHTS).read_bytes()
    assert (tmp_path / "bare" / WEIGHTS).read_bytes() == expected
    assert (tmp_path / "blind" / WEIGHTS).read_bytes() == expected


def test_nothing_from_the_cut_on_is_read(history_root: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    """Events that come after `end` change nothing."""
    history = load_history(Archive(history_root, pipeline))
    end_ms = int(history.event_time_M.min()) + 15 * DAY_MS
    facts = pretrain_history(history, end_ms, tmp_path / "all", recipe=RECIPE)
    assert facts["end"] == to_iso(end_ms)
    pretrain_history(history.known_by(end_ms), end_ms, tmp_path / "known", recipe=RECIPE)
    assert (tmp_path / "all" / WEIGHTS).read_bytes() == (tmp_path / "known" / WEIGHTS).read_bytes()


def test_all_but_what_reads_verdicts_is_replaced(trunk: Path, pipeline: Pipeline) -> None:
    """The prior stays as well, and the scaling of what only labels move, which nothing moved in pre-training."""
    detector = fresh(pipeline)
    for name in ("context_mean_C", "context_std_C"):
        getattr(detector, name).fill_(7.0)
    before = detector.weights()
    version = load_pretrained(trunk, pipeline, detector)
    assert len(version) == 16
    after = detector.weights()
    same = {name for name, array in after.items() if np.array_equal(array, before[name])}
    assert same == {name for name in before if not is_pretrained(name)} | {"head.5.bias"}
    kept_C = after["context_std_C"] == 7.0
    np.testing.assert_array_equal(after["context_mean_C"] == 7.0, kept_C)
    names = set(np.array(detector.inputs.context)[kept_C])
    assert {"merchant.fraud_rate.7d", "merchant.frauds.7d"} & names
    assert not {name for name in names if "amount" in name or "count" in name}


Harm = Callable[[Path], None]


def _flip(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_flip, "checksum"),
        (lambda folder: (folder / WEIGHTS).unlink(), "missing"),
        (lambda folder: (folder / "MANIFEST.json").write_text("{}"), "format"),
    ],
)
def test_a_damaged_trunk_is_refused(trunk: Path, pipeline: Pipeline, tmp_path: Path, harm: Harm, reason: str) -> None:
    """Each damage has its reason."""
    shutil.copytree(trunk, tmp_path / "trunk")
    harm(tmp_path / "trunk")
    with pytest.raises(PretrainedError) as caught:
        load_pretrained(tmp_path / "trunk", pipeline, fresh(pipeline))
    assert caught.value.reason == reason


def test_a_trunk_of_another_pipeline_or_detector_is_refused(
    trunk: Path, pipeline: Pipeline, pipeline_file: Path, history_root: Path
) -> None:
    """Other features, or layers of another size; and a full folder is refused before the work."""
    other = load_pipeline(pipeline_file)
    for wanted, detector, reason in ((other, fresh(other), "digest"), (pipeline, fresh(pipeline, 16), "weights")):
        with pytest.raises(PretrainedError) as caught:
            load_pretrained(trunk, wanted, detector)
        assert caught.value.reason == reason
    with pytest.raises(PretrainedError, match="not empty"):
        pretrain(pipeline, history_root, trunk, recipe=RECIPE)


@pytest.mark.parametrize("architecture", ["gru", "transformer", "cnn"])
def test_a_forecast_does_not_see_what_it_forecasts(architecture: str) -> None:
    """Changing the last event changes no forecast, only what it is compared with; masked places change nothing."""
    model = Tasks(new_detector(part(100), architecture=architecture)).eval()
    x, codes, mask, *rest = tensors(windows(8))
    real = torch.zeros(8)
    nothing = torch.zeros((*mask.shape, len(INPUTS.x) + len(INPUTS.codes)), dtype=torch.bool)
    seen = []
    model.forecast.register_forward_hook(lambda *facts: seen.append(facts[2]))
    with torch.no_grad():
        model((x, codes, mask, *rest), real, nothing)
        changed_x, changed_codes = x.clone(), codes.clone()
        changed_x[:, -1] += 3.0
        changed_codes[:, -1] = 1
        changed_x[~mask] = 7.0
        model((changed_x, changed_codes, mask, *rest), real, nothing)
    torch.testing.assert_close(seen[0], seen[1])


def test_hidden_fields_are_hidden() -> None:
    """With every field hidden the states know only how many events there were; the loss is of what was hidden."""
    model = Tasks(new_detector(part(100))).eval()
    x, codes, mask, *rest = tensors(windows(8))
    real = torch.zeros(8)
    every = torch.ones((*mask.shape, len(INPUTS.x) + len(INPUTS.codes)), dtype=torch.bool)
    seen = []
    model.restore.register_forward_hook(lambda *facts: seen.append(facts[2]))
    with torch.no_grad():
        model((x, codes, mask, *rest), real, every)
        model((x + 2.0, (codes + 1) % 3, mask, *rest), real, every)
    torch.testing.assert_close(seen[0], seen[1])


def test_recipes_and_histories_that_cannot_work_are_refused(
    history_root: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Values out of range, and an end before the first event."""
    with pytest.raises(TrainingError, match="hide"):
        PretrainRecipe(hide=1.0)
    with pytest.raises(TrainingError, match="0 windows"):
        pretrain(pipeline, history_root, tmp_path / "none", end_ms=DAY_MS, recipe=RECIPE)
