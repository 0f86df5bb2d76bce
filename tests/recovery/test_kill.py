"""The kill test: workers die at random moments, one joins and leaves, Redis dies once; nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.simulate import Simulated, simulate
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.redis import connect
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from stream.store.keys import Position, event_tag, position_key
from tests.conftest import MakeSettings
from tests.support import Worker, publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted

KILLED_WHILE_STARTING = 0.2  # share of the kills that may hit a worker before it has its partitions
RUNNING, TAKEN = "health and metrics", "partition taken over"  # what a worker logs
LOST_S = 0.3  # how much of its last writes Redis loses where it does


@dataclass(frozen=True)
class Scene:
    """How one run goes. labels, follow: see `stream.replay`. loses_writes: Redis comes back older than it was."""

    customers: int
    days: int
    kills: int
    partitions: int = 4
    labels: bool = True
    follow: bool = False
    loses_writes: bool = False

    @property
    def same_content(self) -> bool:
        """What an event reads of shared profiles cannot depend on other partitions or on labels' progress."""
        return self.follow or (self.partitions == 1 and not self.labels)


FOLLOWED = Scene(customers=1200, days=2, kills=3, follow=True)
ONE_PARTITION = Scene(customers=1200, days=3, kills=3, partitions=1, labels=False, loses_writes=True)
SOAK = {
    "followed": Scene(customers=3300, days=9, kills=20, follow=True),
    "full-speed": Scene(customers=3300, days=9, kills=20, loses_writes=True),
    "one-partition": Scene(customers=3300, days=9, kills=20, partitions=1, labels=False, loses_writes=True),
}


@pytest.mark.parametrize("scene", [FOLLOWED, ONE_PARTITION], ids=["followed", "one-partition"])
def test_killed_workers_change_nothing(
    scene: Scene, pipeline: Pipeline, make_settings: MakeSettings, mortal_services: LocalServices, tmp_path: Path
) -> None:
    """States, profiles and scores after SIGKILLs are those of an uninterrupted run, to the bit."""
    asyncio.run(_run(scene, pipeline, _settings(make_settings, mortal_services, scene), mortal_services, tmp_path))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SOAK)
def test_killed_workers_change_nothing_at_length(
    name: str, pipeline: Pipeline, make_settings: MakeSettings, mortal_services: LocalServices, tmp_path: Path
) -> None:
    """The same with 50,000 events and at least 20 kills."""
    scene = SOAK[name]
    asyncio.run(_run(scene, pipeline, _settings(make_settings, mortal_services, scene), mortal_services, tmp_path))


def _settings(make_settings: MakeSettings, services: LocalServices, scene: Scene) -> Settings:
    return make_settings(
        kafka_brokers=services.kafka_brokers, redis_port=services.redis_port, partitions=scene.partitions
    )


async def _run(scene: Scene, pipeline: Pipeline, settings: Settings, services: LocalServices, folder: Path) -> None:
    simulated = simulate(
        seed=5, customers=scene.customers, merchants=60, days=scene.days, label_delay_days=0.2, label_delay_max_days=0.5
    )
    ensure_topics(settings, pipeline)
    version = publish_model(
        pipeline, settings.registry, simulated_windows(pipeline, simulated), folder=folder / "bundle"
    )
    started = time.monotonic()
    trouble = Trouble(scene, pipeline, settings, services, folder, len(simulated))
    try:
        async with asyncio.TaskGroup() as tasks:
            sending = tasks.create_task(_publish(scene, pipeline, settings, simulated))
            tasks.create_task(trouble.make())
        await wait_stored(settings, pipeline, sending.result(), 60)
        await trouble.stop()
    finally:
        trouble.end()
    seconds = time.monotonic() - started
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    events, labels, scores, alerts, letters = [
        await read_settled(settings, pipeline.topic(kind))
        for kind in ("events", "labels", "scores", "alerts", "dead-letter")
    ]
    expected = uninterrupted(pipeline, events, labels, scorer)
    repeats = assert_scored(expected, scores, scene.same_content)
    alert_repeats = _check_alerts(expected.scores, scorer.threshold, alerts, scene.same_content)
    assert_same_end(settings, pipeline, expected)
    assert len(expected.scores) == len(simulated)
    assert not letters
    print(
        f"\n{len(simulated)} events, {len(labels)} labels, {len(expected.states)} entities, "
        f"{len(expected.profiles)} profiles; {dict(trouble.done)}; "
        f"{repeats} scores and {alert_repeats} alerts repeated; {seconds:.1f} s"
    )


async def _publish(scene: Scene, pipeline: Pipeline, settings: Settings, simulated: Simulated) -> Any:
    labels = Rows.of_columns(simulated.labels, "time") if scene.labels else None
    events = Rows.of_columns(simulated.events, "timestamp")
    done = await publish(settings, pipeline, events, labels, pace=Pace(follow=scene.follow, patience_s=60))
    return done.next_offsets


def _check_alerts(scores: dict[str, tuple[float, float]], threshold: float, alerts: list[Any], same: bool) -> int:
    """One id for each event's alerts; returns the number of repeats."""
    ids: dict[str, set[str]] = {}
    for record in alerts:
        alert = json.loads(record.value)
        ids.setdefault(alert["event_id"], set()).add(alert["alert_id"])
    assert all(len(found) == 1 for found in ids.values())
    assert len(set.union(*ids.values())) == len(ids), "two events share an alert's id"
    if same:
        assert set(ids) == {event_id for event_id, (score, _) in scores.items() if score >= threshold}
        assert len({record.value for record in alerts}) == len(ids), "repeated alerts differ"
    return len(alerts) - len(ids)


@dataclass
class Trouble:
    """Kills workers whenever so many events are stored, with a second worker and a Redis kill on the way."""

    scene: Scene
    pipeline: Pipeline
    settings: Settings
    services: LocalServices
    folder: Path
    events: int
    done: Counter[str] = field(default_factory=Counter)
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(11)
        self.client: Any = connect(self.settings)
        self.alive = [self._start()]

    async def make(self) -> None:
        kills = self.scene.kills
        moments = sorted(self.random.uniform(0.03, 0.9) * self.events for _ in range(kills))
        for number, moment in enumerate(moments):
            await self._stored(moment)
            await asyncio.sleep(self.random.uniform(0, 0.1))
            if number == kills // 2:
                await self._kill_redis()
            self._kill_one()
            if number == kills // 3:
                self.alive.append(self._start())
                self.done["joined"] += 1
            elif number == kills * 2 // 3:
                await self._one_leaves()
        await self._stored(self.events)

    async def stop(self) -> None:
        """Stop the worker that is left."""
        await self._one_leaves()
        assert not self.alive

    def end(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
        self.client.close()

    def _start(self) -> Worker:
        self.workers.append(Worker(self.settings, self.folder / f"worker-{len(self.workers)}.log"))
        return self.workers[-1]

    def _kill_one(self) -> None:
        """Any that works, or now and then one that is only starting; another takes its place."""
        for worker in self.alive:
            assert worker.process.poll() is None, worker.text()[-3000:]
        working = [worker for worker in self.alive if TAKEN in worker.text()]
        if self.random.random() < KILLED_WHILE_STARTING:
            working = self.alive
        victim = self.random.choice(working or self.alive)
        self.done["kills" if TAKEN in victim.text() else "kills_while_starting"] += 1
        victim.kill()
        self.alive.remove(victim)
        self.alive.append(self._start())

    async def _one_leaves(self) -> None:
        """The one that has been there longest stops cleanly."""
        leaver = self.alive.pop(0)
        await leaver.logs(RUNNING)  # before that a signal ends it as it ends any program
        assert await asyncio.to_thread(leaver.stop) == 0, leaver.text()[-3000:]
        self.done["left"] += 1

    async def _kill_redis(self) -> None:
        file = self._newest_file()
        size = file.stat().st_size
        if self.scene.loses_writes:
            await asyncio.sleep(LOST_S)
            while file.stat().st_size == size and self._newest_file() == file:
                await asyncio.sleep(0.01)
        self.services.kill_redis()
        if self.scene.loses_writes and self._newest_file() == file:  # as after a power cut: what was not synced is gone
            self.done["lost_bytes"] = file.stat().st_size - size
            with file.open("r+b") as writable:
                writable.truncate(size)
        await asyncio.sleep(0.5)
        self.services.start_redis()
        self.done["redis_kills"] += 1

    def _newest_file(self) -> Path:
        """What Redis appends to; it begins another one now and then."""
        files = (self.services.folder / "appendonlydir").glob("*.incr.aof")
        return max(files, key=lambda file: int(file.name.split(".")[-3]))

    async def _stored(self, count: float) -> None:
        """Wait until so many events are stored."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(RedisError):
                if self._progress() >= count:
                    return
            await asyncio.sleep(0.005)
        raise TimeoutError(f"{self._progress()} events stored: expected {count:.0f}\n{self.alive[-1].text()[-3000:]}")

    def _progress(self) -> int:
        tags = [event_tag(p) for p in range(self.scene.partitions)]
        packed = [self.client.get(position_key(self.pipeline.name, tag)) for tag in tags]
        return sum(Position.unpack(p).next_offset for p in packed if p)
