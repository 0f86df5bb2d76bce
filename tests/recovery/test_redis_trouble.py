"""A Redis that refuses writes, or is not there yet, delays the stream and nothing else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.simulate import simulate
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.redis import connect
from stream.replay import publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from stream.store.keys import Position, event_tag, position_key
from tests.conftest import MakeSettings
from tests.support import Worker, publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted

REFUSED_S = 5.0  # several tries of a batch, the pause doubling from 50 ms


def test_a_redis_without_memory_does_not_flood_downstream(
    pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """While Redis refuses writes, scores that were acknowledged are not sent again with every try."""
    with LocalServices(tmp_path / "services") as services:
        settings = make_settings(kafka_brokers=services.kafka_brokers, redis_port=services.redis_port, partitions=1)
        asyncio.run(_refused(pipeline, settings, tmp_path))


async def _refused(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    simulated = simulate(seed=8, customers=600, merchants=60, days=2)
    ensure_topics(settings, pipeline)
    windows = simulated_windows(pipeline, simulated)
    version = publish_model(pipeline, settings.registry, windows, folder=folder / "bundle")
    client: Any = connect(settings)
    half = len(simulated) // 2
    events = Rows.of_columns(simulated.events, "timestamp")
    cut = int(events.time_ms[half])
    with Worker(settings, folder / "worker.log") as worker:
        first = await publish(settings, pipeline, events.between(None, cut))
        await wait_stored(settings, pipeline, first.next_offsets)
        client.config_set("maxmemory", 1)
        rest = await publish(settings, pipeline, events.between(cut, None))
        await asyncio.sleep(REFUSED_S)
        held = Position.unpack(client.get(position_key(pipeline.name, event_tag(0))))
        assert held.next_offset == first.events, "something was stored while writes were refused"
        assert worker.metric("lepton_batch_retries_total") >= 3
        client.config_set("maxmemory", 0)
        await wait_stored(settings, pipeline, rest.next_offsets)
        assert worker.stop() == 0
    client.close()
    scores = await read_settled(settings, pipeline.topic("scores"))
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    expected = uninterrupted(pipeline, await read_settled(settings, pipeline.topic("events")), [], scorer)
    assert assert_scored(expected, scores, same_content=True) == 0, "scores were repeated"
    assert_same_end(settings, pipeline, expected)


def test_health_answers_while_redis_is_not_there_yet(
    pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """A worker that waits for Redis at its start is live, not ready, and is not restarted by its supervisor."""
    with LocalServices(tmp_path / "services") as services:
        settings = make_settings(kafka_brokers=services.kafka_brokers, redis_port=services.redis_port)
        ensure_topics(settings, pipeline)
        services.kill_redis()
        with Worker(settings, tmp_path / "worker.log") as worker:
            asyncio.run(worker.logs("position cannot be read yet"))
            assert json.loads(worker.get("/health/live"))["live"]
            services.start_redis()
            asyncio.run(worker.logs("partition taken over", times=4))
            assert worker.stop() == 0
