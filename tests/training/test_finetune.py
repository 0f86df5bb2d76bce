"""From simulated payments to a promoted bundle, through the functions and commands a user runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
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
from tests.training.parts import part
from training.archive import Archive
from training.cli import app
from training.dataset import build_dataset, plan_split, sampled
from training.errors import TrainingError
from training.evaluate import Scored, offline_scores
from training.finetune import Start, finetune, finetune_history, split_history
from training.fit import Recipe
from training.history import import_file
from training.labels_curve import label_sample
from training.replay import History, load_history
from training.stored import open_history
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


def test_a_history_in_memory_gives_the_same_weights(history: History, bundle_folder: Path, tmp_path: Path) -> None:
    """What is read from disk day by day is what there is: split, sample, windows and verdicts."""
    split = split_history(history, end_ms=None, days=None, **PARTS)
    finetune_history(history, split, tmp_path / "again", recipe=RECIPE)
    first, again = (f / "weights.safetensors" for f in (bundle_folder, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_warm_up_stands_for_the_past(history_root: Path, history: History, tmp_path: Path) -> None:
    """A long one gives the same bundle, a short one the same events with other windows."""
    pipeline, recipe = load_pipeline("payments"), replace(RECIPE, epochs=1, max_legit=1000)
    first = int(history.event_time_M.min())
    split = plan_split(first + 40 * DAY_MS, first, 7 * DAY_MS, train_ms=10 * DAY_MS, gap_ms=DAY_MS,
                       validation_ms=4 * DAY_MS, holdout_ms=4 * DAY_MS)  # fmt: skip
    parts = {days: build_dataset(open_history(Archive(history_root, pipeline)), split, max_legit=2000, seed=1,
                                 warm_up_ms=None if days is None else days * DAY_MS).train
             for days in (None, 40, 0)}  # fmt: skip
    whole, long, short = (parts[days] for days in (None, 40, 0))
    assert whole.time_N.tolist() == long.time_N.tolist() == short.time_N.tolist()
    assert whole.fraud_N.tolist() == long.fraud_N.tolist() == short.fraud_N.tolist()
    np.testing.assert_array_equal(whole.encoded.x_BLF, long.encoded.x_BLF)
    assert long.encoded.mask_BL.sum() > short.encoded.mask_BL.sum()
    bundle = finetune(pipeline, history_root, tmp_path / "b", recipe=recipe, days=15, warm_up_ms=5 * DAY_MS, **PARTS)
    assert bundle.info.training["warm_up_days"] == 5


def test_training_can_start_from_another_bundle(history_root: Path, bundle_folder: Path, tmp_path: Path) -> None:
    """It keeps the parent's scaling, moves its weights and names it."""
    pipeline = load_pipeline("payments")
    recipe = Recipe(epochs=1, batch=256, max_legit=1000, threads=1, learning_rate=1e-3)
    parent, start = load_bundle(bundle_folder, pipeline), Start(bundle=bundle_folder)
    child = finetune(pipeline, history_root, tmp_path / "child", recipe=recipe, start=start, **PARTS)
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
    for number, found in enumerate((dataset.train, dataset.validation, dataset.holdout)):
        assert int(found.fraud_N.sum()) == len(known & set(ids[part_M == number]))
        assert (split.part_of(found.time_N) == number).all()
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


def test_a_refit_adds_the_days_between_training_and_holdout(
    history_root: Path, history: History, tmp_path: Path
) -> None:
    """Its events are those of the gap and of validation, all frauds and the same share of the rest; weights differ."""
    first = int(history.event_time_M.min())
    split = plan_split(first + 40 * DAY_MS, first, 7 * DAY_MS, train_ms=None, gap_ms=DAY_MS,
                       validation_ms=4 * DAY_MS, holdout_ms=4 * DAY_MS)  # fmt: skip
    dataset = build_dataset(history, split, max_legit=2000, seed=1, newest=True)
    newest = dataset.newest
    assert newest is not None
    assert newest.time_N.min() >= split.train_end_ms
    assert newest.time_N.max() < split.holdout_start_ms
    assert newest.legit_share == dataset.train.legit_share < 1
    later = newest.time_N >= split.validation_start_ms
    assert int(newest.fraud_N[later].sum()) == int(dataset.validation.fraud_N.sum())
    legit = int((~newest.fraud_N[later]).sum())
    assert legit == pytest.approx(newest.legit_share * int((~dataset.validation.fraud_N).sum()), rel=0.3)

    recipe = replace(RECIPE, epochs=1, max_legit=1000)
    plain = finetune(load_pipeline("payments"), history_root, tmp_path / "plain", recipe=recipe, **PARTS)
    again = finetune(load_pipeline("payments"), history_root, tmp_path / "again", recipe=recipe, refit=True, **PARTS)
    assert again.info.training["refit_events"] > again.info.training["events"] == plain.info.training["events"]
    assert plain.info.training["refit_events"] is None
    assert not np.array_equal(again.weights["table.weight"], plain.weights["table.weight"])


def test_a_stopped_finetune_goes_on_and_leaves_no_checkpoint(
    history_root: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """Interrupted after the first epoch and called again with its folder: the weights of an uninterrupted run."""

    def stop(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    arguments: dict[str, Any] = {"recipe": RECIPE, "checkpoint": tmp_path / "checkpoint", **PARTS}
    pipeline = load_pipeline("payments")
    with pytest.raises(KeyboardInterrupt):
        finetune(pipeline, history_root, tmp_path / "bundle", report=stop, **arguments)
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["fit.safetensors"]
    epochs: list[int] = []

    def note_down(stage: str, done: int, total: int, note: str) -> None:
        if stage == "train":
            epochs.append(done)

    finetune(pipeline, history_root, tmp_path / "bundle", report=note_down, **arguments)
    assert epochs == [2, 3]
    first, again = (f / "weights.safetensors" for f in (bundle_folder, tmp_path / "bundle"))
    assert first.read_bytes() == again.read_bytes()
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_commands_from_events_alone_to_a_curve(run: Run, history_root: Path, tmp_path: Path) -> None:
    """pretrain, finetune --pretrained, labels-curve: the bundle names what it began with, the curve has both starts."""
    parts = ("--history", history_root, "--gap", "2d", "--validation", "6d", "--holdout", "6d", "--threads", "1",
             "--max-legit", "1000", "--epochs", "1")  # fmt: skip
    made = run(
        "pretrain", "--history", history_root, "--out", tmp_path / "first", "--epochs", "1", "--max-windows", "1000",
        "--threads", "1", "--end", "2026-02-01",
    )  # fmt: skip
    run("finetune", *parts, "--out", tmp_path / "bundle", "--pretrained", tmp_path / "first", "--trunk-rate", "0.3")
    bundle = load_bundle(tmp_path / "bundle", load_pipeline("payments"))
    assert bundle.info.training["pretrained"] == made["version"]
    assert bundle.info.training["trunk_rate"] == 0.3
    found = run(
        "labels-curve", *parts, "--out", tmp_path / "curve", "--pretrained", tmp_path / "first", "--shares", "0.2,1",
        "--min-steps", "20",
    )  # fmt: skip
    few, every = found["curve"]
    assert few["labels"] == pytest.approx(0.2 * every["labels"], rel=0.3)
    assert few["frauds"] < every["frauds"]
    assert few["gain"] == pytest.approx(few["pretrained"] - few["scratch"])
    written = json.loads((tmp_path / "curve" / "labels-curve.json").read_text())
    assert written["curve"] == found["curve"]
    with pytest.raises(TrainingError, match="has learnt from events up to 2026-02-01"):
        run(
            "labels-curve",
            *parts,
            "--out",
            tmp_path / "late",
            "--pretrained",
            tmp_path / "first",
            "--end",
            "2026-02-10",
        )


def test_a_larger_sample_of_labels_holds_the_smaller(history: History) -> None:
    """One seed, two shares; both kinds are drawn alike, so the prior stays."""
    events = part(4000, seed=2)
    small, large = (label_sample(events, share, seed=3) for share in (0.1, 0.5))
    assert set(small.entity) < set(large.entity) < set(events.entity)
    assert large.prior == pytest.approx(events.prior, rel=0.2)
    assert label_sample(events, 1.0, seed=3) is events


def test_one_start_at_most(tmp_path: Path) -> None:
    """A bundle and a pre-trained detector together are a contradiction."""
    with pytest.raises(TrainingError, match="not both"):
        Start(bundle=tmp_path, pretrained=tmp_path)


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
        event_time=to_iso(int(scored.time_N[i])), score=value,
        probability=float(scored.probability_N[i]), alert=False, model=model,
    ))  # fmt: skip
