"""How lanes begin and end, and a lane together with the source that decides what it may process."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from models.errors import LeptonError
from stream import lane as lane_module
from stream.lane import GoOn
from stream.source import Source, Verdict
from stream.store.keys import Position
from stream.transport import Chunk
from tests.stream.recorder import Recorder, Running, chunk, run, until


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoffs of a thousandth of their length."""
    monkeypatch.setattr(lane_module, "FIRST_BACKOFF_S", 0.00005)
    monkeypatch.setattr(lane_module, "LAST_BACKOFF_S", 0.005)


def test_stopping_finishes_the_batch_in_hand() -> None:
    """`run` ends after the batch it has; what waits is left for the next owner, and callers are let go."""

    async def test() -> None:
        started, gate = asyncio.Event(), asyncio.Event()

        class Gated(Recorder):
            async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
                started.set()
                await gate.wait()
                await super().process(chunks, go_on)

        recorder = Gated()
        lane = Running(recorder, batch_max=2)
        async with lane:
            assert lane.task is not None
            await lane.lane.put(chunk(0, 2))
            await started.wait()
            await lane.lane.put(chunk(2, 2))
            await lane.lane.put(chunk(4, 2))
            waiting = asyncio.create_task(lane.lane.put(chunk(6, 2)))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            await lane.lane.stop()
            await waiting
            assert not lane.task.done(), "the batch in hand is not finished"
            gate.set()
            await lane.task
        assert recorder.batches == [[0, 1]]
        await lane.lane.put(chunk(8, 1))
        assert recorder.batches == [[0, 1]]
        assert lane.fatal == []

    run(test())


def test_stopping_ends_the_waiting_for_a_server() -> None:
    """A worker can be stopped while Redis is away; its batch is then nobody's and comes again."""

    async def test() -> None:
        def fail(_: list[int]) -> None:
            raise RedisConnectionError("away")

        recorder = Recorder(fail)
        async with Running(recorder) as lane:
            await lane.lane.put(chunk(0, 2))
            await until(lambda: len(recorder.attempts) > 3)
        assert (recorder.order, recorder.buried, lane.fatal) == ([], [], [])

    run(test())


def test_nothing_is_processed_before_it_is_ready() -> None:
    """A lane waits for its model; a failure of that is fatal."""

    async def test() -> None:
        model = asyncio.Event()

        async def ready() -> None:
            await model.wait()

        recorder = Recorder()
        async with Running(recorder, ready=ready) as lane:
            await lane.lane.put(chunk(0, 2))
            await asyncio.sleep(0.02)
            assert recorder.attempts == []
            model.set()
            await until(lambda: recorder.order == [0, 1])

        async def broken() -> None:
            raise LeptonError("no model")

        async with Running(Recorder(), ready=broken) as lane:
            await until(lambda: bool(lane.fatal))
        assert str(lane.fatal[0]) == "no model"

    run(test())


def test_stopping_ends_the_waiting_for_a_model() -> None:
    """A worker that never got a model stops at once."""

    async def test() -> None:
        recorder = Recorder()
        async with Running(recorder, ready=asyncio.Event().wait) as lane:
            await lane.lane.put(chunk(0, 2))
            await asyncio.sleep(0.01)
        assert (recorder.attempts, lane.fatal) == ([], [])

    run(test())


def test_being_cancelled_is_no_failure() -> None:
    """Cancelling passes through without a fatal error."""

    async def test() -> None:
        lane = Running(Recorder())
        task = asyncio.create_task(lane.lane.run())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert lane.fatal == []

    run(test())


def test_a_bad_record_behind_a_real_hole_does_not_hold_up_the_partition() -> None:
    """Lane and source together: a compacted topic whose first record after a hole breaks its batch goes on."""

    async def test() -> None:
        source = Source("0")
        source.rewind(Position(10))
        seeks: list[int] = []

        class Positioned(Recorder):
            async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
                for part in self.admitted(chunks):
                    await super().process([part], go_on)
                    source.advance(Position(part.offset + 1))

            async def bury(self, chunk: Chunk, error: Exception) -> None:
                for part in self.admitted([chunk]):
                    await super().bury(part, error)
                    source.advance(Position(part.offset + 1))

            def admitted(self, chunks: list[Chunk]) -> list[Chunk]:
                out = []
                for one in chunks:
                    verdict, part = source.admit(one)
                    if verdict is Verdict.PROCESS:
                        out.append(part)
                    elif verdict is Verdict.SEEK:
                        seeks.append(source.next_offset)
                return out

        def fail(found: list[int]) -> None:
            if 21 in found:
                raise ValueError("bad")

        recorder = Positioned(fail)
        async with Running(recorder) as lane:
            for _ in range(2):  # seen once, looked at again
                await lane.lane.put(chunk(20, 6))
            await until(lambda: len(recorder.order) == 6)
        assert recorder.order == [20, 21, 22, 23, 24, 25]
        assert [offset for offset, _ in recorder.buried] == [21]
        assert seeks == [10]

    run(test())
