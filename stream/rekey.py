"""Ingest: a source topic that is not keyed by the entity, brought onto `<pipeline>.events` under the right key.

Only used when the pipeline file says `keyed_by_entity = false`; producers then write to `<pipeline>.ingest`.
A record is passed on as it is, under its entity; one that cannot be decoded goes to the dead-letter topic.

Dies before the acknowledgement: nothing was committed, it is sent again. Dies after it, before the commit: it is
sent again, and the worker recognises the repeated event id. Lost: nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faust.types import TP

from models.codec import BadRecord, Codec
from stream import metrics
from stream.lane import GoOn
from stream.publisher import Publisher
from stream.transport import Chunk

__all__ = ["IngestProcessor"]


class IngestProcessor:
    """Passes chunks of `<pipeline>.ingest` on. `stored` is what may be committed."""

    def __init__(self, codec: Codec, publisher: Publisher) -> None:
        self.codec, self.publisher = codec, publisher
        self.stored: dict[TP, int] = {}

    async def process(self, chunks: list[Chunk], go_on: GoOn) -> None:  # noqa: ARG002, one batch at a time
        pending: list[Any] = []
        for chunk in chunks:
            append_ms = np.array([r.timestamp for r in chunk.records], dtype=np.int64)
            decoded = self.codec.decode([r.value for r in chunk.records], append_ms)
            for entity, i in zip(decoded.batch.entity, decoded.good.tolist(), strict=True):
                topic = self.codec.pipeline.topic("events")
                pending.append(await self.publisher.send(topic, entity.encode(), chunk.records[i].value))
            pending += await self._send_bad(chunk, decoded.bad)
        await self.publisher.acknowledged(pending)
        for chunk in chunks:
            self.stored[chunk.tp] = chunk.offset + 1

    def restart(self) -> None:
        """Nothing is read ahead."""

    async def bury(self, chunk: Chunk, error: Exception) -> None:
        await self.publisher.acknowledged(await self._send_bad(chunk, [BadRecord(0, "internal", repr(error))]))
        self.stored[chunk.tp] = chunk.offset + 1

    async def _send_bad(self, chunk: Chunk, bad: list[BadRecord]) -> list[Any]:
        pipeline = self.codec.pipeline
        topic = pipeline.topic("dead-letter")
        pending = await self.publisher.send_dead_letters(topic, chunk.tp, chunk.records, bad)
        for refused in bad:
            metrics.DEAD_LETTERS.labels(pipeline.name, chunk.topic, refused.reason).inc()
        return pending
