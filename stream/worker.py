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

Steps run one after another for a batch of one or more partitions. Blocking work runs in one thread, which the
event loop only waits for; between batches nothing is kept here but positions, and what was last acknowledged.
"""

from __future__ import annotations

import time
from typing import Any

from faust.types import TP

from models.codec import BadRecord, Codec
from models.features.encoded import Encoded
from models.scorer import Scorer, Scores
from stream import metrics
from stream.champion import Champion
from stream.delivery import Admitted, Blocking, Delivery, Moved
from stream.publisher import Publisher
from stream.scoring import Messages, Part, decode_part, render
from stream.stepping import advance, profile_keys_of
from stream.store.keys import Position
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore, Stored, Write
from stream.transport import Chunk

__all__ = ["EventProcessor"]


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
        # of each partition the last that was published: the position it stood at, the next offset, the model
        self._acknowledged: dict[TP, tuple[Position | None, int, str]] = {}
        self._dead_letters = codec.pipeline.topic("dead-letter")

    async def process(self, chunks: list[Chunk]) -> None:
        """One batch. Raises what made it impossible; then nothing of it is stored."""
        admitted = await self.delivery.admit(chunks)
        if admitted:
            await self._process(admitted)

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        """The one record of this chunk breaks the worker: dead-letter it and move past it."""
        for tp, admitted in (await self.delivery.admit([chunk])).items():
            bad = [BadRecord(0, "internal", repr(error))]
            pending = await self.publisher.send_dead_letters(self._dead_letters, tp, admitted.records, bad)
            await self.publisher.acknowledged(pending)
            tag, next_offset = self.delivery.tag_of(tp.partition), admitted.records[-1].offset + 1
            nothing = decode_part(self.codec, tag, [], next_offset, admitted.held)
            await self._store({tp: nothing})
            metrics.DEAD_LETTERS.labels(self._name, tp.topic, "internal").inc()

    async def _process(self, admitted: dict[TP, Admitted]) -> None:
        scorer = self.champion.scorer
        assert scorer is not None  # the lane waits for the first model
        try:
            parts, messages = await self.blocking(self._steps_2_to_6, admitted, scorer)
        except Moved as moved:
            await self.delivery.rewind(moved.tp, "moved")
            rest = {tp: part for tp, part in admitted.items() if tp != moved.tp}
            if rest:
                await self._process(rest)
            return
        await self._produce(parts, messages, scorer.version)
        acknowledged_ms = time.time() * 1000
        await self._store(parts)
        self._report(parts, messages, scorer, acknowledged_ms)
        metrics.BATCH.labels(self._name).observe(sum(len(p.records) for p in parts.values()))

    def _steps_2_to_6(self, admitted: dict[TP, Admitted], scorer: Scorer) -> tuple[dict[TP, Part], dict[TP, Messages]]:
        with self._stage("decode"):
            parts = {tp: self._decode(tp, part) for tp, part in admitted.items()}
        with self._stage("load"):
            stored, places = self._load(parts)
        with self._stage("features"):
            encoded = advance(self.codec.layout, list(parts.values()), stored, places)
        with self._stage("score"):
            scores = scorer.score(encoded)
        with self._stage("decide"):
            messages = {tp: self._render(part, scorer, encoded, scores) for tp, part in parts.items()}
        return parts, messages

    def _decode(self, tp: TP, admitted: Admitted) -> Part:
        tag, records = self.delivery.tag_of(tp.partition), admitted.records
        return decode_part(self.codec, tag, records, records[-1].offset + 1, admitted.held)

    def _load(self, parts: dict[TP, Part]) -> tuple[Stored, dict[str, dict[str, int]]]:
        """One round trip for all partitions. Raises Moved when a position is not the one we know."""
        places = profile_keys_of(list(parts.values()), self.store.formats)
        entities = {part.tag: part.entities for part in parts.values()}
        with metrics.REDIS.labels(self._name, "load").time():
            stored = self.store.load(entities, {name: list(keys) for name, keys in places.items()})
        for tp, part in parts.items():
            if stored.positions[part.tag] != part.held:
                raise Moved(tp, stored.positions[part.tag])
        return stored, places

    def _render(self, part: Part, scorer: Scorer, encoded: Encoded, scores: Scores) -> Messages:
        assert part.outcome is not None
        mine = part.outcome.windows
        own = Scores(scores.score_B[mine], scores.probability_B[mine])
        return render(self.codec, part, scorer, encoded.take(mine), own, scorer.bundle.info.architecture)

    async def _produce(self, parts: dict[TP, Part], messages: dict[TP, Messages], version: str) -> None:
        """Step 7. What was acknowledged before the store failed is not sent again: a Redis that refuses writes for
        hours must not flood downstream with repeats."""
        with self._stage("produce"):
            pending: list[Any] = []
            sent = {tp: (part.held, part.next_offset, version) for tp, part in parts.items()}
            for tp, part in parts.items():
                if self._acknowledged.get(tp) == sent[tp]:
                    continue
                bad = part.decoded.bad
                pending += await self.publisher.send_dead_letters(self._dead_letters, tp, part.records, bad)
                if messages[tp].scores:
                    topic = self.pipeline.topic("scores")
                    pending += await self.publisher.send_batch(topic, tp.partition, messages[tp].scores)
                for key, value in messages[tp].alerts:
                    pending.append(await self.publisher.send(self.pipeline.topic("alerts"), key, value))
            await self.publisher.acknowledged(pending)
            self._acknowledged.update(sent)

    async def _store(self, parts: dict[TP, Part]) -> None:
        """Step 8; a partition whose write is fenced off is set back."""
        with self._stage("store"):
            stored = await self.blocking(self._write, list(parts.values()))
        for (tp, part), done in zip(parts.items(), stored, strict=True):
            source = self.delivery.sources.get(tp)
            if not done:
                metrics.FENCED.labels(self._name).inc()
                await self.delivery.rewind(tp, "fenced")
            elif source is not None:
                source.advance(part.position)

    def _write(self, parts: list[Part]) -> list[bool]:
        """One round trip for the transactions of all partitions, one for the outboxes of those that went through."""
        writes = [self._as_write(part) for part in parts]
        with metrics.REDIS.labels(self._name, "store").time():
            stored = self.store.store(writes)
        with metrics.REDIS.labels(self._name, "apply").time():
            self.store.apply([(w.tag, w.outbox) for w, done in zip(writes, stored, strict=True) if done])
        return stored

    def _as_write(self, part: Part) -> Write:
        outcome, position = part.outcome, part.position
        if outcome is None:
            return Write(part.tag, part.held, position, Outbox(position.outbox_seq, []))
        increments = {name: [added] for name, added in outcome.increments.items()}
        outbox = make_outbox(position.outbox_seq, self.store.formats, part.profile_keys, increments)
        return Write(part.tag, part.held, position, outbox, part.entities, outcome.states_N)

    def _report(
        self, parts: dict[TP, Part], messages: dict[TP, Messages], scorer: Scorer, acknowledged_ms: float
    ) -> None:
        latency = metrics.LATENCY.labels(self._name)
        for tp, part in parts.items():
            assert part.outcome is not None
            applied = len(part.outcome.applied_A)
            metrics.EVENTS.labels(self._name, str(tp.partition)).inc(applied)
            metrics.DUPLICATES.labels(self._name).inc(len(part.decoded.batch) - applied)
            metrics.LATE.labels(self._name).inc(int(part.outcome.late_A.sum()))
            metrics.ALERTS.labels(self._name, scorer.version).inc(len(messages[tp].alerts))
            for refused in part.decoded.bad:
                metrics.DEAD_LETTERS.labels(self._name, tp.topic, refused.reason).inc()
            for record in part.records:
                latency.observe(max(acknowledged_ms - record.timestamp, 0) / 1000)
            newest = part.records[-1].timestamp
            metrics.FRESHNESS.labels(tp.topic, str(tp.partition)).set(max(acknowledged_ms - newest, 0) / 1000)
        metrics.STATE_BYTES.labels(self._name).set(self.codec.layout.state_dtype.itemsize)

    def _stage(self, name: str) -> Any:
        return metrics.STAGE.labels(self._name, name).time()
