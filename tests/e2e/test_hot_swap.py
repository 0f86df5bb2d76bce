"""A new model under load: no event is lost, scoring never stops, and a broken bundle changes nothing."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from models.features.encoded import Encoded
from models.pipeline import load_pipeline
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.simulate import simulate
from stream.kafka import ensure_topics
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from tests.support import Worker, by_partition, publish_model, read_settled, send_records, simulated_windows

RATE = 400  # events a second
BEFORE_S, AFTER_S = 6, 6


async def _promote(settings: Settings, pipeline: Pipeline, version: str) -> None:
    """As `python -m training promote` does: the pointer, then the message."""
    Registry(settings.registry).promote(pipeline.name, version, "test")
    await _notify(settings, pipeline, version)


async def _notify(settings: Settings, pipeline: Pipeline, version: str) -> None:
    message = json.dumps({"pipeline": pipeline.name, "version": version}).encode()
    await send_records(settings, pipeline.topic("models"), [(pipeline.name.encode(), message)])


def test_swap_under_load(pipeline: Pipeline, settings: Settings, tmp_path: Path) -> None:
    """Each event has one score, of the old model up to a point in its partition and of the new one after it."""
    asyncio.run(_swap(pipeline, settings, tmp_path))


async def _swap(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    simulated = simulate(seed=9, customers=1500, merchants=60, days=3)
    count = min(len(simulated), RATE * (BEFORE_S + AFTER_S))
    rows = list(simulated.event_rows())[:count]
    windows = simulated_windows(pipeline, simulated)
    ensure_topics(settings, pipeline)
    old = publish_model(pipeline, settings.registry, windows, seed=1, folder=folder / "old")
    new = publish_model(pipeline, settings.registry, windows, seed=2, folder=folder / "new", promote=False)
    with Worker(settings, folder / "worker.log") as worker:
        await worker.logs("model in use")
        sending = asyncio.create_task(
            publish(settings, pipeline, Rows.of(rows, "timestamp"), pace=Pace(rate=RATE))
        )  # fmt: skip
        await asyncio.sleep(BEFORE_S)
        await _promote(settings, pipeline, new)
        done = await sending
        await wait_stored(settings, pipeline, done.next_offsets)
        swap_s = worker.metric("lepton_model_swap_seconds_sum")
        assert worker.metric("lepton_model_info", version=new) == 1
        assert worker.metric("lepton_model_info", version=old) == 0
        assert worker.stop() == 0
    events = await read_settled(settings, pipeline.topic("events"))
    scores = await read_settled(settings, pipeline.topic("scores"))
    ids = [json.loads(record.value)["event_id"] for record in scores]
    assert sorted(ids) == sorted(str(row["transaction_id"]) for row in rows)
    for part in by_partition(scores).values():
        models = [json.loads(record.value)["model"] for record in part]
        swapped = models.index(new)
        assert swapped > 0
        assert models == [old] * swapped + [new] * (len(models) - swapped)
    before, during = _latency_around(events, scores, new)
    print(
        f"\nlatency p99: {before:.0f} ms in the second before, {during:.0f} ms in that of the swap; swap {swap_s:.2f} s"
    )
    assert during < 3000, "scoring stood still"


def _latency_around(events: list[Any], scores: list[Any], new: str) -> tuple[float, float]:
    """p99 of broker time of the score minus that of its event, ms, of the events appended in the second before the
    swap's, and in the swap's: half a second to either side of the first score by the new model."""
    appended = {json.loads(record.value)["transaction_id"]: record.timestamp for record in events}
    rows = [(json.loads(record.value), record.timestamp) for record in scores]
    swapped = min(at for score, at in rows if score["model"] == new)
    arrived = np.array([appended[score["event_id"]] for score, _ in rows])
    latency = np.array([at for _, at in rows]) - arrived
    during = (arrived >= swapped - 500) & (arrived < swapped + 500)
    before = (arrived >= swapped - 1500) & (arrived < swapped - 500)
    return float(np.percentile(latency[before], 99)), float(np.percentile(latency[during], 99))


def test_broken_bundles_are_refused(pipeline: Pipeline, settings: Settings, tmp_path: Path) -> None:
    """A damaged bundle, or one made for other fields, is refused with its reason; the old model goes on scoring."""
    asyncio.run(_refused(pipeline, settings, tmp_path))


async def _refused(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    simulated = simulate(seed=10, customers=200, merchants=60, days=4)
    rows, third = list(simulated.event_rows()), len(simulated) // 3
    windows = simulated_windows(pipeline, simulated)
    ensure_topics(settings, pipeline)
    good = publish_model(pipeline, settings.registry, windows, seed=1, folder=folder / "good")
    with Worker(settings, folder / "worker.log") as worker:
        await worker.logs("model in use")
        damaged = publish_model(pipeline, settings.registry, windows, seed=2, folder=folder / "damaged", promote=False)
        _flip_a_byte(Registry(settings.registry).path(pipeline.name, damaged) / "weights.safetensors")
        _point_at(settings, pipeline, damaged)  # promote would refuse it before the worker sees it
        await _notify(settings, pipeline, damaged)
        await _see_refused(worker, "checksum")
        await _score(settings, pipeline, rows[:third])

        foreign = _foreign(settings, pipeline, windows, folder)
        await _promote(settings, pipeline, foreign)
        await _see_refused(worker, "digest")
        await _score(settings, pipeline, rows[third : 2 * third])
        assert worker.metric("lepton_model_info", version=good) == 1

        better = publish_model(pipeline, settings.registry, windows, seed=3, folder=folder / "better", promote=False)
        await _promote(settings, pipeline, better)
        await worker.logs("model in use", times=2)
        await _score(settings, pipeline, rows[2 * third :])
        assert worker.stop() == 0
    scores = await read_settled(settings, pipeline.topic("scores"))
    used = {json.loads(r.value)["event_id"]: json.loads(r.value)["model"] for r in scores}
    assert len(scores) == len(rows)
    ids = [str(row["transaction_id"]) for row in rows]
    assert [used[i] for i in ids] == [good] * 2 * third + [better] * (len(rows) - 2 * third)


async def _score(settings: Settings, pipeline: Pipeline, rows: list[Any]) -> None:
    done = await publish(settings, pipeline, Rows.of(rows, "timestamp"))
    await wait_stored(settings, pipeline, done.next_offsets)


async def _see_refused(worker: Worker, reason: str) -> None:
    deadline = time.monotonic() + 20
    while not worker.metric("lepton_models_refused_total", reason=reason):
        assert time.monotonic() < deadline, worker.text()[-3000:]
        await asyncio.sleep(0.1)


def _flip_a_byte(file: Path) -> None:
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def _point_at(settings: Settings, pipeline: Pipeline, version: str) -> None:
    """As somebody would who goes round the registry's checks."""
    changes = Path(settings.registry) / pipeline.name / "changes"
    newest = json.loads(max(changes.iterdir()).read_text())
    seq = newest["seq"] + 1
    (changes / f"{seq:08d}.json").write_text(json.dumps(newest | {"seq": seq, "champion": version}))


def _foreign(settings: Settings, pipeline: Pipeline, windows: Encoded, folder: Path) -> str:
    """A model of a pipeline with this name and other limits, published as this pipeline's."""
    text = Path(settings.pipeline).read_text(encoding="utf-8").replace("max = 10_000_000", "max = 50")
    other = folder / "other.toml"
    other.write_text(text, encoding="utf-8")
    return publish_model(
        load_pipeline(other), settings.registry, windows, seed=4, folder=folder / "foreign", promote=False
    )
