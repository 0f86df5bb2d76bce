"""Workers that come, go and fall asleep: partitions change hands without loss, and leaving is quick and clean."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import Scorer, load_scorer
from models.simulate import Simulated, simulate
from stream.kafka import client_options, ensure_topics
from stream.replay import Offsets, Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from tests.conftest import MakeSettings
from tests.support import Worker, publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted

RATE = 400  # events a second: low enough that work goes on while members come and go
BUSY_RATE = 1500  # high enough that a worker that is stopped has a batch in hand
TAKEN = "partition taken over"


def _prepare(settings: Settings, pipeline: Pipeline, folder: Path) -> tuple[list[Any], Scorer]:
    """Payments in order of time, and the model that scores them."""
    simulated: Simulated = simulate(seed=8, customers=800, merchants=60, days=3)
    ensure_topics(settings, pipeline)
    windows = simulated_windows(pipeline, simulated)
    version = publish_model(pipeline, settings.registry, windows, folder=folder / "bundle")
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    return list(simulated.event_rows()), scorer


async def _publish(settings: Settings, pipeline: Pipeline, rows: list[Any], rate: float = 0) -> Offsets:
    done = await publish(settings, pipeline, Rows.of(rows, "timestamp"), pace=Pace(rate=rate))
    return done.next_offsets


async def _check(settings: Settings, pipeline: Pipeline, scorer: Scorer) -> int:
    """The end is the oracle's; returns how many scores are repeats."""
    events, scores = [await read_settled(settings, pipeline.topic(kind)) for kind in ("events", "scores")]
    expected = uninterrupted(pipeline, events, [], scorer)
    assert_same_end(settings, pipeline, expected)
    return assert_scored(expected, scores, same_content=False)


async def _members(settings: Settings, pipeline: Pipeline) -> int:
    """How many members the broker counts in the workers' group."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        answers = await admin.describe_consumer_groups([settings.group(pipeline.name)])
        return len(answers[0].groups[0][5])
    finally:
        await admin.close()


async def _stop_at_work(worker: Worker, settings: Settings, pipeline: Pipeline, rows: list[Any]) -> list[Any]:
    """SIGSTOP while events still come in, faster than it would like; returns the other half of the rows."""
    half = len(rows) // 2
    sending = asyncio.create_task(_publish(settings, pipeline, rows[:half], BUSY_RATE))
    while await asyncio.to_thread(worker.metric, "lepton_events_total") < half // 4:
        assert not sending.done(), "it had stored too little when all was sent"
        await asyncio.sleep(0.02)
    worker.signal(signal.SIGSTOP)
    assert not sending.done(), "all was sent before it was stopped"
    await sending
    return rows[half:]


def test_leaving_under_load(pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path) -> None:
    """Two workers share the partitions; one leaves on SIGTERM with exit code 0, and repeats nothing.

    The session outlasts the check, so the leaver told the broker: it was not expelled.
    """
    settings = make_settings(session_timeout_s=6)
    rows, scorer = _prepare(settings, pipeline, tmp_path)

    async def run() -> int:
        with Worker(settings, tmp_path / "a.log") as first:
            await first.logs(TAKEN)  # the local broker's first generation is 0, which aiokafka does not leave
            with Worker(settings, tmp_path / "b.log") as second:
                await second.logs(TAKEN)
                await asyncio.gather(first.logs("model in use"), second.logs("model in use"))
                sending = asyncio.create_task(_publish(settings, pipeline, rows, RATE))
                await asyncio.sleep(3)
                shares = [worker.metric("lepton_events_total") for worker in (first, second)]
                assert min(shares) > 0, f"one worker does nothing: {shares}"
                started = time.monotonic()
                assert await asyncio.to_thread(first.stop) == 0, first.text()[-3000:]
                stopped_s = time.monotonic() - started
                assert await _members(settings, pipeline) == 1
                await wait_stored(settings, pipeline, await sending)
                assert second.stop() == 0
        print(f"\nstopped in {stopped_s:.1f} s")
        assert stopped_s < 10
        return await _check(settings, pipeline, scorer)

    assert asyncio.run(run()) == 0, "a clean leave repeats nothing"


def test_sleeper_cannot_write(pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path) -> None:
    """A worker that was stopped for longer than its session wakes with a batch in hand, and counts nothing twice."""
    settings = make_settings(session_timeout_s=2)
    rows, scorer = _prepare(settings, pipeline, tmp_path)

    async def run() -> int:
        with Worker(settings, tmp_path / "a.log") as sleeper:
            await sleeper.logs("model in use")
            rest = await _stop_at_work(sleeper, settings, pipeline, rows)
            with Worker(settings, tmp_path / "b.log") as other:
                # more than the sleeper ever heard of is stored before it wakes
                await wait_stored(settings, pipeline, await _publish(settings, pipeline, rest))
                sleeper.signal(signal.SIGCONT)
                deadline = time.monotonic() + 20
                while not sleeper.metric("lepton_fenced_writes_total") + sleeper.metric("lepton_rewinds_total"):
                    assert time.monotonic() < deadline, sleeper.text()[-3000:]
                    await asyncio.sleep(0.1)
                await sleeper.logs(TAKEN, times=2 * settings.partitions + 1)  # it is a member again
                assert other.stop() == 0
                assert sleeper.stop() == 0, sleeper.text()[-3000:]
        return await _check(settings, pipeline, scorer)

    asyncio.run(run())
