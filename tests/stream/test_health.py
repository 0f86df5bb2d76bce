"""Live, ready and metrics over HTTP, and what counts as standing still."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from faust.types import TP
from prometheus_client.parser import text_string_to_metric_families

from stream.health import HealthServer, Progress
from stream.source import Source
from stream.store.keys import Position

STALL_S = 60.0
A, B = TP("t.events", 0), TP("t.labels", 2)


class World:
    """Two partitions, their ends, which of them wait on purpose, and a clock: all moved by hand."""

    def __init__(self) -> None:
        self.now = 500.0
        self.sources = {tp: Source(str(tp.partition), clock=lambda: self.now, progress_s=self.now) for tp in (B, A)}
        self.ends: dict[TP, int | None] = {A: 0, B: 0}
        self.waiting: set[TP] = set()
        self.model: str | None = "v1"
        self.progress = Progress(
            lambda: self.sources, self.ends.get, self.waiting.__contains__, STALL_S, lambda: self.now
        )

    def of(self, tp: TP) -> dict[str, Any]:
        (found,) = [p for p in self.progress.partitions() if (p["topic"], p["partition"]) == (tp.topic, tp.partition)]
        return found

    def store(self, tp: TP, next_offset: int) -> None:
        self.sources[tp].advance(Position(next_offset))


@pytest.fixture
def world() -> World:
    return World()


def test_partitions_are_listed_with_their_lag(world: World) -> None:
    """One entry a partition, sorted, with what is left to do."""
    world.ends[A] = 30
    world.store(A, 10)
    assert world.progress.partitions() == [
        {"topic": "t.events", "partition": 0, "next_offset": 10, "lag": 20, "idle_s": 0.0, "stalled": False},
        {"topic": "t.labels", "partition": 2, "next_offset": 0, "lag": 0, "idle_s": 0.0, "stalled": False},
    ]


def test_a_partition_with_lag_and_no_progress_has_stalled(world: World) -> None:
    """Only after the whole patience, only with records waiting, and only that partition."""
    world.ends[A] = 30
    world.now += STALL_S
    assert not world.of(A)["stalled"]
    world.now += 0.1
    assert world.of(A)["stalled"]
    assert not world.of(B)["stalled"]
    world.store(A, 1)
    assert not world.of(A)["stalled"], "one record is progress"


def test_nothing_to_do_is_no_stall(world: World) -> None:
    """A quiet topic stays live, and its patience begins when something comes."""
    for _ in range(5):
        world.now += STALL_S
        assert not world.of(A)["stalled"]
    world.ends[A] = 1
    world.now += STALL_S - 1
    assert not world.of(A)["stalled"]
    world.now += 2
    assert world.of(A)["stalled"]


def test_progress_that_never_catches_up_is_no_stall(world: World) -> None:
    """Slow is not stuck."""
    world.ends[A] = 1_000_000
    for offset in range(1, 10):
        world.now += STALL_S - 1
        assert not world.of(A)["stalled"]
        world.store(A, offset)


@pytest.mark.parametrize("end", [None, 5])
def test_an_end_that_is_unknown_or_behind_is_no_lag(world: World, end: int | None) -> None:
    """Before the first fetch nobody knows the end; a stale one is not negative work."""
    world.store(A, 7)
    world.ends[A] = end
    world.now += 10 * STALL_S
    assert (world.of(A)["lag"], world.of(A)["stalled"]) == (0, False)


def test_waiting_on_purpose_is_no_stall(world: World) -> None:
    """Labels that wait for events have a lag and are not stuck; when they need wait no more, patience begins."""
    world.ends[B] = 9
    world.waiting.add(B)
    for _ in range(3):
        world.now += 2 * STALL_S
        assert (world.of(B)["lag"], world.of(B)["stalled"]) == (9, False)
    world.waiting.clear()
    world.now += STALL_S + 1
    assert world.of(B)["stalled"]


async def _get(world: World, *paths: str) -> list[tuple[int, str]]:
    """Status and text of each path, from a real server on a free port."""
    server = HealthServer("127.0.0.1", 0, world.progress, lambda: world.model)
    await server.start()
    try:
        assert server.port != 0
        out = []
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
            for path in paths:
                async with session.get(path) as response:
                    out.append((response.status, await response.text()))
        return out
    finally:
        await server.stop()


def get(world: World, *paths: str) -> list[tuple[int, str]]:
    return asyncio.run(asyncio.wait_for(_get(world, *paths), 10))


def test_live_follows_the_partitions(world: World) -> None:
    """200 while all move, 503 with the culprit named when one does not, 200 again afterwards."""
    world.ends[A] = 3
    assert get(world, "/health/live")[0][0] == 200
    world.now += STALL_S + 1
    ((status, text),) = get(world, "/health/live")
    assert status == 503
    assert '"live": false' in text
    assert text.count('"stalled": true') == 1
    world.store(A, 3)
    assert get(world, "/health/live")[0][0] == 200


def test_ready_needs_a_model_and_partitions(world: World) -> None:
    """Without either no work can start; a stall alone does not make it unready."""
    ((status, text),) = get(world, "/health/ready")
    assert status == 200
    assert '"model": "v1"' in text
    world.model = None
    assert get(world, "/health/ready")[0][0] == 503
    world.model = "v2"
    world.sources.clear()
    ((live, _), (ready, _)) = get(world, "/health/live", "/health/ready")
    assert (live, ready) == (200, 503)


def test_metrics_are_prometheus_text_with_the_lag_of_now(world: World) -> None:
    """A scrape reads what the partitions look like at that moment, in a form that parses."""
    world.ends[A] = 44
    world.store(A, 4)
    ((status, text), (unknown, _)) = get(world, "/metrics", "/nothing")
    assert (status, unknown) == (200, 404)
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    lag = {(s.labels["topic"], s.labels["partition"]): s.value for s in samples if s.name == "lepton_lag_events"}
    assert lag["t.events", "0"] == 40
    assert lag["t.labels", "2"] == 0


def test_a_server_can_be_stopped_twice(world: World) -> None:
    """Shutting down never fails because something was shut down already, or never started."""

    async def test() -> None:
        server = HealthServer("127.0.0.1", 0, world.progress, lambda: None)
        await server.stop()
        await server.start()
        await server.stop()
        await server.stop()

    asyncio.run(asyncio.wait_for(test(), 10))
