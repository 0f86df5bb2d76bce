"""Redis holds the truth: a worker goes where the position in Redis is, and a writer that was overtaken cannot write."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faust.types import TP
from redis.exceptions import ConnectionError as RedisConnectionError

from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.simulate import simulate
from stream.delivery import Delivery
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.redis import connect
from stream.replay import publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from stream.store.keys import Position, event_tag, outbox_key, position_key, state_key
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore, Write
from tests.conftest import MakeSettings
from tests.support import Worker, publish_model, read_settled, simulated_windows
from tests.uninterrupted import assert_same_end, assert_scored, uninterrupted


def test_a_redis_that_forgot_everything_is_filled_again(
    pipeline: Pipeline, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """When Redis comes back empty in mid-run, the live worker replays from the beginning, to the same end."""
    with LocalServices(tmp_path / "services") as services:  # no append-only file
        settings = make_settings(kafka_brokers=services.kafka_brokers, redis_port=services.redis_port, partitions=1)
        asyncio.run(_emptied(pipeline, settings, services, tmp_path))


async def _emptied(pipeline: Pipeline, settings: Settings, services: LocalServices, folder: Path) -> None:
    simulated = simulate(seed=6, customers=600, merchants=60, days=2)
    ensure_topics(settings, pipeline)
    windows = simulated_windows(pipeline, simulated)
    version = publish_model(pipeline, settings.registry, windows, folder=folder / "bundle")
    events = Rows.of_columns(simulated.events, "timestamp")
    cut = int(events.time_ms[len(simulated) // 2])
    with Worker(settings, folder / "worker.log") as worker:
        first = await publish(settings, pipeline, events.between(None, cut))
        await wait_stored(settings, pipeline, first.next_offsets)
        services.kill_redis()
        services.start_redis()
        done = await publish(settings, pipeline, events.between(cut, None))
        await wait_stored(settings, pipeline, done.next_offsets)
        assert worker.metric("lepton_rewinds_total", cause="moved") >= 1
        assert worker.stop() == 0
    scores = await read_settled(settings, pipeline.topic("scores"))
    scorer = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline)
    expected = uninterrupted(pipeline, await read_settled(settings, pipeline.topic("events")), [], scorer)
    assert_scored(expected, scores, same_content=True)  # repeats: not those acknowledged before in the same batches
    assert_same_end(settings, pipeline, expected)


@pytest.fixture
def store(settings: Settings, pipeline: Pipeline) -> Any:
    client: Any = connect(settings)
    yield RedisStore(client, Layout(pipeline))
    client.close()


def _state(store: RedisStore, count: int) -> np.ndarray:
    states = store.layout.empty_states(1)
    states["count"] = count
    return states


def _merchant_entry(store: RedisStore, number: int) -> Outbox:
    """One event of merchant m."""
    from models.features.profiles import collect

    profile = store.layout.pipeline.profiles["merchant"]
    added = collect(profile, np.zeros(1, np.int64), np.array([10**12]), amount_M=np.array([5.0]))
    return Outbox(number, [("merchant", "m", store.formats["merchant"].pack_increments(added)[0])])


def _merchant_count(store: RedisStore) -> int:
    return int(store.load({}, {"merchant": ["m"]}).rings["merchant"]["count"][0, 0].sum())


def test_overtaken_writer_changes_nothing(store: RedisStore) -> None:
    """A store whose expected position is no longer there is refused as a whole: state, position and outbox stay."""
    tag, name = event_tag(0), store.pipeline
    assert store.store([Write(tag, None, Position(5, 100, 1), Outbox(1, []), ["a"], _state(store, 5))])[0]
    keys = [position_key(name, tag), outbox_key(name, tag), state_key(name, tag, "a"), state_key(name, tag, "b")]
    before = store.client.mget(keys)
    for stale in (None, Position(4, 100, 1), Position(5, 99, 1), Position(5, 100, 0)):
        late = Write(tag, stale, Position(9, 100, 2), _merchant_entry(store, 2), ["b"], _state(store, 9))
        assert not store.store([late])[0]
    assert store.client.mget(keys) == before


def test_outbox_left_behind_is_applied_once(store: RedisStore) -> None:
    """An entry whose owner died before applying it is applied by the next owner, and by nobody again."""
    tag = event_tag(0)
    entry = _merchant_entry(store, 1)
    assert store.store([Write(tag, None, Position(1, 10**12, 1), entry)])[0]
    assert _merchant_count(store) == 0
    for _ in range(3):
        assert store.recover(tag) == Position(1, 10**12, 1)
        store.apply([(tag, entry)])  # the owner was not dead after all
        assert _merchant_count(store) == 1


def test_what_redis_lost_between_a_store_and_its_apply_is_applied(
    pipeline: Pipeline, mortal_services: LocalServices, make_settings: MakeSettings
) -> None:
    """A Redis that comes back with a position and without what was applied after it: the next store must not bury
    the outbox. The worker is told that the connection was lost, and applies the entry first."""
    client: Any = connect(make_settings(redis_port=mortal_services.redis_port))
    store = RedisStore(client, Layout(pipeline))
    tp, tag = TP("events", 0), event_tag(0)

    async def at_once(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    async def seek(_: TP, offset: int) -> None:
        raise AssertionError(f"a seek to {offset}")

    async def run() -> None:
        delivery = Delivery(store, event_tag, at_once, seek, lambda _: None)
        await delivery.take_over(tp)
        assert store.store([Write(tag, None, Position(1, 10**12, 1), _merchant_entry(store, 1))])[0]
        delivery.sources[tp].advance(Position(1, 10**12, 1))
        client.execute_command("WAITAOF", 1, 0, 1000)
        mortal_services.kill_redis()  # before the apply, or with an apply that was not written to the file
        mortal_services.start_redis()
        later = [Write(tag, Position(1, 10**12, 1), Position(2, 10**12, 2), Outbox(2, []))]
        with pytest.raises(RedisConnectionError):
            store.store(later)
        delivery.restart()
        assert await delivery.admit([]) == {}
        assert store.store(later) == [True]

    asyncio.run(run())
    assert _merchant_count(store) == 1
    client.close()
