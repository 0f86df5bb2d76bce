"""A batch on its way, and what the batches before it have come to but not stored yet.

A batch is loaded while those before it are still being scored or acknowledged. Redis then lacks their states and
their additions to shared profiles; both are taken from memory. A load runs beside no store, so it is known exactly
which batches Redis has and which it has not: nothing counts twice or not at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from faust.types import TP

from models.features.profiles import Increments, accumulate
from models.scorer import Scorer
from stream.lane import GivenUp
from stream.scoring import Part
from stream.store.keys import Position
from stream.store.redis_store import Stored

__all__ = ["Flight", "overlay"]


@dataclass(eq=False)
class Flight:
    """before: the batches on their way that Redis lacked when this one was loaded, in order. parts: its share of each
    partition. places: the shared profiles it reads. loaded: what Redis had. stored: Redis has it. over: it has ended,
    well or not."""

    scorer: Scorer
    before: Sequence[Flight]
    parts: dict[TP, Part] = field(default_factory=dict)
    places: dict[str, dict[str, int]] = field(default_factory=dict)
    loaded: Stored | None = None
    stored: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def expected(self, tp: TP) -> Position | None:
        """The position that Redis has while the batches before this one are on their way.

        Raises GivenUp when this batch does not follow them: the partition was set back in between.
        """
        chain = [flight.parts[tp] for flight in self.before if tp in flight.parts]
        if chain and chain[-1].position != self.parts[tp].held:
            raise GivenUp
        return chain[0].held if chain else self.parts[tp].held

    def publication(self, tp: TP) -> tuple[Any, ...]:
        """What this batch publishes of a partition: the same, while this is the same."""
        part = self.parts[tp]
        return tp, part.held, part.next_offset, self.scorer.version


def overlay(flight: Flight) -> None:
    """Put what the batches before have come to over what was loaded. They have been scored, this one has not."""
    assert flight.loaded is not None
    for earlier in flight.before:
        for tp, done in earlier.parts.items():
            if tp in flight.parts:
                _put_states(done, flight.parts[tp], flight.loaded)
            _add_increments(done, flight.places, flight.loaded)


def _put_states(done: Part, part: Part, loaded: Stored) -> None:
    assert done.outcome is not None
    row_of = {entity: row for row, entity in enumerate(done.entities)}
    rows = [(n, row) for n, entity in enumerate(part.entities) if (row := row_of.get(entity)) is not None]
    if rows:
        mine, theirs = np.array(rows).T
        loaded.states[part.tag][mine] = done.outcome.states_N[theirs]


def _add_increments(done: Part, places: dict[str, dict[str, int]], loaded: Stored) -> None:
    assert done.outcome is not None
    for name, added in done.outcome.increments.items():
        place_of = places[name]
        moved = np.array([place_of.get(key, -1) for key in done.profile_keys[name]], dtype=np.int64)
        owner = moved[added.owner]
        known = owner >= 0
        if known.any():
            columns = {f.name: getattr(added, f.name)[known] for f in fields(added) if f.name != "owner"}
            accumulate(loaded.rings[name], Increments(owner=owner[known], **columns))
