"""From simulated payments to a promoted bundle, through the functions and commands a user runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import load_bundle
from models.clock import DAY_MS, to_iso
from models.errors import BundleError
from models.messages import Score, encode
from models.pipeline.load import load_pipeline
from models.samples import write_file
from models.scorer import load_scorer
from models.simulate import simulate
from training.archive import Archive
from training.cli import app
from training.dataset import build_dataset, plan_split, sampled
from training.errors import TrainingError
from training.evaluate import Scored, offline_scores
from training.finetune import finetune
from training.fit import Recipe, fit_calibration
from training.history import import_file
from training.replay import History, load_history
from training.tables import Mapped, read_file

Run = Callable[..., dict[str, Any]]

PARTS = {"gap_ms": 2 * DAY_MS, "validation_ms": 6 * DAY_MS, "holdout_ms": 6 * DAY_MS}
RECIPE = Recipe(epochs=3, batch=256, max_legit=4000, threads=1)


@pytest.fixture(scope="session")
def history_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The history of a small simulated world, imported from the file the simulator writes."""
    folder = tmp_path_factory.mktemp("world")
    write_file(simulate(seed=3, customers=200, merchants=60, days=50, fraud_share=0.02), folder / "payments.parquet")
    pipeline = load_pipeline("payments")
    frame = read_file(folder / "payments.parquet")
    import_file(pipeline, folder / "history", Mapped(frame, pipeline, labels="is_fraud", label_time="label_time"))
    return folder / "history"


@pytest.fixture(scope="session")
def history(history_root: Path) -> History:
    return load_history(Archive(history_root, load_pipeline("payments")))


@pytest.fixture(scope="session")
def bundle_folder(history_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "first"
    finetune(load_pipeline("payments"), history_root, folder, recipe=RECIPE, **PARTS)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command of `python -m training` in this process, and its JSON; `code` is the exit code it must have."""

    def command(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        ended = 0
        try:
            app([*map(str, arguments), "--json"], result_action="return_value")
        except SystemExit as stop:
            ended = int(stop.code or 0)
        assert ended == code
        return dict(json.loads(capsys.readouterr().out))

    return command


def test_a_bundle_tells_frauds_it_has_not_seen(bundle_folder: Path) -> None:
    """On held-out days the trained detector ranks far above chance, and the card of the bundle says on what."""
    info = load_bundle(bundle_folder, load_pipeline("payments")).info
    chance = info.metrics["frauds"] / info.metrics["events"]
    assert info.metrics["average_precision"] > 5 * chance
    assert info.metrics["roc_auc"] > 0.75
    assert info.metrics["alerts_per_day"] <= 100
    assert info.training["train_end"] < info.training["validation_start"] < info.training["holdout_start"]
    assert info.training["seed"] == 0


def test_the_same_seed_gives_the_same_weights(history_root: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """Training is repeatable, so a difference between two bundles is a difference in what they were given."""
    finetune(load_pipeline("payments"), history_root, tmp_path / "again", recipe=RECIPE, **PARTS)
    first, again = (f / "weights.safetensors" for f in (bundle_folder, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_training_can_start_from_another_bundle(history_root: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """It keeps the parent's scaling, moves its weights and names it."""
    pipeline = load_pipeline("payments")
    recipe = Recipe(epochs=1, batch=256, max_legit=1000, threads=1, learning_rate=1e-3)
    parent = load_bundle(bundle_folder, pipeline)
    child = finetune(pipeline, history_root, tmp_path / "child", recipe=recipe, start_from=bundle_folder, **PARTS)
    assert child.info.training["started_from"] == parent.version
    np.testing.assert_array_equal(child.weights["context_mean_C"], parent.weights["context_mean_C"])
    assert not np.array_equal(child.weights["table.weight"], parent.weights["table.weight"])


def test_a_full_folder_is_refused_before_the_work(history_root: Path, bundle_folder: Path) -> None:
    """Minutes of training do not end in an error that was there from the start."""
    with pytest.raises(BundleError, match="not empty"):
        finetune(load_pipeline("payments"), history_root, bundle_folder, recipe=RECIPE, **PARTS)


def test_a_history_too_short_is_refused_with_its_dates(history: History) -> None:
    """The message says where each part would have begun."""
    first = int(history.event_time_M.min())
    with pytest.raises(TrainingError, match=r"history begins 2026-01-01T.*training ends 2025-12-31T"):
        plan_split(first + 20 * DAY_MS, first, 7 * DAY_MS, train_ms=None, gap_ms=7 * DAY_MS,
                   validation_ms=3 * DAY_MS, holdout_ms=4 * DAY_MS)  # fmt: skip


def test_training_keeps_every_fraud_and_knows_no_label_that_came_later(history: History) -> None:
    """Parts lie in their borders; the frauds are those with a label by the end, all of them; the rest is a share."""
    first = int(history.event_time_M.min())
    end_ms = first + 40 * DAY_MS
    split = plan_split(end_ms, first, 7 * DAY_MS, train_ms=None, gap_ms=DAY_MS,
                       validation_ms=4 * DAY_MS, holdout_ms=4 * DAY_MS)  # fmt: skip
    dataset = build_dataset(history, split, max_legit=2000, seed=1)
    known = history.known_by(end_ms).frauds()
    assert known < history.frauds()
    part_M = split.part_of(history.event_time_M)
    ids = np.array(history.events["transaction_id"].to_pylist(), dtype=object)
    for number, part in enumerate((dataset.train, dataset.validation, dataset.holdout)):
        assert int(part.fraud_N.sum()) == len(known & set(ids[part_M == number]))
        assert (split.part_of(part.time_N) == number).all()
    assert len(dataset.holdout) == int((part_M == 2).sum())
    legit = int((~dataset.train.fraud_N).sum())
    assert 1700 < legit < 2300
    assert dataset.train.time_N.max() + DAY_MS <= dataset.validation.time_N.min()


def test_a_sample_depends_on_id_and_seed_alone() -> None:
    """The same events are kept whatever else there is; the share is met; another seed keeps others."""
    ids = np.random.default_rng(0).integers(1, 2**63, size=20_000).astype(np.uint64)
    kept = sampled(ids, 0.25, seed=4)
    np.testing.assert_array_equal(sampled(ids[::-1][:500], 0.25, seed=4), kept[::-1][:500])
    assert 0.23 < kept.mean() < 0.27
    assert 0.05 < (kept & sampled(ids, 0.25, seed=5)).mean() < 0.075


def test_calibration_follows_the_frequencies_and_is_never_certain() -> None:
    """Scores with one fraud in four get about a quarter; the highest score does not get probability one."""
    score = np.repeat(np.array([0.1, 0.5, 0.9], dtype=np.float32), 400)
    fraud = np.concatenate([np.zeros(400), np.tile([1, 0, 0, 0], 100), np.ones(400)]).astype(bool)
    probability = fit_calibration(score, fraud).apply(np.array([0.1, 0.5, 0.9], dtype=np.float32))
    assert probability[:2].tolist() == pytest.approx([0.0, 0.25], abs=1e-6)
    assert 0.99 < probability[2] < 1.0


def test_commands_from_file_to_champion(run: Run, history_root: Path, tmp_path: Path) -> None:
    """finetune, publish, promote and evaluate as the documentation has them; the champion is found by itself."""
    registry = tmp_path / "registry"
    trained = run(
        "finetune", "--history", history_root, "--out", tmp_path / "bundle", "--epochs", "1", "--max-legit", "1000",
        "--gap", "2d", "--validation", "6d", "--holdout", "6d", "--threads", "1",
    )  # fmt: skip
    assert run("publish", tmp_path / "bundle", "--registry", registry) == {"version": trained["version"]}
    told = run("promote", str(trained["version"]), "--registry", registry, "--no-notify")
    assert told["pipeline"] == "payments"
    days = ("--start", "2026-02-10", "--end", "2026-02-19")
    found = run("evaluate", "--history", history_root, "--registry", registry, *days)
    assert found["version"] == trained["version"]


def test_an_error_is_one_line_and_exit_code_one() -> None:
    """A user sees what was wrong with which option, not a traceback."""
    command = [sys.executable, "-m", "training", "evaluate", "--start", "x", "--end", "y"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: --start x: expected a time such as 2026-03-01 or 2026-03-01T12:00:00Z\n"


def test_evaluate_compares_published_scores_event_by_event(
    run: Run, history: History, history_root: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """Scores equal to the offline ones agree; a lost, repeated or different one does not, and is counted."""
    scorer = load_scorer(bundle_folder, history.pipeline, "native")
    start, end = "2026-02-12", "2026-02-16"
    low = int(history.event_time_M.min() // DAY_MS * DAY_MS)
    low += (42) * DAY_MS  # the world begins on 2026-01-01
    assert to_iso(low)[:10] == start
    scored = offline_scores(history, scorer, low, low + 4 * DAY_MS)

    def evaluate(messages: list[bytes], code: int) -> dict[str, Any]:
        file = tmp_path / "scores.jsonl"
        file.write_bytes(b"\n".join(messages))
        found = run("evaluate", "--history", history_root, "--bundle", bundle_folder, "--start", start, "--end", end,
                    "--scores", file, "--engine", "native", code=code)  # fmt: skip
        return found | found["agreement"]

    messages = [_message(scored, i, scorer.version) for i in range(len(scored))]
    same = evaluate(messages, code=0)
    assert same["online"] == same["offline"]
    assert same["one_score_each"] is True
    assert same["models"] == {scorer.version: len(scored)}
    wrong = evaluate([*messages[1:], messages[5], _message(scored, 7, scorer.version, 0.5)], code=2)
    assert (wrong["missing"], wrong["repeated"], wrong["conflicting"], wrong["unexpected"]) == (1, 2, 1, 0)
    assert wrong["missing_ids"] == scored.event_id[:1]


def _message(scored: Scored, i: int, model: str, score: float | None = None) -> bytes:
    value = float(scored.score_N[i]) if score is None else score
    return encode(Score(
        pipeline="payments", event_id=scored.event_id[i], entity=scored.entity[i],
        event_time=to_iso(int(scored.time_N[i])), score=value, probability=value, alert=False, model=model,
    ))  # fmt: skip
