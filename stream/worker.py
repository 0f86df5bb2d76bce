"""The road of an event, from a fetched chunk to a committed position.

What is repeated and what is lost if the process dies on each line:

    1 fetch     chunks wait in memory             repeated: nothing   lost: nothing, they are fetched again
    2 decode    bytes → columns                   repeated: nothing   lost: nothing
    3 load      positions, states, profiles       repeated: nothing   lost: nothing
    4 features  windows, next states              repeated: nothing   lost: nothing
    5 score     one detector call                 repeated: nothing   lost: nothing
    6 decide    alerts and their reasons          repeated: nothing   lost: nothing
    7 produce   dead letters, scores and alerts   repeated: those that were sent, with the same ids and
                acknowledged                      content             lost: nothing
    8 store     states, position and outbox in    after it nothing is repeated; an outbox that was not
                one fenced transaction, then the  applied is applied by the partition's next owner
                outbox is applied                 lost: nothing
    9 report    Kafka's offset, metrics           the offset is behind for a while   lost: nothing

Batches overlap: while one is scored, the next is loaded and the one before is acknowledged or stored. Each step
takes batches in their order, and a batch reads what those before it have not stored yet from memory
(`stream.flight`). A batch that fails takes those behind it with it: they were built on it.

Blocking work runs in threads, which the event loop only waits for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any

import numpy as np
from faust.types import TP

from models.codec import BadRecord, Codec
from stream import metrics
from stream.champion import Champion
from stream.delivery import Admitted, Blocking, Delivery, Moved
from stream.flight import Flight, overlay
from stream.lane import DEPTH, GivenUp, GoOn
from stream.observe import observe_many
from stream.publisher import Publisher
from stream.rendering import render
from stream.scoring import Share, decode_batch
from stream.stepping import advance, writes_of
from stream.store.keys import Position
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore, Write
from stream.transport import Chunk

__all__ = ["EventProcessor"]

AT_ONCE = 256  # records of a batch that is scored where it was loaded: handing it over costs more than waiting
REMEMBERED = 2 * DEPTH  # acknowledged publications of a partition; more than can be on their way


class EventProcessor:
    """Runs the nine steps for chunks of `<pipeline>.events`."""

    def __init__(
        self,
        codec: Codec,
        store: RedisStore,
        delivery: Delivery,
        publisher: Publisher,
        champion: Champion,
        blocking: Blocking,
    ) -> None:
        self.codec, self.store, self.delivery = codec, store, delivery
        self.publisher, self.champion, self.blocking = publisher, champion, blocking
        self.pipeline = codec.pipeline
        self._name = codec.pipeline.name
        self._dead_letters = codec.pipeline.topic("dead-letter")
        self._flights: list[Flight] = []
        self._broken = False  # a batch has failed: none may begin or go on until `restart`
        self._scoring, self._sending = asyncio.Lock(), asyncio.Lock()
        # a load knows which batches are stored, because no store runs beside it
        self._redis = threading.Lock()
        self._acknowledged: dict[TP, deque[Any]] = {}  # what was, of each partition

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:
        """One batch. Raises what made it impossible; then nothing of it is stored."""
        if self._broken:
            raise GivenUp
        admitted = await self.delivery.admit(chunks)
        scorer = self.champion.scorer
        assert scorer is not None  # the lane waits for the first model
        if not admitted:
            return
        flight = Flight(scorer, list(self._flights))
        self._flights.append(flight)
        try:
            await self._prepare(flight, admitted)
            if flight.parts:
                await self._fly(flight, go_on)
        except BaseException:
            self._broken = True
            raise
        finally:
            self._flights.remove(flight)
            flight.before = ()  # else each would keep all that ever were
            flight.over.set()

    def restart(self) -> None:
        """After a failure, when all batches on their way have ended: go on from what is stored."""
        assert not self._flights
        self._broken = False
        self.delivery.restart()

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        """The one record of this chunk breaks the worker: dead-letter it and move past it."""
        for tp, admitted in (await self.delivery.admit([chunk])).items():
            bad = [BadRecord(0, "internal", repr(error))]
            pending = await self.publisher.send_dead_letters(self._dead_letters, tp, admitted.records, bad)
            await self.publisher.acknowledged(pending)
            held = admitted.held or Position()
            position = Position(admitted.records[-1].offset + 1, held.clock_ms, held.outbox_seq + 1)
            tag, nothing = self.delivery.tag_of(tp.partition), Outbox(position.outbox_seq, [])
            stored = await self.blocking(self._write, [Write(tag, admitted.held, position, nothing)])
            await self._settle({tp: position}, stored)
            metrics.DEAD_LETTERS.labels(self._name, tp.topic, "internal").inc()

    async def _prepare(self, flight: Flight, admitted: dict[TP, Admitted]) -> None:
        """Steps 2 and 3, of a small batch also those to 6; then the next one knows where this one will end."""
        while admitted:
            try:
                await self.blocking(self._steps_2_and_3, flight, admitted)
            except Moved as moved:
                if flight.before:  # they end first, and fail or not; then this one is tried by itself
                    raise GivenUp from moved
                await self.delivery.rewind(moved.tp, "moved")
                admitted = {tp: part for tp, part in admitted.items() if tp != moved.tp}
                flight.batch = flight.messages = None
            else:
                break
        for tp, part in flight.parts.items():
            if tp in self.delivery.sources:
                self.delivery.sources[tp].expect(part.position)

    async def _fly(self, flight: Flight, go_on: GoOn) -> None:
        """Steps 4 to 9, each in the order of the batches."""
        async with self._scoring:
            go_on(full=True)
            self._check()
            if flight.messages is None:
                await self.blocking(self._steps_4_to_6, flight)
                self._check()
            go_on()
        async with self._sending:
            self._check()
            pending = await self._send(flight)
        await self._acknowledgements(flight, pending)
        acknowledged_ms = time.time() * 1000
        if flight.before:
            await flight.before[-1].over.wait()
        self._check()
        with self._stage("store"):
            stored = await self.blocking(self._write_batch, flight)
        await self._settle({tp: part.position for tp, part in flight.parts.items()}, stored)
        self._report(flight, acknowledged_ms)

    def _check(self) -> None:
        if self._broken:
            raise GivenUp

    def _steps_2_and_3(self, flight: Flight, admitted: dict[TP, Admitted]) -> None:
        with self._stage("decode"):
            shares = {tp: Share(self.delivery.tag_of(tp.partition), a.records, a.held) for tp, a in admitted.items()}
            batch = flight.batch = decode_batch(self.codec, shares)
        with self._stage("load"):
            entities = {part.tag: batch.entities[part.entities] for part in batch.parts.values()}
            with self._redis, metrics.REDIS.labels(self._name, "load").time():
                flight.before = [f for f in flight.before if not f.stored]
                flight.loaded = self.store.load(entities, batch.profile_keys)
        for tp, part in batch.parts.items():
            position = flight.loaded.positions[part.tag]
            if position != flight.expected(tp):
                raise Moved(tp, position)
        # In order all the same: those before have been scored, and the lane begins none behind before `go_on`.
        if len(batch.records) <= AT_ONCE and all(earlier.messages is not None for earlier in flight.before):
            self._steps_4_to_6(flight)

    def _steps_4_to_6(self, flight: Flight) -> None:
        scorer, batch = flight.scorer, flight.batch
        assert batch is not None
        assert flight.loaded is not None
        with self._stage("features"):
            overlay(flight, self.pipeline.profiles)
            advance(self.codec.layout, batch, flight.loaded)
            flight.loaded = None  # as large as the batch, and not needed any more
        assert batch.outcome is not None
        with self._stage("score"):
            scores = scorer.score(batch.outcome.encoded)
        with self._stage("decide"):
            flight.messages = render(self.codec, batch, scorer, scores, scorer.bundle.info.architecture)

    async def _send(self, flight: Flight) -> list[Any]:
        """Step 7: queue what is to be published; returns what to await. What was acknowledged before the store failed
        is not sent again: a Redis that refuses writes for hours must not flood downstream with repeats."""
        pending: list[Any] = []
        messages = flight.messages
        assert flight.batch is not None
        assert messages is not None
        for tp, part in flight.parts.items():
            if flight.publication(tp) in self._acknowledged.get(tp, ()):
                continue
            if bad := flight.batch.bad(part):
                records = flight.batch.records[part.records]
                pending += await self.publisher.send_dead_letters(self._dead_letters, tp, records, bad)
            if scores := messages.scores[part.windows]:
                pending += await self.publisher.send_batch(self.pipeline.topic("scores"), tp.partition, scores)
            for key, value in messages.alerts_of(part):
                pending.append(await self.publisher.send(self.pipeline.topic("alerts"), key, value))
        return pending

    async def _acknowledgements(self, flight: Flight, pending: list[Any]) -> None:
        with self._stage("produce"):
            await self.publisher.acknowledged(pending)
        for tp in flight.parts:
            self._acknowledged.setdefault(tp, deque(maxlen=REMEMBERED)).append(flight.publication(tp))

    def _write_batch(self, flight: Flight) -> list[bool]:
        """Step 8."""
        assert flight.batch is not None
        return self._write(writes_of(flight.batch, self.store.formats), flight)

    def _write(self, writes: list[Write], flight: Flight | None = None) -> list[bool]:
        """One round trip for the transactions of all partitions, one for the outboxes of those that went through."""
        with self._redis:
            with metrics.REDIS.labels(self._name, "store").time():
                stored = self.store.store(writes)
            with metrics.REDIS.labels(self._name, "apply").time():
                self.store.apply([(w.tag, w.outbox) for w, done in zip(writes, stored, strict=True) if done])
            if flight is not None:
                flight.stored = True
        return stored

    async def _settle(self, positions: dict[TP, Position], stored: list[bool]) -> None:
        """Note what is stored; a partition whose write was fenced off is set back, and with it what was built on it."""
        for (tp, position), done in zip(positions.items(), stored, strict=True):
            source = self.delivery.sources.get(tp)
            if not done:
                self._broken = True
                metrics.FENCED.labels(self._name).inc()
                await self.delivery.rewind(tp, "fenced")
            elif source is not None:
                source.advance(position)

    def _report(self, flight: Flight, acknowledged_ms: float) -> None:
        batch, messages = flight.batch, flight.messages
        assert batch is not None
        assert batch.outcome is not None
        assert messages is not None
        waited_ms = np.maximum(acknowledged_ms - batch.append_M, 0)
        for tp, part in batch.parts.items():
            applied = part.windows.stop - part.windows.start
            metrics.EVENTS.labels(self._name, str(tp.partition)).inc(applied)
            for refused in batch.bad(part):
                metrics.DEAD_LETTERS.labels(self._name, tp.topic, refused.reason).inc()
            metrics.FRESHNESS.labels(tp.topic, str(tp.partition)).set(waited_ms[part.records.stop - 1] / 1000)
        metrics.DUPLICATES.labels(self._name).inc(len(batch.clock_M) - len(batch.outcome.applied_A))
        metrics.LATE.labels(self._name).inc(int(batch.outcome.late_A.sum()))
        metrics.ALERTS.labels(self._name, flight.scorer.version).inc(len(messages.alerts))
        observe_many(metrics.LATENCY.labels(self._name), waited_ms / 1000)
        metrics.STATE_BYTES.labels(self._name).set(self.codec.layout.state_dtype.itemsize)
        metrics.BATCH.labels(self._name).observe(len(batch.records))

    def _stage(self, name: str) -> Any:
        return metrics.STAGE.labels(self._name, name).time()
