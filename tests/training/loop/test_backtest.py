"""Two models over a stretch of history: figures that add up, changes one by one, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.clock import DAY_MS
from models.pipeline.spec import Pipeline
from models.scorer import load_scorer
from training.backtest import Backtest, backtest
from training.cli import app
from training.errors import TrainingError
from training.source import Source


@pytest.fixture
def what(end_ms: int) -> Backtest:
    return Backtest(start_ms=end_ms - 10 * DAY_MS, end_ms=end_ms, amount="amount")


def test_a_lower_threshold_only_adds_alerts_and_every_one_is_listed(
    world: Source, loop_pipeline: Pipeline, champion: Path, what: Backtest, tmp_path: Path
) -> None:
    """What appears is the difference of both counts, of alerts, of frauds and of money; nothing vanishes."""
    scorer = load_scorer(champion, loop_pipeline, "native")
    lower = Backtest(**(vars(what) | {"thresholds": (None, scorer.threshold / 3)}))
    facts = backtest(world, scorer, scorer, lower, changes=tmp_path / "changes.jsonl")
    first, second, appear = facts["first"], facts["second"], facts["appear"]
    assert appear["alerts"] == second["alerts"] - first["alerts"] > 0
    assert appear["frauds"] == second["frauds_caught"] - first["frauds_caught"]
    assert appear["fraud_money"] == pytest.approx(second["money_caught"] - first["money_caught"])
    assert facts["vanish"]["alerts"] == 0
    assert first["average_precision"] == second["average_precision"]
    lines = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert len(lines) == appear["alerts"]
    assert sum(line["fraud"] for line in lines) == appear["frauds"]
    assert all(scorer.threshold / 3 <= line["second"] < scorer.threshold for line in lines)


def test_a_model_against_itself_changes_nothing_and_two_runs_give_the_same_bytes(
    world: Source, loop_file: Path, history_root: Path, champion: Path, tmp_path: Path, capsys
) -> None:
    """By the command, as a user runs it."""
    outputs = []
    for run in range(2):
        file = tmp_path / f"{run}.jsonl"
        app(
            ["backtest", str(champion), str(champion), "--start", "2026-02-01", "--end", "2026-02-10", "--pipeline",
             str(loop_file), "--history", str(history_root), "--threshold", "0.01", "--changes", str(file), "--json"],
            result_action="return_value",
        )  # fmt: skip
        outputs.append((capsys.readouterr().out, file.read_bytes()))
    assert outputs[0] == outputs[1]
    facts = json.loads(outputs[0][0])
    assert facts["appear"]["alerts"] == len(outputs[0][1].splitlines()) > 0


def test_what_cannot_be_compared_is_refused_by_name(
    world: Source, loop_pipeline: Pipeline, champion: Path, what: Backtest
) -> None:
    """A stretch without events, and an amount that is no number."""
    scorer = load_scorer(champion, loop_pipeline, "native")
    with pytest.raises(TrainingError, match="expected a number field"):
        backtest(world, scorer, scorer, Backtest(**(vars(what) | {"amount": "channel"})))
    with pytest.raises(TrainingError, match="expected a stretch of the history"):
        backtest(world, scorer, scorer, Backtest(start_ms=0, end_ms=DAY_MS))
