"""A lane at work on a processor that remembers: what the tests of lanes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from aiokafka.structs import ConsumerRecord
from faust.types import TP

from stream.batching import BatchSize
from stream.lane import GoOn, Lane
from stream.transport import Chunk

__all__ = ["Recorder", "Running", "chunk", "run", "until"]

TEN_SECONDS = 10.0


def chunk(first: int, count: int, partition: int = 0) -> Chunk:
    records = [
        ConsumerRecord("t.events", partition, o, 0, 0, None, None, None, 0, 0, ()) for o in range(first, first + count)
    ]
    return Chunk(TP("t.events", partition), records)


def offsets(chunks: list[Chunk]) -> list[int]:
    return [record.offset for c in chunks for record in c.records]


class Recorder:
    """A processor that remembers what it was given. fail: asked before each batch; raises to make it fail."""

    def __init__(self, fail: Callable[[list[int]], None] = lambda _: None) -> None:
        self.batches: list[list[int]] = []
        self.attempts: list[list[int]] = []
        self.buried: list[tuple[int, str]] = []
        self.order: list[int] = []
        self.running = 0
        self.fail = fail

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
        assert self.running == 0, "two batches at a time"
        self.running += 1
        await asyncio.sleep(0)
        self.running -= 1
        found = offsets(chunks)
        self.attempts.append(found)
        self.fail(found)
        self.batches.append(found)
        self.order += found

    def restart(self) -> None:
        pass

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        assert len(chunk) == 1
        self.buried.append((chunk.offset, repr(error)))
        self.order.append(chunk.offset)


class Running:
    """A lane at work, with the fatal errors it reported."""

    def __init__(self, processor: Any, batch_max: int = 8, ready: Any = None) -> None:
        self.fatal: list[BaseException] = []
        size = BatchSize(TEN_SECONDS, batch_max, batch_max)
        self.lane = Lane("test", processor, size, self._failed, ready)
        self.task: asyncio.Task[None] | None = None

    async def _failed(self, error: BaseException) -> None:
        self.fatal.append(error)

    async def __aenter__(self) -> Running:
        self.task = asyncio.create_task(self.lane.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.task is not None
        await self.lane.stop()
        await asyncio.wait_for(self.task, TEN_SECONDS)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, TEN_SECONDS))


async def until(condition: Callable[[], bool]) -> None:
    """Raises TimeoutError through `run` when it never comes true."""
    while not condition():
        await asyncio.sleep(0.001)
