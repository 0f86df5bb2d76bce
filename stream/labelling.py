"""Labels: from `<pipeline>.labels` to the shared profiles, with the same delivery as events.

A label is counted once, in the bucket of its partition's clock (the greatest arrival time so far), so what an
event sees of it depends on when it arrived and on nothing else. Entities' own states do not learn of labels.

Dies before the store: nothing has happened. Dies after it: the outbox is applied by the next owner.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faust.types import TP

from models.codec import BadRecord, Codec, DecodedLabels
from models.features.profiles import Increments, collect
from models.messages import dead_letter_headers
from stream import metrics
from stream.delivery import Blocking, Delivery
from stream.publisher import Publisher
from stream.scoring import distinct
from stream.store.keys import Position
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore
from stream.transport import Chunk

__all__ = ["LabelProcessor"]


class LabelProcessor:
    """Applies chunks of labels."""

    def __init__(
        self, codec: Codec, store: RedisStore, delivery: Delivery, publisher: Publisher, blocking: Blocking
    ) -> None:
        self.codec, self.store, self.delivery = codec, store, delivery
        self.publisher, self.blocking = publisher, blocking
        self._name = codec.pipeline.name

    async def process(self, chunks: list[Chunk]) -> None:
        for tp, records in (await self.delivery.admit(chunks)).items():
            append_ms = np.array([r.timestamp for r in records], dtype=np.int64)
            decoded = await self.blocking(self.codec.decode_labels, [r.value for r in records], append_ms)
            await self._apply(tp, records, decoded)

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        for tp, records in (await self.delivery.admit([chunk])).items():
            nothing = self.codec.decode_labels([], np.empty(0, np.int64))
            decoded = DecodedLabels(nothing.batch, nothing.good, [BadRecord(0, "internal", repr(error))])
            await self._apply(tp, records, decoded)

    async def _apply(self, tp: TP, records: list[Any], decoded: DecodedLabels) -> None:
        source = self.delivery.sources.get(tp)
        if source is None:
            return
        await self._send_bad(tp, records, decoded)
        position, outbox = await self.blocking(self._entry, source.held, records, decoded)
        if not await self.blocking(self._write, source.tag, source.held, position, outbox):
            metrics.FENCED.labels(self._name).inc()
            await self.delivery.rewind(tp, "fenced")
            return
        source.advance(position)
        metrics.LABELS.labels(self._name, str(tp.partition)).inc(len(decoded.batch))
        for refused in decoded.bad:
            metrics.DEAD_LETTERS.labels(self._name, tp.topic, refused.reason).inc()

    def _entry(self, held: Position | None, records: list[Any], decoded: DecodedLabels) -> tuple[Position, Outbox]:
        """The next position, and what these labels add to the profiles."""
        labels, held = decoded.batch, held or Position()
        clock_M = np.maximum.accumulate(np.maximum(labels.time_M, held.clock_ms))
        keys: dict[str, list[str]] = {}
        increments: dict[str, list[Increments]] = {}
        for name, profile in self.codec.pipeline.profiles.items():
            keys[name], owner_M = distinct(labels.profile_keys[name])
            increments[name] = [collect(profile, owner_M, clock_M, fraud_M=labels.fraud_M)]
        clock = int(clock_M[-1]) if len(clock_M) else held.clock_ms
        position = Position(records[-1].offset + 1, clock, held.outbox_seq + 1)
        return position, make_outbox(position.outbox_seq, self.store.formats, keys, increments)

    def _write(self, tag: str, held: Position | None, position: Position, outbox: Outbox) -> bool:
        stored = self.store.store(tag, held, position, outbox)
        if stored:
            self.store.apply(tag, outbox)
        return stored

    async def _send_bad(self, tp: TP, records: list[Any], decoded: DecodedLabels) -> None:
        pending = []
        for refused in decoded.bad:
            record = records[refused.index]
            headers = dead_letter_headers(refused.reason, refused.detail, tp.topic, tp.partition, record.offset)
            topic = self.codec.pipeline.topic("dead-letter")
            pending.append(await self.publisher.send(topic, record.key, record.value, headers))
        await self.publisher.acknowledged(pending)
