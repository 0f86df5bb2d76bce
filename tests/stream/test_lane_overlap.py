"""Batches that overlap: stored in order, each record once, whatever fails and when."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from models.errors import StateError
from stream import lane as lane_module
from stream.lane import DEPTH, GivenUp, GoOn
from stream.transport import Chunk
from tests.stream.recorder import Running, chunk, offsets, run, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoffs of a thousandth of their length."""
    monkeypatch.setattr(lane_module, "FIRST_BACKOFF_S", 0.00005)
    monkeypatch.setattr(lane_module, "LAST_BACKOFF_S", 0.005)


COMPUTE_S = 0.02


class Overlapping:
    """A processor that reads ahead as the worker does: what is admitted must follow what was admitted before.

    gate: what each batch waits for between its two halves. fail: raises to make a batch fail, before or after it.
    """

    def __init__(self, gate: asyncio.Event | None = None, rng: random.Random | None = None) -> None:
        self.stored: list[int] = []
        self.buried: list[int] = []
        self.ahead = 0
        self.on_their_way: list[asyncio.Event] = []
        self.most = 0
        self.broken = False
        self.poison: set[int] = set()
        self.away = 0.0
        self._gate, self._rng = gate, rng or random.Random(0)

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
        if self.broken:
            raise GivenUp
        found = offsets(chunks)
        assert found[0] == self.ahead, "a batch does not follow the one before it"
        before, over = list(self.on_their_way), asyncio.Event()
        self.on_their_way.append(over)
        self.most = max(self.most, len(self.on_their_way))
        self.ahead = found[-1] + 1
        try:
            await self._step(found)
            go_on()
            if self._gate is not None:
                await self._gate.wait()
            await self._step(found)
            if before:
                await before[-1].wait()
            if self.broken:
                raise GivenUp
            await self._step(found)
            self.stored += found
        except BaseException:
            self.broken = True
            raise
        finally:
            self.on_their_way.remove(over)
            over.set()

    async def bury(self, part: Chunk, error: Exception) -> None:
        assert part.offset == self.ahead == len(self.stored)
        self.buried.append(part.offset)
        self.stored.append(part.offset)
        self.ahead += 1

    def restart(self) -> None:
        assert not self.on_their_way, "a batch is still on its way"
        self.broken, self.ahead = False, len(self.stored)

    async def _step(self, found: list[int]) -> None:
        await asyncio.sleep(self._rng.choice([0, 0, 0.0005]))
        if self._rng.random() < self.away:
            raise RedisConnectionError("away")
        if self.poison & set(found) and self._rng.random() < 0.5:
            raise ValueError(f"poison {self.poison & set(found)}")


def test_batches_overlap_up_to_the_depth() -> None:
    """Batches that may go on are begun while others are on their way, and no more of them than the depth."""

    async def test() -> None:
        gate = asyncio.Event()
        processor = Overlapping(gate)
        async with Running(processor, batch_max=4) as lane:
            feeding = asyncio.create_task(_feed(lane, 4 * DEPTH + 8, 2))
            await until(lambda: len(processor.on_their_way) == DEPTH)
            await asyncio.sleep(0.02)
            assert processor.most == DEPTH
            gate.set()
            await feeding
            await until(lambda: len(processor.stored) == 4 * DEPTH + 8)
        assert processor.stored == list(range(4 * DEPTH + 8))
        assert lane.fatal == []

    run(test())


def test_stopping_finishes_all_batches_on_their_way() -> None:
    """What has begun is stored, what waits is not begun."""

    async def test() -> None:
        gate = asyncio.Event()
        processor = Overlapping(gate)
        async with Running(processor, batch_max=2) as lane:
            feeding = asyncio.create_task(_feed(lane, 40, 2))
            await until(lambda: len(processor.on_their_way) == 3)
            await lane.lane.stop()
            gate.set()
            await feeding
        assert processor.stored == list(range(6))
        assert processor.on_their_way == []

    run(test())


def test_a_state_error_behind_others_stops_the_worker_after_them() -> None:
    """The batches before the one whose state cannot be read are stored; nothing of it is."""

    async def test() -> None:
        class Unreadable(Overlapping):
            async def _step(self, found: list[int]) -> None:
                if found[0] >= 4:
                    raise StateError("another layout")
                await super()._step(found)

        processor = Unreadable()
        async with Running(processor, batch_max=2) as lane:
            feeding = asyncio.create_task(_feed(lane, 12, 2))
            await until(lambda: bool(lane.fatal))
            feeding.cancel()
        assert [type(e) for e in lane.fatal] == [StateError]
        assert processor.stored == [0, 1, 2, 3]

    run(test())


@given(seed=st.integers(0, 2**32), poison=st.sets(st.integers(0, 59), max_size=5), away=st.sampled_from([0, 0.02, 0.2]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_record_once_and_in_order(seed: int, poison: set[int], away: float) -> None:
    """Batches fail at any step, with others before and behind them: nothing is lost, doubled or out of order."""

    async def test() -> None:
        rng = random.Random(seed)
        processor = Overlapping(rng=rng)
        processor.poison, processor.away = poison, away
        async with Running(processor, batch_max=rng.randint(2, 12)) as lane:
            feeding = asyncio.create_task(_feed(lane, 60, rng.randint(1, 7)))
            await until(lambda: len(processor.stored) >= 60 or bool(lane.fatal))
            await feeding
        assert lane.fatal == []
        assert processor.stored == list(range(60))
        assert set(processor.buried) <= poison

    run(test())


async def _feed(lane: Running, count: int, size: int) -> None:
    for first in range(0, count, size):
        await lane.lane.put(chunk(first, min(size, count - first)))
        await asyncio.sleep(0)


def test_a_stall_at_the_end_does_not_make_batches_look_quick() -> None:
    """Batches that were all held up and end at once took at least as long as each took to compute."""
    took_s: list[float] = []

    class Stalled(Overlapping):
        async def _step(self, found: list[int]) -> None:
            if found[-1] + 1 == self.ahead and self._gate is not None and not self._gate.is_set():
                await asyncio.sleep(COMPUTE_S)

    async def test() -> None:
        gate = asyncio.Event()
        processor = Stalled(gate)
        async with Running(processor) as lane:
            size = lane.lane.size
            size.observe = lambda _, seconds: took_s.append(seconds)  # type: ignore[method-assign]
            for number in range(4):
                await lane.lane.put(chunk(number * size.limit, size.limit))
            await until(lambda: len(processor.on_their_way) == 4)
            await asyncio.sleep(2 * COMPUTE_S)
            gate.set()
            await until(lambda: len(took_s) == 4)

    run(test())
    assert min(took_s) >= 0.9 * COMPUTE_S
