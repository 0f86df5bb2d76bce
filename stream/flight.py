"""A batch on its way, and what the batches before it have come to but not stored yet.

A batch is loaded while those before it are still being scored or acknowledged. Redis then lacks their states and
their additions to shared profiles; both are taken from memory. A load runs beside no store, so it is known exactly
which batches Redis has and which it has not: nothing counts twice or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from faust.types import TP

from models.features.layout import as_bytes
from models.features.profiles import accumulate
from models.pipeline.spec import Profile
from models.scorer import Scorer
from stream.lane import GivenUp
from stream.scoring import Batch, Messages, Part
from stream.store.keys import Position
from stream.store.redis_store import Stored

__all__ = ["Flight", "overlay"]


@dataclass(eq=False)
class Flight:
    """before: the batches on their way that Redis lacked when this one was loaded, in order. loaded: what Redis had.
    messages: what it publishes. stored: Redis has it. over: it has ended, well or not."""

    scorer: Scorer
    before: Sequence[Flight]
    batch: Batch | None = None
    loaded: Stored | None = None
    messages: Messages | None = None
    stored: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def parts(self) -> dict[TP, Part]:
        return {} if self.batch is None else self.batch.parts

    def expected(self, tp: TP) -> Position | None:
        """The position that Redis has while the batches before this one are on their way.

        Raises GivenUp when this batch does not follow them: the partition was set back in between.
        """
        chain = [flight.parts[tp] for flight in self.before if tp in flight.parts]
        if chain and chain[-1].position != self.parts[tp].held:
            raise GivenUp
        return chain[0].held if chain else self.parts[tp].held

    def publication(self, tp: TP) -> tuple[Any, ...]:
        """What this batch publishes of a partition: the same, while the position it follows, the next offset and the
        model are."""
        part = self.parts[tp]
        return part.held, part.next_offset, self.scorer.version


def overlay(flight: Flight, profiles: Mapping[str, Profile]) -> None:
    """Put what the batches before have come to over what was loaded. They have been scored, this one has not.

    profiles: the pipeline's shared profiles.
    """
    assert flight.loaded is not None
    assert flight.batch is not None
    for earlier in flight.before:
        if earlier.batch is not None:
            _put_states(earlier.batch, flight.batch, flight.loaded)
            _add_increments(profiles, earlier.batch, flight.batch, flight.loaded)


def _put_states(done: Batch, batch: Batch, loaded: Stored) -> None:
    assert done.outcome is not None
    mine: list[int] = []
    theirs: list[int] = []
    for tp in done.parts.keys() & batch.parts.keys():
        own, other = batch.entity_rows[tp], done.entity_rows[tp]
        both = own.keys() & other.keys()
        mine += [own[entity] for entity in both]
        theirs += [other[entity] for entity in both]
    if mine:
        as_bytes(loaded.states_N)[mine] = as_bytes(done.outcome.states_N)[theirs]


def _add_increments(profiles: Mapping[str, Profile], done: Batch, batch: Batch, loaded: Stored) -> None:
    assert done.outcome is not None
    for name, added in done.outcome.increments.items():
        rows, place_of = done.profile_rows[name], batch.profile_rows[name]
        both = rows.keys() & place_of.keys()
        if both:
            moved = np.full(len(rows), -1)
            moved[[rows[key] for key in both]] = [place_of[key] for key in both]
            accumulate(profiles[name], loaded.rings[name], replace(added, owner=moved[added.owner % len(rows)]))
