"""Machines end to end: learnt from a past without labels, judged by a worker that is killed, told as episodes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from models.codec import Codec
from models.episodes import KINDS, advance_episodes, empty_episodes
from models.events import EventBatch
from models.features.memory import MemoryStore
from models.pipeline import load_pipeline
from models.pipeline.schema import schemas
from models.pipeline.spec import Pipeline
from models.policy import alert_id
from models.registry import Registry
from models.samples import write_file
from models.scorer import Scorer, load_scorer
from models.simulate_machines import Machines, simulate_machines
from stream.kafka import ensure_topics
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from stream.store.inspect import show_entity
from tests.conftest import MakePipeline, MakeSettings
from tests.support import Worker, by_partition, read_settled
from training.finetune import finetune
from training.fit import Recipe
from training.history import import_file
from training.tables import Mapped, read_file

LEARN = 576
RATE = 2000


@pytest.fixture
def pipeline_file(make_pipeline: MakePipeline) -> Path:
    """sensors.toml for machines of a few days."""
    path = make_pipeline("sensors")
    text = path.read_text(encoding="utf-8").replace("learn = 1000", f"learn = {LEARN}")
    path.write_text(text.replace("alerts_per_day = 20", "alerts_per_day = 6"), encoding="utf-8")
    return path


def test_faults_become_episodes_whatever_happens_to_the_worker(
    pipeline_file: Path, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Scores and alerts are those of an uninterrupted run; most faults are found, and few alerts are wrong."""
    pipeline = load_pipeline(pipeline_file)
    machines = simulate_machines(4, machines=20, days=4.0, faults=1, faults_from_day=2.5)
    settings = make_settings()
    scorer = _publish_model(pipeline, settings, machines, tmp_path)
    records = asyncio.run(_stream(pipeline, settings, machines, tmp_path))
    expected = _expected(pipeline, scorer, records["events"])
    _check_scores(pipeline, records["scores"], expected)
    _check_alerts(pipeline, records["alerts"], expected)
    _check_faults(machines, expected)
    _check_shown(pipeline, settings, machines)


def _publish_model(pipeline: Pipeline, settings: Settings, machines: Machines, folder: Path) -> Scorer:
    write_file(machines, folder / "machines.parquet")
    import_file(pipeline, folder / "history", Mapped(read_file(folder / "machines.parquet"), pipeline))
    bundle = finetune(pipeline, folder / "history", folder / "bundle", recipe=Recipe(epochs=2, threads=1))
    registry = Registry(settings.registry)
    version = registry.publish(bundle.folder)
    registry.promote(pipeline.name, version, "test")
    return load_scorer(registry.path(pipeline.name, version), pipeline)


async def _stream(pipeline: Pipeline, settings: Settings, machines: Machines, folder: Path) -> dict[str, list[Any]]:
    ensure_topics(settings, pipeline)
    rows = Rows.of_columns(machines.events, "timestamp")
    with Worker(settings, folder / "first.log") as first, Worker(settings, folder / "second.log") as second:
        await first.logs("model in use")
        sending = asyncio.create_task(publish(settings, pipeline, rows, pace=Pace(rate=RATE)))
        await asyncio.sleep(len(machines) / RATE / 2)
        first.kill()
        await second.logs("model in use")
        done = await sending
        await wait_stored(settings, pipeline, done.next_offsets, 60)
        assert second.stop() == 0
    kinds = ("events", "scores", "alerts", "dead-letter")
    records = {kind: await read_settled(settings, pipeline.topic(kind)) for kind in kinds}
    assert not records["dead-letter"]
    return records


@dataclass(frozen=True)
class _Told:
    """Of one event: its score, on what it rests, what it does to an episode, and the episode's id."""

    entity: str
    score: float
    status: str | None
    kind: str
    episode: str


def _expected(pipeline: Pipeline, scorer: Scorer, events: list[Any]) -> dict[str, _Told]:
    """Partition by partition in one batch each: how events were grouped must not matter."""
    told: dict[str, _Told] = {}
    for part in by_partition(events).values():
        store = MemoryStore(pipeline)
        decoded = _decode(pipeline, part)
        step = store.step(decoded, np.maximum.accumulate(decoded.time_M))
        scores = scorer.score(step.encoded).score_B
        names = sorted(set(decoded.entity))
        owner_A = np.array([names.index(entity) for entity in decoded.entity])
        ids = [
            int(alert_id(pipeline.name, event_id, pipeline.detector.architecture), 16) for event_id in decoded.event_id
        ]
        id_A2 = np.array([(number >> 64, number & (1 << 64) - 1) for number in ids], np.uint64)
        turns = advance_episodes(
            pipeline.episodes, empty_episodes(len(names)), owner_A, decoded.time_M, scores, scorer.threshold, id_A2
        )
        seen: Counter[str] = Counter()
        for a, event_id in enumerate(decoded.event_id):
            high, low = turns.id_A2[a].tolist()
            before, entity = seen[decoded.entity[a]], decoded.entity[a]
            seen[entity] += 1
            early = "judged by its fleet" if before else "insufficient history"
            status = None if before >= LEARN else early
            told[event_id] = _Told(entity, float(scores[a]), status, KINDS[turns.kind_A[a]], f"{high << 64 | low:032x}")
    return told


def _decode(pipeline: Pipeline, records: list[Any]) -> EventBatch:
    decoded = Codec(pipeline).decode(
        [r.value for r in records], np.array([r.timestamp for r in records]), [r.key for r in records]
    )
    assert not decoded.bad
    return decoded.batch


def _check_scores(pipeline: Pipeline, records: list[Any], expected: dict[str, _Told]) -> None:
    validator = jsonschema.Draft202012Validator(schemas(pipeline)["scores"])
    scores = {message["event_id"]: message for message in map(_json, records)}
    assert scores.keys() == expected.keys()
    for event_id, told in expected.items():
        assert scores[event_id]["score"] == pytest.approx(told.score, abs=1e-6)
        assert scores[event_id].get("status") == told.status
    for message in list(scores.values())[::200]:
        validator.validate(message)


def _check_alerts(pipeline: Pipeline, records: list[Any], expected: dict[str, _Told]) -> None:
    """Each turn once by its id, with the episode it belongs to; reasons are fields and what was expected of them."""
    validator = jsonschema.Draft202012Validator(schemas(pipeline)["alerts"])
    alerts = {message["alert_id"]: message for message in map(_json, records)}
    found = {alert["event_id"]: (alert["episode"]["state"], alert["episode"]["id"]) for alert in alerts.values()}
    assert found == {event_id: (told.kind, told.episode) for event_id, told in expected.items() if told.kind}
    assert {state for state, _ in found.values()} == {"open", "update", "close"}
    for alert in alerts.values():
        validator.validate(alert)
        if alert["episode"]["state"] == "open":
            assert alert["episode"]["id"] == alert["alert_id"]
        for reason in alert["reasons"]:
            assert isinstance(reason["expected"], float)
            assert reason["value"] == alert["event"].get(reason["feature"])


def _check_faults(machines: Machines, expected: dict[str, _Told]) -> None:
    time_of = dict(zip(machines.events["reading_id"].tolist(), machines.events["timestamp"].tolist(), strict=True))
    opened = [(told.entity, time_of[event_id]) for event_id, told in expected.items() if told.kind == "open"]
    found = [
        fault for fault in machines.faults
        if any(machine == fault.machine and fault.start_ms <= at < fault.end_ms + 7_200_000 for machine, at in opened)
    ]  # fmt: skip
    print(f"\n{len(found)} of {len(machines.faults)} faults found, {len(opened)} episodes")
    assert len(found) >= 0.7 * len(machines.faults)


def _check_shown(pipeline: Pipeline, settings: Settings, machines: Machines) -> None:
    """`state show` says what is measured against, near what the machine has done."""
    name = str(machines.events["machine_id"][0])
    shown = json.loads(show_entity(settings, pipeline, name))
    own = machines.events["machine_id"] == name
    assert shown["surprise"]["seen"] == shown["events"] == own.sum()
    usual, spread = np.nanmean(machines.events["speed"][own]), np.nanstd(machines.events["speed"][own])
    assert abs(shown["surprise"]["speed"]["mean"] - usual) < spread
    assert shown["surprise"]["speed"]["last"] == pytest.approx(machines.events["speed"][own][-1])
    assert shown["episode"].keys() >= {"opened_at", "events", "peak_score"}


def _json(record: Any) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(record.value)
    return message
