"""What this worker knows of each source partition: its position, and which chunk may be processed next.

Faust may deliver a chunk twice, drop chunks around a rebalance, or deliver chunks that were fetched before a
seek. `Source.admit` lets through exactly the records that follow what was processed; anything else is cut off,
dropped, or answered with a seek.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from stream.store.keys import Position
from stream.transport import Chunk

__all__ = ["Source", "Verdict"]

SEEK_PATIENCE_S = 1.0  # a seek that has not shown its effect by then is repeated
GONE_S = 30.0  # records seen so long ago and never again may have been deleted meanwhile


class Verdict(Enum):
    """What to do with a chunk."""

    PROCESS = "process"
    DROP = "drop"
    SEEK = "seek"  # drop it and read on from `next_offset`


@dataclass
class Source:
    """One source partition.

    held: the position that Redis has, as far as this worker knows; None when it has none. ahead: the position
    once all batches on their way are stored. progress_s: when it last advanced or had nothing to do (monotonic).
    """

    tag: str
    held: Position | None = None
    ahead: Position | None = None
    progress_s: float = field(default_factory=time.monotonic)
    clock: Callable[[], float] = time.monotonic
    _sought_s: float | None = None  # when the last seek over a hole was asked for
    _suspect: tuple[int, int] | None = None  # the hole it is to look at again: (next_offset, first offset after it)
    _suspect_s: float = 0.0  # since when

    @property
    def next_offset(self) -> int:
        """What is to be admitted next."""
        return 0 if self.ahead is None else self.ahead.next_offset

    @property
    def stored_offset(self) -> int:
        """The first offset that is not stored."""
        return 0 if self.held is None else self.held.next_offset

    def rewind(self, held: Position | None) -> int:
        """Go on from a position of Redis; returns the offset to seek to."""
        self.held = self.ahead = held
        self._sought_s = self._suspect = None
        return self.next_offset

    def expect(self, position: Position) -> None:
        """A batch up to here is on its way."""
        self.ahead = position

    def restart(self) -> None:
        """Nothing is on its way any more; what was comes again."""
        self.ahead = self.held

    def advance(self, position: Position) -> None:
        """A batch up to here is stored."""
        self.held = position
        if position.next_offset > self.next_offset:  # it was stored by itself
            self.ahead = position
        self.progress_s = self.clock()

    def admit(self, chunk: Chunk) -> tuple[Verdict, Chunk]:
        """The verdict, and the part of the chunk it is about.

        A hole in the offsets is believed only when it shows again after a seek: a compacted or transactional
        topic has holes, but a chunk that was lost on the way looks the same. Chunks from before the seek may still
        come, so a hole that reaches over a record that was seen is not believed.
        """
        if chunk.offset < self.next_offset:
            return Verdict.DROP, chunk
        chunk = chunk.since(self.next_offset)
        if chunk.first == self.next_offset:
            if self._suspect is not None and self._suspect[0] == self.next_offset:
                self._suspect = None  # it never was a hole
            self._sought_s = None
            return Verdict.PROCESS, chunk
        hole, now = (self.next_offset, chunk.first), self.clock()
        if hole == self._suspect:  # believed until something is stored: the batch may be tried again, in parts
            self._sought_s = None
            return Verdict.PROCESS, chunk
        narrowest = self._suspect is None or self._suspect[0] != hole[0] or hole < self._suspect
        if narrowest or now - self._suspect_s > GONE_S:
            # at once: this may be the last chunk for a long time, and nobody would look again
            self._suspect, self._suspect_s, self._sought_s = hole, now, None
        if self._sought_s is not None and now - self._sought_s < SEEK_PATIENCE_S:
            return Verdict.DROP, chunk
        self._sought_s = now
        return Verdict.SEEK, chunk
