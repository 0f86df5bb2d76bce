"""Positions of the partitions a lane reads: taking them over, fencing, rewinding, and what may be committed.

Redis holds the truth. A worker that was assigned a partition first applies the outbox its last owner may have
left, then reads on from the position. A write that is fenced off, or a position that moved without us (another
owner; a Redis that lost its last second), sets the partition back to what Redis says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import structlog
from faust.types import TP

from stream import metrics
from stream.source import Source, Verdict
from stream.store.keys import Position
from stream.store.redis_store import RedisStore
from stream.transport import Chunk

__all__ = ["Admitted", "Blocking", "Delivery", "Moved"]

log = structlog.get_logger()

Blocking = Callable[..., Awaitable[Any]]  # runs a blocking function in a thread
SEEK_TIMEOUT_S = 30.0


class Moved(Exception):  # noqa: N818, a turn of events more than an error
    """The position of a source in Redis is not what this worker knew."""

    def __init__(self, tp: TP, position: Position | None) -> None:
        self.tp, self.position = tp, position
        super().__init__(f"{tp.topic}/{tp.partition} is at {position}")


@dataclass(frozen=True, slots=True)
class Admitted:
    """Records of one partition that come next, and the position they follow.

    held: the position when the batches before this one are stored. A rebalance may set the source back while they
    are processed. Whoever stores them must expect this position, not the one the source has by then: only so is a
    write fenced off that would count records twice.
    """

    records: list[Any]
    held: Position | None


class Delivery:
    """Sources of one topic. `seek` and `highwater` are the consumer's; `blocking` keeps Redis off the event loop."""

    def __init__(
        self,
        store: RedisStore,
        tag_of: Callable[[int], str],
        blocking: Blocking,
        seek: Callable[..., Awaitable[None]],
        highwater: Callable[[TP], int | None],
    ) -> None:
        self.store, self.tag_of, self.blocking = store, tag_of, blocking
        self._seek, self._highwater = seek, highwater
        self._unsure, self._losses = False, store.losses
        self.sources: dict[TP, Source] = {}

    async def take_over(self, tp: TP) -> int:
        """The offset to read from: after recovering what the last owner left."""
        source = self.sources.setdefault(tp, Source(self.tag_of(tp.partition)))
        return source.rewind(await self.blocking(self.store.recover, source.tag))

    def drop(self, revoked: set[TP]) -> None:
        """These partitions are another worker's now. What is in flight of them will be fenced off."""
        for tp in revoked:
            if self.sources.pop(tp, None) is not None:
                metrics.forget_partition(tp.topic, tp.partition)

    async def admit(self, chunks: list[Chunk]) -> dict[TP, Admitted]:
        """The records of these chunks that come next, by partition, in order."""
        if self._unsure or self.store.losses != self._losses:
            await self._apply_again()
        admitted: dict[TP, Admitted] = {}
        for chunk in chunks:
            source = self.sources.get(chunk.tp)
            if source is None:  # revoked since it was fetched
                continue
            earlier = admitted.get(chunk.tp)
            if earlier is not None:  # of this batch: only what follows it without a hole
                follows = earlier.records[-1].offset + 1
                if chunk.first <= follows <= chunk.offset:
                    earlier.records.extend(chunk.since(follows).records)
                continue
            verdict, part = source.admit(chunk)
            if verdict is Verdict.PROCESS:
                admitted[chunk.tp] = Admitted(list(part.records), source.ahead)
            elif verdict is Verdict.SEEK:
                await self._seek_to(chunk.tp, source.next_offset, "hole")
        return admitted

    def restart(self) -> None:
        """Something failed and nothing is on its way any more: what was read ahead may be admitted again."""
        self._unsure = True
        for source in self.sources.values():
            source.restart()

    async def _apply_again(self) -> None:
        """A Redis that went away may have kept a position and lost what was applied after it. The outbox has it still,
        until the next store."""
        losses = self.store.losses
        for source in list(self.sources.values()):
            await self.blocking(self.store.recover, source.tag)
        self._unsure, self._losses = False, losses

    async def rewind(self, tp: TP, cause: str) -> None:
        """Go back to what Redis says."""
        source = self.sources.get(tp)
        if source is not None:
            offset = source.rewind(await self.blocking(self.store.recover, source.tag))
            await self._seek_to(tp, offset, cause)

    def stored(self) -> dict[TP, int]:
        """Next offset of each partition, for Kafka's record of it."""
        return {tp: s.held.next_offset for tp, s in self.sources.items() if s.held is not None}

    def ended_early(self) -> str | None:
        """What is wrong when a partition ends before the position in Redis: the topic is not the one it was.

        For a moment, after another worker has stored more than this one has fetched, that is no error.
        """
        for tp, source in self.sources.items():
            end = self._highwater(tp)
            if end is not None and end < source.stored_offset:
                return (
                    f"{tp.topic}/{tp.partition} ends at offset {end}, but Redis has stored it up to"
                    f" {source.stored_offset}: expected the same topic as before; one that was made anew needs an empty"
                    f" Redis or a pipeline of another name, or every event of it would pass for processed"
                )
        return None

    async def _seek_to(self, tp: TP, offset: int, cause: str) -> None:
        metrics.REWINDS.labels(self.store.pipeline, cause).inc()
        log.info("partition set back", topic=tp.topic, partition=tp.partition, offset=offset, cause=cause)
        await asyncio.wait_for(self._seek(tp, offset), SEEK_TIMEOUT_S)
