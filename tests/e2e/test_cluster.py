"""The worker on Redis Cluster: hash tags keep every transaction on one node, and nodes come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.simulate import simulate
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from tests.conftest import MakeSettings
from tests.support import Worker, publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted


def test_payments_on_a_cluster(pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path) -> None:
    """States, profiles and scores on a cluster of three nodes are the oracle's, though a worker and a node were killed.

    The node comes back from its append-only file; until then no batch that needs it is stored, and none is lost.
    """
    with LocalServices(tmp_path / "services", append_only=True, cluster=True) as services:
        settings = make_settings(
            kafka_brokers=services.kafka_brokers, redis_port=services.redis_port, redis_cluster=True
        )
        asyncio.run(_run(pipeline, settings, services, tmp_path))


async def _run(pipeline: Pipeline, settings: Settings, services: LocalServices, folder: Path) -> None:
    simulated = simulate(seed=12, customers=500, merchants=60, days=2, label_delay_days=0.1, label_delay_max_days=1)
    ensure_topics(settings, pipeline)
    windows = simulated_windows(pipeline, simulated)
    version = publish_model(pipeline, settings.registry, windows, folder=folder / "bundle")
    with Worker(settings, folder / "first.log") as first, Worker(settings, folder / "second.log") as second:
        await asyncio.gather(first.logs("model in use"), second.logs("model in use"))
        events, labels = Rows.of_columns(simulated.events, "timestamp"), Rows.of_columns(simulated.labels, "time")
        sending = asyncio.create_task(publish(settings, pipeline, events, labels, pace=Pace(follow=True)))
        await asyncio.sleep(0.5)
        services.kill_redis(1)
        await _either_logs(first, second, "Connection refused")
        await asyncio.to_thread(services.start_redis)
        first.kill()
        done = await sending
        await wait_stored(settings, pipeline, done.next_offsets)
        assert second.stop() == 0
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    records = [await read_settled(settings, pipeline.topic(kind)) for kind in ("events", "labels", "scores")]
    expected = uninterrupted(pipeline, records[0], records[1], scorer)
    assert len(expected.scores) == len(simulated)
    assert_scored(expected, records[2], same_content=True)
    assert_same_end(settings, pipeline, expected)


async def _either_logs(first: Worker, second: Worker, text: str) -> None:
    """Wait for a text in one of the logs: it is chance which of them has the partitions of a node."""
    waits = [asyncio.create_task(worker.logs(text)) for worker in (first, second)]
    done, others = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in others:
        wait.cancel()
    for wait in done:
        await wait
