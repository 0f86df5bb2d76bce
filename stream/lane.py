"""A lane: chunks of one kind of topic go in, batches come out to a processor, in order.

A processor that lets the lane go on has several batches on their way at once; one that does not gets them one at a
time. When a batch fails, those behind it are given up, and all of them are processed again one after another.

An exception never leaves a lane, except a fatal one that stops the worker. While Redis or the broker is away a
batch is tried again, with backoff, for as long as it takes. A batch that fails for any other reason is cut in
halves until the record that breaks it is alone; that record goes to the dead-letter topic.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from models.errors import LeptonError, StateError
from stream import metrics
from stream.batching import BatchSize
from stream.transport import Chunk

__all__ = ["GivenUp", "Lane", "Processor"]

log = structlog.get_logger()

AWAY = (RedisError, KafkaError, OSError, TimeoutError, MemoryError)  # not the record's fault
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.05, 5.0
POISON_LIMIT = 16  # so many records in a row that fail alone are no bad records: something else is wrong
DEPTH = 6  # batches on their way: one each for load, compute and store, the others wait for acknowledgements


class GoOn(Protocol):
    """Called when the next batch may begin. full: only one that is as large as a batch may be."""

    def __call__(self, *, full: bool = False) -> None: ...


class GivenUp(Exception):  # noqa: N818, a turn of events more than an error
    """A batch that was built on one that failed, or on a position that has moved; nothing of it is stored."""


class Processor(Protocol):
    """What a lane drives."""

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
        """Process and store a batch; nothing is stored when it raises.

        go_on: what waits grows into a larger batch, which is cheaper, until this one's place in the worker is free;
        a full batch need not wait for that. Batches are stored in the order they began, and raise GivenUp when one
        before them failed; no batch begins after a failure until `restart`.
        """

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        """Dead-letter the one record of a chunk and move past it."""

    def restart(self) -> None:
        """Nothing is on its way: forget what was read ahead."""


def _alone(*, full: bool = False) -> None:
    """Of a batch with nothing beside it."""


class _Flight:
    """A batch on its way."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self.chunks = chunks
        self.size = sum(map(len, chunks))
        self.began_s = time.monotonic()
        self.next_may_begin = self.full_may_begin = False
        self.computed_s: float | None = None  # when the next one might begin, however small
        self.task: asyncio.Task[None] | None = None

    @property
    def done(self) -> bool:
        return self.task is not None and self.task.done()

    @property
    def error(self) -> BaseException | None:
        return self.task.exception() if self.task is not None and self.done else None


class Lane:
    """Takes chunks until it holds two batches' worth, then lets the caller wait: that is back-pressure."""

    def __init__(
        self,
        name: str,
        processor: Processor,
        size: BatchSize,
        fatal: Callable[[BaseException], Awaitable[None]],
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.name, self.processor, self.size = name, processor, size
        self._fatal, self._ready = fatal, ready
        self._waiting: deque[Chunk] = deque()
        self._held = 0  # records that wait
        self._gathered = False  # those that wait have waited long enough for company
        self._flights: deque[_Flight] = deque()
        self._pulse = asyncio.Event()
        self._stopping = False
        self._poisoned = 0
        self._ended_s = self._computed_s = 0.0  # when the last batch ended, and was computed

    async def put(self, chunk: Chunk) -> None:
        """Hand over a chunk; returns when there is room."""
        await self._until(lambda: self._held < 2 * self.size.limit or self._stopping)
        if not self._stopping:  # what is not taken is fetched again
            if not self._waiting:
                self._gathered = False
                asyncio.get_running_loop().call_later(self.size.gather_s, self._gather)
            self._waiting.append(chunk)
            self._held += len(chunk)
            if self._held >= self.size.enough:
                self._pulse.set()

    def _gather(self) -> None:
        self._gathered = True
        self._pulse.set()

    async def run(self) -> None:
        """Process batches until `stop`; ends when all that are on their way have ended."""
        try:
            if self._ready is not None:
                await self._ready_or_stopping(self._ready)
            while not self._stopping:
                if self._failed:
                    await self._recover()
                elif self._may_begin:
                    self._begin(self._take())
                else:
                    await self._until(lambda: self._stopping or self._failed or self._may_begin)
            await self._landed()
        except asyncio.CancelledError:
            for flight in self._flights:
                if flight.task is not None:
                    flight.task.cancel()
            raise
        except Exception as error:
            log.exception("lane failed", lane=self.name)
            await self._fatal(error)

    async def stop(self) -> None:
        """Take nothing more; `run` returns after the batches in hand."""
        self._stopping = True
        self._waiting.clear()
        self._pulse.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._pulse.clear()
            await self._pulse.wait()

    async def _ready_or_stopping(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Whichever comes first; a worker that still has no model must not keep who stops it waiting."""
        waits = asyncio.ensure_future(ready()), asyncio.ensure_future(self._until(lambda: self._stopping))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if waits[0].done():
                await waits[0]  # raises what it failed with
        finally:
            for wait in waits:
                wait.cancel()

    @property
    def _failed(self) -> bool:
        """The oldest batch has failed. One behind it may have failed sooner, and waits for its turn."""
        return bool(self._flights) and self._flights[0].error is not None

    @property
    def _may_begin(self) -> bool:
        if not self._waiting or len(self._flights) >= DEPTH:
            return False
        if self._held < self.size.enough and not self._gathered:
            return False
        if not self._flights or self._flights[-1].next_may_begin or self._flights[-1].done:
            return True
        return self._flights[-1].full_may_begin and self._held >= self.size.limit

    def _take(self) -> list[Chunk]:
        """What waits, up to a batch; at least one record."""
        limit, batch, size = self.size.limit, [], 0
        while self._waiting and size < limit:
            chunk = self._waiting.popleft()
            if size + len(chunk) > limit:
                chunk, rest = chunk.split(limit - size)
                self._waiting.appendleft(rest)
            batch.append(chunk)
            size += len(chunk)
        self._held -= size
        self._pulse.set()
        return batch

    def _begin(self, chunks: list[Chunk]) -> None:
        flight = _Flight(chunks)

        def go_on(*, full: bool = False) -> None:
            flight.full_may_begin = True
            if not full and not flight.next_may_begin:
                flight.next_may_begin, flight.computed_s = True, time.monotonic()
            self._pulse.set()

        flight.task = asyncio.create_task(self.processor.process(chunks, go_on))
        flight.task.add_done_callback(lambda _: self._ended())
        self._flights.append(flight)

    def _ended(self) -> None:
        """Forget the batches that went well."""
        while self._flights and self._flights[0].done and self._flights[0].error is None:
            flight = self._flights.popleft()
            self.size.observe(flight.size, self._own_time_s(flight))
            self._poisoned = 0
        self._pulse.set()

    def _own_time_s(self, flight: _Flight) -> float:
        """How long a batch held up the one behind it: in computing, or at the end, whichever was longer. After a stall
        several end at once: then the second says nothing."""
        now_s = time.monotonic()
        took_s = now_s - max(flight.began_s, self._ended_s)
        self._ended_s = now_s
        if flight.computed_s is not None:
            took_s = max(took_s, flight.computed_s - max(flight.began_s, self._computed_s))
            self._computed_s = flight.computed_s
        return took_s

    async def _landed(self) -> None:
        """Wait for what is on its way. What fails now comes again to the next owner."""
        tasks = [flight.task for flight in self._flights if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks)
        for task in tasks:
            if not isinstance(task.exception(), GivenUp | None):
                log.warning("batch left to the next owner", lane=self.name, error=repr(task.exception())[:200])

    async def _recover(self) -> None:
        """The oldest batch has failed: it and those behind it, in the same pieces, one after another."""
        await asyncio.wait([flight.task for flight in self._flights if flight.task is not None])
        batches = [(flight.chunks, flight.error) for flight in self._flights]
        self._flights.clear()
        self.processor.restart()
        for chunks, error in batches:
            await self._attempt(chunks, error)

    async def _attempt(self, batch: list[Chunk], failed: BaseException | None = None) -> None:
        """Process a batch with nothing else on its way. failed: what it has failed with before."""
        try:
            await self._until_back(lambda: self.processor.process(batch, _alone), failed)
        except StateError:
            raise  # every record of this pipeline would fail: stop, and say why
        except Exception as error:
            self.processor.restart()
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

    async def _until_back(self, work: Callable[[], Awaitable[None]], failed: BaseException | None = None) -> None:
        """Do it, again and again while a server is away and the lane is not stopped; other errors are raised."""
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping:
            try:
                if failed is not None and not isinstance(failed, GivenUp):
                    raise failed
                await work()
                return
            except (*AWAY, GivenUp) as error:
                failed = None
                if not isinstance(error, GivenUp):
                    await self._back_off(error, backoff_s)
                    backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
                self.processor.restart()

    async def _back_off(self, error: Exception, seconds: float) -> None:
        metrics.RETRIES.labels(self.name, type(error).__name__).inc()
        log.warning("batch will be tried again", lane=self.name, error=str(error)[:200], backoff_s=seconds)
        await asyncio.sleep(seconds)
