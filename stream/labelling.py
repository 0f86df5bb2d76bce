"""Labels: from `<pipeline>.labels` to the shared profiles, with the same delivery as events.

A label is counted once, in the bucket of its partition's clock (the greatest arrival time so far), so what an
event sees of it depends on when it arrived and on nothing else. Entities' own states do not learn of labels.

A profile that keeps verdicts one by one is told with each how the labelled amount compares with what was usual by
another profile. That one is loaded first, when a label says an amount, and read as an event at the label's clock would
read it: counts that no event changes any more, so a batch that is repeated comes to the same number.

While this worker's events are behind, labels wait for them: a profile remembers a bounded stretch of time, and
labels from far ahead of the events being scored would push out what those events still have to read.

If the process dies on a line of `_apply`:

1. dead letters sent and acknowledged   labels are fetched again; a dead letter may be sent twice
2. profiles loaded to compare with      nothing was written
3. position and outbox stored           in one fenced script: neither or both; verdicts stand in the outbox as they are
4. outbox applied to the profiles       the next owner applies it; a shard that knew it ignores it, all of it
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from faust.types import TP

from models.codec import BadRecord, Codec, DecodedLabels
from models.columns import distinct
from models.features.ratios import compared_profiles, label_increments
from stream import metrics
from stream.delivery import Blocking, Delivery
from stream.lane import GoOn
from stream.publisher import Publisher
from stream.store.keys import Position
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore, Write
from stream.transport import Chunk

__all__ = ["LabelProcessor"]

HOLD_S = 0.02  # between looks at how far the events have come


class LabelProcessor:
    """Applies chunks of labels."""

    def __init__(
        self,
        codec: Codec,
        store: RedisStore,
        delivery: Delivery,
        publisher: Publisher,
        blocking: Blocking,
        events_clock: Callable[[], int | None],
    ) -> None:
        self.codec, self.store, self.delivery = codec, store, delivery
        self.publisher, self.blocking = publisher, blocking
        self._name = codec.pipeline.name
        self._dead_letters = codec.pipeline.topic("dead-letter")
        self._events_clock = events_clock
        self._stopping = False
        self._ahead_ms = min((p.delay_ms for p in codec.pipeline.profiles.values()), default=0)

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:  # noqa: ARG002, one batch at a time
        for tp, admitted in (await self.delivery.admit(chunks)).items():
            records, held = admitted.records, admitted.held
            while records and tp in self.delivery.sources and not self._stopping:
                due = await self.blocking(self._due, records)
                if not due:
                    await asyncio.sleep(HOLD_S)
                    continue
                held = await self._apply(tp, held, records[:due], await self.blocking(self._decode, records[:due]))
                if held is None:  # fenced off: what follows is another's, or is fetched again
                    break
                records = records[due:]

    def stop(self) -> None:
        """Hold no label back any more: what is not applied is fetched again by the next owner."""
        self._stopping = True

    def _due(self, records: list[Any]) -> int:
        """How many of these labels the events have come close enough to; all when no event waits."""
        clock = self._events_clock()
        if clock is None:
            return len(records)
        decoded = self._decode(records)
        ahead = decoded.batch.time_M > clock + self._ahead_ms
        return int(decoded.good[ahead.argmax()]) if ahead.any() else len(records)

    def _decode(self, records: list[Any]) -> DecodedLabels:
        append_ms = np.array([r.timestamp for r in records], dtype=np.int64)
        return self.codec.decode_labels([r.value for r in records], append_ms)

    def restart(self) -> None:
        self.delivery.restart()

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        for tp, admitted in (await self.delivery.admit([chunk])).items():
            nothing = self.codec.decode_labels([], np.empty(0, np.int64))
            decoded = DecodedLabels(nothing.batch, nothing.good, [BadRecord(0, "internal", repr(error))])
            await self._apply(tp, admitted.held, admitted.records, decoded)

    async def _apply(
        self, tp: TP, held: Position | None, records: list[Any], decoded: DecodedLabels
    ) -> Position | None:
        """Store labels that follow `held`; the position after them, or None when the write was fenced off."""
        pending = await self.publisher.send_dead_letters(self._dead_letters, tp, records, decoded.bad)
        await self.publisher.acknowledged(pending)
        entry: tuple[Position, Outbox] = await self.blocking(self._entry, held, records, decoded)
        position, outbox = entry
        tag = self.delivery.tag_of(tp.partition)
        if not await self.blocking(self._write, tag, held, position, outbox):
            metrics.FENCED.labels(self._name).inc()
            await self.delivery.rewind(tp, "fenced")
            return None
        source = self.delivery.sources.get(tp)
        if source is not None:
            source.advance(position)
        metrics.LABELS.labels(self._name, str(tp.partition)).inc(len(decoded.batch))
        for refused in decoded.bad:
            metrics.DEAD_LETTERS.labels(self._name, tp.topic, refused.reason).inc()
        return position

    def _entry(self, held: Position | None, records: list[Any], decoded: DecodedLabels) -> tuple[Position, Outbox]:
        """The next position, and what these labels add to the profiles."""
        labels, held = decoded.batch, held or Position()
        clock_M = np.maximum.accumulate(np.maximum(labels.time_M, held.clock_ms))
        keys, owners = {}, {}
        for name, texts in labels.profile_keys.items():
            keys[name], owners[name] = distinct(texts)
        layout = self.codec.layout
        compared = {name: keys[name] for name in compared_profiles(layout, labels)}
        rings = self.store.load({}, compared).rings if compared else {}
        increments = label_increments(layout, labels, clock_M, owners, rings)
        clock = int(clock_M[-1]) if len(clock_M) else held.clock_ms
        position = Position(records[-1].offset + 1, clock, held.outbox_seq + 1)
        return position, make_outbox(position.outbox_seq, self.store.formats, keys, increments)

    def _write(self, tag: str, held: Position | None, position: Position, outbox: Outbox) -> bool:
        (stored,) = self.store.store([Write(tag, held, position, outbox)])
        if stored:
            self.store.apply([(tag, outbox)])
        return stored
