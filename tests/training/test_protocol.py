"""The evaluation that cannot leak: it finds planted leaks, learns no verdict early, and finds nothing in noise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from models.bundle import load_bundle
from models.clock import DAY_MS, from_iso
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.pipeline.load import load_pipeline
from models.samples import write_file
from models.simulate import simulate
from training.archive import Archive
from training.baselines import LightGBM, XGBoost
from training.cli import app
from training.errors import TrainingError
from training.fit import Recipe
from training.folds import WEEK_MS, Fold, Outcome, Plan, Verdicts, first_test_day, folds_of, keep_windows, splits_of
from training.from_table import history_of_table
from training.history import import_file
from training.leaks import check_no_leaks, sampled_history, windows_seen
from training.protocol import Neural, run_protocol
from training.protocol_run import show
from training.replay import History, Replayed, Want, load_history, replay
from training.rolling import rolling_features, rolling_names, rolling_seen
from training.tables import Mapped, read_file

PLAN = Plan(folds=2, max_legit=3000, validation_ms=5 * DAY_MS, holdout_ms=5 * DAY_MS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight weeks of simulated payments; cards copied at some merchants pay there for days. Labels come late."""
    path = tmp_path_factory.mktemp("world") / "payments.parquet"
    write_file(simulate(seed=5, customers=150, merchants=50, days=56, fraud_share=0.03), path)
    return path


@pytest.fixture(scope="module")
def history(world: Path) -> History:
    return history_of_table(_mapped(world))[0]


def _mapped(world: Path) -> Mapped:
    return Mapped(read_file(world), load_pipeline("payments"), labels="is_fraud", label_time="label_time")


@pytest.fixture(scope="module")
def folds(history: History) -> list[Fold]:
    verdicts, splits = Verdicts(history), splits_of(history, PLAN)
    return list(folds_of(history, splits, keep_windows(history, splits, verdicts, PLAN, replay), verdicts))


def test_a_table_in_memory_equals_an_imported_one(world: Path, history: History, tmp_path: Path) -> None:
    """The short way makes the history that the road of the stream makes."""
    import_file(history.pipeline, tmp_path, _mapped(world))
    imported = load_history(Archive(tmp_path, history.pipeline))
    assert history.events.equals(imported.events)
    assert history.labels.equals(imported.labels)
    np.testing.assert_array_equal(history.event_clock_M, imported.event_clock_M)
    np.testing.assert_array_equal(history.label_clock_M, imported.label_clock_M)


def test_rows_that_a_worker_refuses_are_left_out(world: Path) -> None:
    """A negative amount and a missing card are counted by their reasons, and their labels go with them."""
    frame = read_file(world)
    frame.loc[frame.index[3], "amount"] = -1.0
    frame.loc[frame.index[4], "card_id"] = None
    mapped = Mapped(frame, load_pipeline("payments"), labels="is_fraud", label_time="label_time")
    history, skipped = history_of_table(mapped)
    assert skipped == {"range": 1, "schema": 1}
    assert len(history.events) == len(frame) - 2


def test_nothing_of_what_systems_read_knows_the_future(history: History) -> None:
    """Windows and the handbook's features are the same to the bit whatever comes later."""
    check_no_leaks(history, {"windows": windows_seen(), "handbook features": rolling_seen}, seed=1)


def _leaky(column: str, shift_ms: int) -> object:
    """A replay that puts the truth of each event into a column, if it arrives within this long."""

    def make(history: History, want: Want) -> Iterator[Replayed]:
        place = Layout(history.pipeline).inputs.context.index(column)
        for part in replay(history, want):
            soon = history.known_by(int(part.batch.time_M.min()) + shift_ms).frauds()
            context_BC = part.encoded.context_BC.copy()
            context_BC[:, place] = [i in soon for i in part.batch.event_id]
            encoded = part.encoded
            leaking = Encoded(encoded.x_BLF, encoded.codes_BLK, encoded.mask_BL, context_BC, encoded.verdicts_BJSG)
            yield Replayed(leaking, part.batch)

    return make


@pytest.mark.parametrize("days", [4, 30])
def test_a_planted_leak_is_found_before_anything_is_trained(history: History, days: int) -> None:
    """A column that reads labels before they arrive ends the run, and the message names it."""
    leaky = _leaky("merchant.frauds.7d", days * DAY_MS)
    with pytest.raises(TrainingError, match=r"windows: context\.merchant\.frauds\.7d: of events before"):
        run_protocol(history, [], PLAN, make=leaky)  # type: ignore[arg-type]


def test_features_of_a_file_as_a_whole_are_found(history: History) -> None:
    """A column scaled by the file's range changes when the file ends earlier."""

    def scaled(part: History) -> object:
        seen = rolling_seen(part)
        amounts = seen.columns["amount"]
        return replace(seen, columns=seen.columns | {"amount": amounts / np.nanmax(np.abs(amounts))})

    with pytest.raises(TrainingError, match="scaled: amount"):
        check_no_leaks(history, {"scaled": scaled}, seed=2)  # type: ignore[dict-item]


def test_a_sample_of_a_history_keeps_all_of_some_keys(history: History) -> None:
    """Of a kept merchant every event is there, with its labels."""
    part = sampled_history(history, 1000, seed=0)
    key = next(profile.key for profile in history.pipeline.profiles.values() if profile.verdicts)
    kept = set(part.events[key].to_pylist())
    assert 0 < len(part.events) <= len(history.events) / 2
    assert len(part.events) == sum(value in kept for value in history.events[key].to_pylist())
    ids = set(part.events["transaction_id"].to_pylist())
    assert len(part.labels) == sum(i in ids for i in history.labels["event_id"].to_pylist())


def test_no_fold_trains_on_a_verdict_that_arrived_later(history: History, folds: list[Fold]) -> None:
    """Every fraud trained on had its label, all events had matured, and later frauds are as rare as in the sample."""
    assert [fold.end_ms - fold.start_ms for fold in folds] == [WEEK_MS, WEEK_MS]
    ids = np.array(history.events["transaction_id"].to_pylist(), dtype=object)
    maturity_ms = history.pipeline.labels.maturity_ms
    hidden = 0
    for fold in folds:
        known = history.known_by(fold.start_ms).frauds()
        later = history.frauds() - known
        for part in (fold.train, fold.validation, fold.holdout, fold.matured):
            assert set(ids[part.row_N[part.fraud_N]]) == known & set(ids[part.row_N])
            assert int(part.time_N.max()) < fold.start_ms - maturity_ms
        row_N, fraud_N = fold.every(fold.end_ms, 90)
        assert set(ids[row_N[fraud_N]]) <= known
        assert int(history.event_time_M[row_N].max()) < fold.start_ms - maturity_ms
        assert fold.train.time_N.max() < fold.validation.time_N.min()
        assert fold.validation.time_N.max() < fold.holdout.time_N.min()
        sample = fold.kept.row_N[fold.kept.sample_N]
        assert set(fold.matured.row_N) <= set(sample) | set(np.flatnonzero(fold.known_M))
        hidden += len(later & set(ids[fold.kept.row_N]) - set(ids[sample]))
        assert set(ids[fold.test.row_N[fold.test.fraud_N]]) <= history.frauds()
        inside = (history.event_time_M >= fold.start_ms) & (history.event_time_M < fold.end_ms)
        assert len(fold.test) == int(inside.sum())
    assert hidden > 0  # windows of later frauds were kept, for another fold, and not trained on in this one


def test_windows_of_all_folds_are_those_of_a_replay_of_what_was_known(history: History, folds: list[Fold]) -> None:
    """One replay serves all folds: the matured events' windows are as if nothing had come after the fold's start."""
    fold = folds[0]
    rows = set(fold.holdout.row_N.tolist())
    ids = history.events["transaction_id"].to_pylist()
    wanted = {ids[row] for row in rows}
    past = history.known_by(fold.start_ms)
    parts = list(replay(past, lambda batch: np.array([i in wanted for i in batch.event_id])))
    again = Encoded.concatenate([part.encoded for part in parts])
    np.testing.assert_array_equal(again.context_BC, fold.holdout.encoded.context_BC)
    np.testing.assert_array_equal(again.x_BLF, fold.holdout.encoded.x_BLF)


def test_shuffled_verdicts_teach_nothing(history: History) -> None:
    """With verdicts dealt out at random, trees that find fraud elsewhere rank it no better than chance."""
    fraud = np.asarray(history.labels["fraud"].to_numpy())
    mixed = np.random.default_rng(0).permutation(fraud)
    place = history.labels.schema.get_field_index("fraud")
    noise = replace(history, labels=history.labels.set_column(place, "fraud", pa.array(mixed)))
    # only labelled events can be frauds, so that being labelled says nothing
    ids = pa.array(history.labels["event_id"].to_pylist())
    judged_M = np.isin(np.array(history.events["transaction_id"].to_pylist()), ids.to_numpy(zero_copy_only=False))
    noise = replace(noise, events=noise.events.filter(pa.array(judged_M)), event_clock_M=noise.event_clock_M[judged_M])
    true = replace(history, events=noise.events, event_clock_M=noise.event_clock_M)
    found = {}
    for name, given in (("true", true), ("noise", noise)):
        trees = LightGBM(Layout(history.pipeline).inputs, threads=1)
        facts = run_protocol(given, [trees], PLAN)
        found[name] = facts["systems"][trees.name]["mean"]
        rate = sum(f["frauds"] for f in facts["folds"]) / sum(f["events"] for f in facts["folds"])
        found[name]["rate"] = rate
    assert found["noise"]["average_precision"] < found["noise"]["rate"] * 1.35
    assert abs(found["noise"]["roc_auc"] - 0.5) < 0.1
    assert found["true"]["roc_auc"] > 0.7


def test_every_system_is_measured_on_every_fold(history: History, tmp_path: Path) -> None:
    """Detector and trees beat chance, are calibrated, and leave their scores."""
    pipeline = history.pipeline
    recipe = Recipe(epochs=2, batch=256, max_legit=3000, threads=1)
    systems = [
        Neural(pipeline, "gru", recipe, out=tmp_path / "bundles"), LightGBM(Layout(pipeline).inputs, threads=1),
        XGBoost(rolling_features(history), depths=(3, 5), threads=1),
    ]  # fmt: skip
    facts = run_protocol(history, systems, PLAN, views={"handbook features": rolling_seen}, out=tmp_path / "out")
    assert list(facts["systems"]) == [system.name for system in systems]
    for found in facts["systems"].values():
        assert len(found["folds"]) == 2
        for metrics, fold in zip(found["folds"], facts["folds"], strict=True):
            assert metrics["events"] == fold["events"] > 1000
            assert metrics["roc_auc"] > 0.6
            assert metrics["average_precision"] > 2 * fold["frauds"] / fold["events"]
            assert metrics["expected_calibration_error"] < 0.12  # two epochs on few events
    assert json.loads((tmp_path / "out" / "results.json").read_bytes())["folds"] == facts["folds"]
    bundle = load_bundle(tmp_path / "bundles" / "bundle-gru-2", pipeline)
    assert bundle.info.training["end"] == facts["folds"][1]["start"]
    assert all(from_iso(fold["end"]) - from_iso(fold["start"]) == WEEK_MS for fold in facts["folds"])
    assert len(list((tmp_path / "out").glob("scores-*.parquet"))) == 6
    with pytest.raises(TrainingError, match="is not empty"):
        run_protocol(history, systems, PLAN, out=tmp_path / "out")


def test_a_killed_evaluation_goes_on_past_what_was_trained(history: History, folds: list[Fold], tmp_path: Path) -> None:
    """With a folder for checkpoints a fold that was trained to its end is not trained again, and scores the same; one
    that was killed after the first epoch of its refit goes on from there."""
    recipe, told = Recipe(epochs=2, batch=256, max_legit=3000, threads=1), []

    def run(folder: Path, stop: str | None = None) -> np.ndarray:
        def report(stage: str, done: int, *_: object) -> None:
            told.append((stage, done))
            if stage == stop:
                raise KeyboardInterrupt

        told.clear()
        return Neural(history.pipeline, "gru", recipe, checkpoint=folder, report=report)(folds[0]).score_N

    whole = run(tmp_path / "whole")
    trained = [("gru, fold 1", 1), ("gru, fold 1", 2), ("gru, fold 1, again", 1), ("gru, fold 1, again", 2)]
    assert told == trained
    np.testing.assert_array_equal(run(tmp_path / "whole"), whole)
    assert told == []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop="gru, fold 1, again")
    assert told == trained[:3]
    np.testing.assert_array_equal(run(tmp_path / "killed"), whole)
    assert told == trained[3:]


def test_a_perfect_system_is_told_so(history: History) -> None:
    """The metrics are those of the test week's truth, without customers known as defrauded."""

    class Oracle:
        name = "oracle"

        def __call__(self, fold: Fold) -> Outcome:
            truth = fold.test.fraud_N.astype(np.float32)
            return Outcome(truth, truth, 0.0, {})

    facts = run_protocol(history, [Oracle()], PLAN)
    mean = facts["systems"]["oracle"]["mean"]
    assert (mean["average_precision"], mean["roc_auc"]) == (1.0, 1.0)
    assert mean["expected_calibration_error"] < 1e-6
    assert all(fold["events_left_out"] > 0 for fold in facts["folds"])


def test_the_first_test_day(history: History) -> None:
    """The 130th day of a long file; of a shorter one the last whole weeks that have matured."""
    first = int(history.event_time_M.min()) // DAY_MS * DAY_MS
    assert first_test_day(history, 2) == first + (56 - 7 - 14) * DAY_MS
    stretched = history.event_time_M.copy()
    stretched[-1] = first + 164 * DAY_MS - 1
    place = history.events.schema.get_field_index("timestamp")
    longer = replace(history, events=history.events.set_column(
        place, "timestamp", pa.array(stretched).cast(pa.timestamp("ms", "UTC"))))  # fmt: skip
    assert first_test_day(longer, 4) == first + 129 * DAY_MS
    assert first_test_day(longer, 5) == first + (164 - 7 - 35) * DAY_MS


def test_a_plan_the_data_cannot_fill_is_refused(history: History) -> None:
    """Too many folds leave nothing to train on; a first day too late leaves nothing to test."""
    with pytest.raises(TrainingError, match="nothing to train on"):
        splits_of(history, replace(PLAN, folds=7))
    late = int(history.event_time_M.max()) - 8 * DAY_MS
    with pytest.raises(TrainingError, match="the data ends before its test week"):
        splits_of(history, replace(PLAN, first_test_ms=late))


def test_the_handbooks_features_as_its_chapter_defines_them(history: History) -> None:
    """Against a loop over one merchant's and one card's events."""
    values_MF, names, time_M = rolling_features(history), rolling_names(), history.event_time_M
    assert values_MF.shape == (len(history.events), 15)
    frauds, maturity_ms = history.frauds(), history.pipeline.labels.maturity_ms
    arrival = dict(zip(history.labels["event_id"].to_pylist(), history.label_clock_M.tolist(), strict=True))
    events = history.events.select(["transaction_id", "card_id", "merchant_id", "amount"]).to_pylist()
    rng = np.random.default_rng(3)
    for row in rng.choice(np.flatnonzero(time_M > time_M[0] + 40 * DAY_MS), size=25, replace=False).tolist():
        now = int(time_M[row])
        own = [e["amount"] for e, t in zip(events, time_M.tolist(), strict=True)
               if e["card_id"] == events[row]["card_id"] and now - 7 * DAY_MS < t <= now]  # fmt: skip
        assert values_MF[row, names.index("entity.count.7d")] == len(own)
        assert values_MF[row, names.index("entity.mean.7d")] == pytest.approx(np.mean(own), rel=1e-3)
        end = now - maturity_ms
        there = [(e["transaction_id"], t) for e, t in zip(events, time_M.tolist(), strict=True)
                 if e["merchant_id"] == events[row]["merchant_id"] and end - 30 * DAY_MS < t <= end]  # fmt: skip
        count = values_MF[row, names.index("key.count.30d")]
        assert count == len(there)
        known = sum(i in frauds and arrival[i] <= now for i, _ in there)
        assert values_MF[row, names.index("key.risk.30d")] == pytest.approx(known / max(len(there), 1), abs=1e-6)


def test_the_command_prints_one_table(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Systems by fold, their means and the published figures, on another schema than the handbook's."""
    arguments = [
        "evaluate", str(world), "--protocol", "handbook", "--pipeline", "payments", "--label-time", "label_time",
        "--folds", "1", "--architecture", "cnn", "--architecture", "gru", "--no-baselines", "--epochs", "1",
        "--no-refit", "--max-legit", "1000", "--threads", "1", "--validation", "5d", "--holdout", "5d",
    ]  # fmt: skip
    app([*arguments, "--json", "--out", str(tmp_path / "out")], result_action="return_value")
    facts = json.loads(capsys.readouterr().out)
    show(facts, Console())
    printed = capsys.readouterr().out
    assert [word in printed for word in ("gru", "cnn", "AUC", "ECE", "LSTM (published)", "Test weeks")] == [True] * 6
    assert set(facts["systems"]) == {"cnn", "gru"}
    assert facts["seconds"]["replay"] >= 0
