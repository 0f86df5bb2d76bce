"""The loop on a history: what each turn knows, what the gate lets in, and the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from models.clock import DAY_MS, from_iso
from models.pipeline.load import digest
from models.pipeline.spec import Pipeline
from models.registry import Registry
from training.cli import app
from training.errors import TrainingError
from training.loop.material import held_back, make_plan
from training.loop.rehearse import Rehearsal, rehearse
from training.source import Source


def test_a_rehearsal_trains_at_each_step_on_what_was_known_and_keeps_every_decision(
    world: Source, loop_pipeline: Pipeline, end_ms: int, tmp_path: Path
) -> None:
    """The loop's average precision is the frozen one's until something was let in; the registry tells the same."""
    start_ms = end_ms - 16 * DAY_MS
    plan = Rehearsal(
        pipeline=loop_pipeline, start_ms=start_ms, end_ms=end_ms, every_ms=8 * DAY_MS, work=tmp_path, threads=1,
        engine="native",
    )  # fmt: skip
    facts = rehearse(world, plan)
    assert [from_iso(step["from"]) for step in facts["steps"]] == [start_ms, start_ms + 8 * DAY_MS]
    first, second = facts["steps"]
    assert first["loop"] == first["frozen"] > 0
    (decision,) = facts["decisions"]
    assert decision["at"] == second["from"]
    assert decision["passed"] == (second["champion"] != first["champion"]) == (facts["promoted"] == 1)
    history = Registry(tmp_path / "registry").history("payments")
    assert [change.to for change in history] == list(dict.fromkeys([first["champion"], second["champion"]]))
    info = Registry(tmp_path / "registry").verify("payments", first["champion"])
    assert from_iso(info.training["matured"]) == start_ms - loop_pipeline.labels.maturity_ms
    assert info.digest == digest(loop_pipeline)


def test_a_rehearsal_without_a_step_or_a_past_is_refused(
    world: Source, loop_pipeline: Pipeline, end_ms: int, tmp_path: Path
) -> None:
    """Both errors have the dates."""
    whole = {"pipeline": loop_pipeline, "end_ms": end_ms, "every_ms": 7 * DAY_MS, "work": tmp_path}
    with pytest.raises(TrainingError, match="no whole step"):
        rehearse(world, Rehearsal(start_ms=end_ms - DAY_MS, **whole))
    with pytest.raises(TrainingError, match="expected a longer history"):
        rehearse(world, Rehearsal(start_ms=world.first_event_ms() + DAY_MS, **whole))


def test_the_same_entities_are_held_back_whoever_else_there_is_and_about_the_share() -> None:
    """A challenger of next week must not have learnt from what a champion of this week is judged by."""
    names = [f"card-{n}" for n in range(4000)]
    held = held_back(names, 0.3)
    assert held.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(held_back(names[::-1], 0.3), held[::-1])
    assert np.all(held_back(names, 0.5)[held])  # a greater share holds back these, and others


def test_what_is_learnt_from_and_what_is_held_back_never_meet(material, loop_pipeline: Pipeline, world, end_ms) -> None:
    """No event of the newest matured days of a held-back entity is learnt from, none that has not matured, and both
    have frauds."""
    plan = make_plan(loop_pipeline, world.first_event_ms(), end_ms)
    train, held = material.train, material.held.part
    newest = train.time_N >= plan.holdout_ms
    assert newest.any()
    assert not set(held.entity) & {e for e, new in zip(train.entity, newest.tolist(), strict=True) if new}
    assert max(train.time_N.max(), held.time_N.max()) < end_ms - loop_pipeline.labels.maturity_ms
    assert held.time_N.min() >= plan.holdout_ms
    assert train.fraud_N.any()
    assert held.fraud_N.any()


def test_the_gate_as_a_command_says_why_and_exits_with_three(
    world: Source, champion: Path, loop_pipeline: Pipeline, end_ms: int, tmp_path: Path, capsys, loop_file: Path,
    history_root: Path,
) -> None:  # fmt: skip
    """A champion against itself is not better."""
    with pytest.raises(SystemExit) as stop:
        app(
            ["gate", str(champion), "--against", str(champion), "--pipeline", str(loop_file), "--history",
             str(history_root), "--end", "2026-02-19", "--engine", "native", "--json"], result_action="return_value",
        )  # fmt: skip
    assert stop.value.code == 3
    told = json.loads(capsys.readouterr().out)
    assert told["reason"] == "average_precision"
    assert told["checks"]["features"]["ok"]
