"""A lane: chunks of one kind of topic go in, batches come out to a processor, one at a time and in order.

An exception never leaves a lane, except a fatal one that stops the worker. While Redis or the broker is away a
batch is tried again, with backoff, for as long as it takes. A batch that fails for any other reason is cut in
halves until the record that breaks it is alone; that record goes to the dead-letter topic.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from models.errors import LeptonError, StateError
from stream import metrics
from stream.transport import Chunk

__all__ = ["Lane", "Processor"]

log = structlog.get_logger()

AWAY = (RedisError, KafkaError, OSError, TimeoutError, MemoryError)  # not the record's fault
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
POISON_LIMIT = 16  # so many records in a row that fail alone are no bad records: something else is wrong


class Processor(Protocol):
    """What a lane drives."""

    async def process(self, chunks: list[Chunk]) -> None:
        """Process and store a batch; nothing is stored when it raises."""

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        """Dead-letter the one record of a chunk and move past it."""


class Lane:
    """Takes chunks until it holds two batches' worth, then lets the caller wait: that is back-pressure."""

    def __init__(
        self,
        name: str,
        processor: Processor,
        batch_max: int,
        fatal: Callable[[BaseException], Awaitable[None]],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name, self.processor, self.batch_max = name, processor, batch_max
        self._fatal, self._ready = fatal, ready
        self._waiting: deque[Chunk] = deque()
        self._size = 0
        self._changed = asyncio.Condition()
        self._stopping = False
        self._poisoned = 0

    async def put(self, chunk: Chunk) -> None:
        """Hand over a chunk; returns when there is room."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < 2 * self.batch_max or self._stopping)
            if not self._stopping:  # what is not taken is fetched again
                self._waiting.append(chunk)
                self._size += len(chunk)
                self._changed.notify_all()

    async def run(self) -> None:
        """Process batches until `stop`."""
        try:
            if self._ready is not None:
                await self._ready_or_stopping(self._ready)
            while (batch := await self._take()) is not None:
                await self._attempt(batch)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.exception("lane failed", lane=self.name)
            await self._fatal(error)

    async def stop(self) -> None:
        """Take nothing more; `run` returns after the batch in hand."""
        async with self._changed:
            self._stopping = True
            self._waiting.clear()
            self._changed.notify_all()

    async def _ready_or_stopping(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Whichever comes first; a worker that still has no model must not keep who stops it waiting."""
        waits = asyncio.ensure_future(ready()), asyncio.ensure_future(self._until_stopping())
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                await waits[0]  # raises what it failed with
        finally:
            for wait in waits:
                wait.cancel()

    async def _until_stopping(self) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopping)

    async def _take(self) -> list[Chunk] | None:
        """All chunks that wait, up to a batch; at least one. None when stopping."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._waiting) or self._stopping)
            if self._stopping:
                return None
            batch = [self._waiting.popleft()]
            size = len(batch[0])
            while self._waiting and size + len(self._waiting[0]) <= self.batch_max:
                batch.append(self._waiting.popleft())
                size += len(batch[-1])
            self._size -= size
            self._changed.notify_all()
            return batch

    async def _attempt(self, batch: list[Chunk]) -> None:
        try:
            await self._until_back(lambda: self.processor.process(batch))
        except StateError:
            raise  # every record of this pipeline would fail: stop, and say why
        except Exception as error:
            await self._isolate(batch, error)
        else:
            self._poisoned = 0

    async def _isolate(self, batch: list[Chunk], error: Exception) -> None:
        """Find the record that breaks the batch; the others are processed."""
        if len(batch) > 1:
            for chunk in batch:
                await self._attempt([chunk])
        elif len(batch[0]) > 1:
            for half in batch[0].halves():
                await self._attempt([half])
        else:
            self._poisoned += 1
            if self._poisoned > POISON_LIMIT:
                raise LeptonError(f"{self._poisoned} records in a row failed, the last with: {error!r}") from error
            log.error("record dead-lettered", lane=self.name, offset=batch[0].offset, error=repr(error)[:300])
            await self._until_back(lambda: self.processor.bury(batch[0], error))

    async def _until_back(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, again and again while a server is away and the lane is not stopped; other errors are raised."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping:
            try:
                await work()
                return
            except AWAY as error:
                metrics.RETRIES.labels(self.name, type(error).__name__).inc()
                log.warning("batch will be tried again", lane=self.name, error=str(error)[:200], backoff_s=backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
