"""The feature step of a batch, of all its partitions at once, and what each of them writes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.features.layout import Layout
from models.features.step import Loaded, increments_of, step
from stream.scoring import Batch, Outcome
from stream.store.outbox import make_outboxes
from stream.store.redis_store import Stored, Write
from stream.store.values import ProfileFormat

__all__ = ["advance", "writes_of"]


def advance(layout: Layout, batch: Batch, stored: Stored) -> None:
    """Apply the events; sets the batch's outcome and its parts' windows. stored: what `batch` was loaded with."""
    ring_owner = {name: keys.place_M for name, keys in batch.decoded.profile_keys.items()}
    loaded = Loaded(stored.states_N, batch.owner_M, stored.rings, ring_owner)
    result = step(layout, batch.decoded.batch, batch.clock_M, loaded)
    parts = list(batch.parts.values())
    if len(parts) > 1:
        part_M = np.repeat(np.arange(len(parts)), [part.events.stop - part.events.start for part in parts])
        for name, keys in batch.decoded.profile_keys.items():
            ring_owner[name] = np.where(keys.place_M < 0, -1, keys.place_M + part_M * len(keys.texts))
    increments = increments_of(layout, batch.decoded.batch, batch.clock_M, ring_owner, result.applied_A)
    batch.outcome = Outcome(result.encoded, result.applied_A, result.late_A, result.states_N, increments)
    firsts = np.searchsorted(result.applied_A, [part.events.start for part in parts]).tolist()
    for part, first, end in zip(parts, firsts, [*firsts[1:], len(result.applied_A)], strict=True):
        part.windows = slice(first, end)


def writes_of(batch: Batch, formats: Mapping[str, ProfileFormat]) -> list[Write]:
    """What each part stores, in their order."""
    outcome, parts = batch.outcome, list(batch.parts.values())
    assert outcome is not None
    numbers = [part.position.outbox_seq for part in parts]
    outboxes = make_outboxes(numbers, formats, batch.profile_keys, outcome.increments)
    return [
        Write(p.tag, p.held, p.position, outbox, batch.entities[p.entities], outcome.states_N[p.entities])
        for p, outbox in zip(parts, outboxes, strict=True)
    ]
