"""Batches one at a time and in order; what fails is tried again, cut up, buried, or stops the worker."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import KafkaConnectionError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ConnectionError as RedisConnectionError

from models.errors import LeptonError, StateError
from stream import lane as lane_module
from stream import metrics
from stream.batching import BatchSize
from stream.lane import POISON_LIMIT, GoOn
from stream.transport import Chunk
from tests.stream.recorder import TEN_SECONDS, Recorder, Running, chunk, run, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoffs of a thousandth of their length."""
    monkeypatch.setattr(lane_module, "FIRST_BACKOFF_S", 0.00005)
    monkeypatch.setattr(lane_module, "LAST_BACKOFF_S", 0.005)


def test_chunks_that_wait_share_a_batch() -> None:
    """What is ready goes together, in order, up to the size of a batch."""

    async def test() -> None:
        recorder = Recorder()
        lane = Running(recorder, batch_max=8)
        for first, count in ((0, 3), (3, 3), (6, 3), (9, 1)):
            await lane.lane.put(chunk(first, count))
        async with lane:
            await until(lambda: len(recorder.order) == 10)
        assert recorder.batches == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]

    run(test())


def test_chunks_of_one_fetch_come_together() -> None:
    """A few records wait a moment for company, and no longer: the last ones are not left lying."""

    async def test() -> None:
        recorder = Recorder()
        async with Running(recorder, batch_max=8) as lane:
            for first in (0, 2, 4):
                await lane.lane.put(chunk(first, 2))
                await asyncio.sleep(0)
            await until(lambda: len(recorder.order) == 6)
            await lane.lane.put(chunk(6, 1))
            await until(lambda: len(recorder.order) == 7)
        assert recorder.batches == [[0, 1, 2, 3, 4, 5], [6]]

    run(test())


def test_enough_records_wait_for_nobody() -> None:
    """A chunk that is a batch by itself begins at once."""

    async def test() -> None:
        recorder = Recorder()
        size = BatchSize(TEN_SECONDS)
        size.gather_s = TEN_SECONDS
        lane = Running(recorder)
        lane.lane.size = size
        async with lane:
            await lane.lane.put(chunk(0, size.enough))
            await until(lambda: len(recorder.order) == size.enough)

    run(test())


def test_a_chunk_larger_than_a_batch_is_cut() -> None:
    """A batch has no more records than it may have, whatever came in one chunk."""

    async def test() -> None:
        recorder = Recorder()
        async with Running(recorder, batch_max=4) as lane:
            await lane.lane.put(chunk(0, 11))
            await until(lambda: len(recorder.order) == 11)
        assert recorder.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]

    run(test())


def test_a_full_lane_makes_the_caller_wait() -> None:
    """With two batches' worth waiting `put` returns only when there is room again, and loses nothing."""

    async def test() -> None:
        gate = asyncio.Event()

        class Gated(Recorder):
            async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
                await gate.wait()
                await super().process(chunks, go_on)

        recorder = Gated()
        async with Running(recorder, batch_max=4) as lane:
            put: list[int] = []

            async def feed() -> None:
                for first in range(0, 40, 2):
                    await lane.lane.put(chunk(first, 2))
                    put.append(first)

            feeding = asyncio.create_task(feed())
            await asyncio.sleep(0.05)
            assert len(put) < 20 / 2, "the rest waits"
            stuck = len(put)
            await asyncio.sleep(0.05)
            assert len(put) == stuck
            gate.set()
            await feeding
            await until(lambda: len(recorder.order) == 40)
        assert recorder.order == list(range(40))

    run(test())


@pytest.mark.parametrize(
    "error",
    [RedisConnectionError("away"), KafkaConnectionError("away"), OSError("away"), TimeoutError(), MemoryError()],
)
def test_while_a_server_is_away_a_batch_is_tried_again(error: Exception) -> None:
    """As often as it takes, whole, before anything after it; nothing is buried, nobody stops."""

    async def test() -> None:
        left = 12

        def fail(_: list[int]) -> None:
            nonlocal left
            left -= 1
            if left >= 0:
                raise error

        recorder = Recorder(fail)
        counter = metrics.RETRIES.labels("test", type(error).__name__)
        before = counter._value.get()
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 5))
            await until(lambda: len(recorder.attempts) > 1)
            await lane.lane.put(chunk(5, 2))
            await until(lambda: len(recorder.order) == 7)
            assert lane.fatal == []
        assert recorder.attempts == [[0, 1, 2, 3, 4]] * 13 + [[5, 6]]
        assert recorder.buried == []
        assert counter._value.get() == before + 12

    run(test())


def test_backoff_grows_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wait is twice the one before, up to the last one, so a server that comes back is not stormed."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds:
            waits.append(seconds)
        await sleep(0)

    async def test() -> None:
        def fail(_: list[int]) -> None:
            if len(waits) < 9:
                raise RedisConnectionError("away")

        recorder = Recorder(fail)
        lane = Running(recorder)
        await lane.lane.put(chunk(0, 1))
        monkeypatch.setattr(asyncio, "sleep", noted)
        async with lane:
            while not recorder.order:
                await sleep(0.001)

    run(test())
    expected = [min(0.00005 * 2**i, 0.005) for i in range(9)]
    assert waits == pytest.approx(expected)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    poison=st.sets(st.integers(0, 45), max_size=12),
    away=st.sets(st.integers(0, 30), max_size=8),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_record_that_breaks_a_batch_is_buried_alone(sizes: list[int], poison: set[int], away: set[int]) -> None:
    """Whichever records fail, and whenever Redis is away, every other record is processed once, and order is kept."""

    async def test() -> None:
        total = sum(sizes)

        def fail(found: list[int]) -> None:
            if len(recorder.attempts) in away:
                raise RedisConnectionError("away")
            if poison & set(found):
                raise ValueError(f"poison {poison & set(found)}")

        recorder = Recorder(fail)
        lane = Running(recorder, batch_max=12)
        async with lane:
            first = 0
            for size in sizes:
                await lane.lane.put(chunk(first, size))
                first += size
            await until(lambda: len(recorder.order) >= total or bool(lane.fatal))
        assert lane.fatal == []
        assert recorder.order == list(range(total))
        assert [offset for offset, _ in recorder.buried] == sorted(poison & set(range(total)))
        assert all(f"{{{offset}}}" in error for offset, error in recorder.buried), "with its own error"

    run(test())


def test_burying_waits_for_the_broker() -> None:
    """A dead letter that cannot be sent is sent again, so no record disappears between two topics."""

    async def test() -> None:
        class Reluctant(Recorder):
            tries = 0

            async def bury(self, chunk: Chunk, error: Exception) -> None:
                self.tries += 1
                if self.tries < 5:
                    raise KafkaConnectionError("away")
                await super().bury(chunk, error)

        def fail(found: list[int]) -> None:
            if 2 in found:
                raise KeyError("bad")

        recorder = Reluctant(fail)
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 4))
            await until(lambda: len(recorder.order) == 4)
        assert recorder.order == [0, 1, 2, 3]
        assert recorder.tries == 5
        assert lane.fatal == []

    run(test())


def test_when_everything_fails_the_worker_stops() -> None:
    """So many failures in a row are no bad records: better to stop than to empty a topic into the dead letters."""

    async def test() -> None:
        def fail(_: list[int]) -> None:
            raise RuntimeError("a bug")

        recorder = Recorder(fail)
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 3 * POISON_LIMIT))
            await until(lambda: bool(lane.fatal))
        (error,) = lane.fatal
        assert isinstance(error, LeptonError)
        assert "a bug" in str(error)
        assert [offset for offset, _ in recorder.buried] == list(range(POISON_LIMIT))

    run(test())


def test_bad_records_among_good_ones_never_stop_the_worker() -> None:
    """Failures that are not in a row may be any number."""

    async def test() -> None:
        def fail(found: list[int]) -> None:
            if any(o % 2 for o in found):
                raise RuntimeError("odd")

        recorder = Recorder(fail)
        count = 4 * POISON_LIMIT
        async with Running(recorder, batch_max=count) as lane:
            await lane.lane.put(chunk(0, count))
            await until(lambda: len(recorder.order) == count or bool(lane.fatal))
        assert lane.fatal == []
        assert len(recorder.buried) == count // 2

    run(test())


def test_a_state_of_another_layout_stops_the_worker() -> None:
    """Every record would fail, so none is buried and none is tried again."""

    async def test() -> None:
        def fail(_: list[int]) -> None:
            raise StateError("another layout")

        recorder = Recorder(fail)
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 5))
            await until(lambda: bool(lane.fatal))
        assert [type(e) for e in lane.fatal] == [StateError]
        assert (recorder.buried, len(recorder.attempts)) == ([], 1)

    run(test())


def test_a_state_error_while_cutting_stops_the_worker() -> None:
    """Also when it appears in the middle of looking for a bad record."""

    async def test() -> None:
        def fail(found: list[int]) -> None:
            raise ValueError("bad") if len(found) > 2 else StateError("another layout")

        recorder = Recorder(fail)
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 8))
            await until(lambda: bool(lane.fatal))
        assert [type(e) for e in lane.fatal] == [StateError]
        assert recorder.buried == []

    run(test())
