"""From records to columns: a batch, its parts and what came of it. No Kafka and no Redis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from faust.types import TP
from numpy.typing import NDArray

from models.codec import BadRecord, Codec, Decoded
from models.columns import Distinct
from models.features.encoded import Encoded
from models.features.profiles import Increments
from stream.store.keys import Position

__all__ = ["Batch", "Messages", "Outcome", "Part", "Share", "decode_batch"]


class Share(NamedTuple):
    """Records of one partition that come next. tag: of its keys in Redis. held: the position they follow."""

    tag: str
    records: list[Any]
    held: Position | None


@dataclass
class Part:
    """One partition's share of a batch.

    records, events, entities, windows: where its records, its good events, its entities and its applied events stand
    in the batch; the last are known after the feature step. clock_ms: the greatest event time up to its end.
    """

    tag: str
    held: Position | None
    next_offset: int  # after the last record
    records: slice
    events: slice
    entities: slice
    clock_ms: int
    windows: slice = field(default_factory=lambda: slice(0, 0))

    @cached_property
    def position(self) -> Position:
        """Where the partition will stand when this part is stored."""
        return Position(self.next_offset, self.clock_ms, (self.held or Position()).outbox_seq + 1)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the features came to.

    encoded: windows of the A applied events. applied_A: their places among the batch's events; the rest are
    duplicates. late_A: as in `Step`. states_N: next states of the entities. increments: what is added to shared
    profiles; the k-th of a profile's K keys is owner p * K + k in what the p-th part adds.
    """

    encoded: Encoded
    applied_A: NDArray[np.int64]
    late_A: NDArray[np.bool_]
    states_N: NDArray[np.void]
    increments: dict[str, Increments]


@dataclass
class Batch:
    """Records of some partitions, decoded in one go: partition by partition, as are their events and entities.

    append_M: when the broker took each record, epoch ms. entities: distinct within each partition, whose own their
    states are. owner_M: each event's. clock_M: the greatest event time of its partition up to each event, epoch ms.
    Shared profiles are everybody's: their keys are the whole batch's.
    """

    records: list[Any]
    append_M: NDArray[np.int64]
    parts: dict[TP, Part]
    decoded: Decoded
    entities: list[str]
    owner_M: NDArray[np.int64]
    clock_M: NDArray[np.int64]
    outcome: Outcome | None = None

    @property
    def profile_keys(self) -> dict[str, list[str]]:
        """The keys of each shared profile that occur."""
        return {name: keys.texts for name, keys in self.decoded.profile_keys.items()}

    @cached_property
    def entity_rows(self) -> dict[TP, dict[str, int]]:
        """For each partition, which of the batch's entities each of its own is."""
        return {tp: _rows(self.entities[part.entities], part.entities.start) for tp, part in self.parts.items()}

    @cached_property
    def profile_rows(self) -> dict[str, dict[str, int]]:
        """For each profile, which of its keys each key is."""
        return {name: _rows(keys) for name, keys in self.profile_keys.items()}

    def bad(self, part: Part) -> list[BadRecord]:
        """The refused records of a part, by their places in it."""
        first, end = part.records.start, part.records.stop
        return [BadRecord(b.index - first, b.reason, b.detail) for b in self.decoded.bad if first <= b.index < end]


def _rows(texts: list[str], first: int = 0) -> dict[str, int]:
    return dict(zip(texts, range(first, first + len(texts)), strict=True))


@dataclass(frozen=True, slots=True)
class Messages:
    """What a batch publishes: (key, value) of each applied event's score; of each alert, by the event's place."""

    scores: list[tuple[bytes, bytes]]
    alerts: dict[int, tuple[bytes, bytes]]

    def alerts_of(self, part: Part) -> list[tuple[bytes, bytes]]:
        return [alert for a, alert in self.alerts.items() if part.windows.start <= a < part.windows.stop]


def decode_batch(codec: Codec, shares: Mapping[TP, Share]) -> Batch:
    """Decode the records and find out what has to be loaded for them.

    Every record of `.events` has its entity as key, whoever keyed it: the producer or our ingest agent.
    """
    records = [record for share in shares.values() for record in share.records]
    append_M = np.array([r.timestamp for r in records], dtype=np.int64)
    decoded = codec.decode([r.value for r in records], append_M, [r.key for r in records])
    record_bounds = np.cumsum([0, *(len(share.records) for share in shares.values())])
    event_bounds = np.searchsorted(decoded.good, record_bounds)
    entities, owner_M, entity_bounds = _by_part(decoded.entities, event_bounds)
    clock_M = decoded.batch.time_M.copy()
    parts: dict[TP, Part] = {}
    bounds = zip(*map(_stretches, (record_bounds, event_bounds, entity_bounds)), strict=True)
    for (tp, share), (own_records, own_events, own_entities) in zip(shares.items(), bounds, strict=True):
        clock = _advance(clock_M[own_events], 0 if share.held is None else share.held.clock_ms)
        next_offset = share.records[-1].offset + 1
        parts[tp] = Part(share.tag, share.held, next_offset, own_records, own_events, own_entities, clock)
    return Batch(records, append_M, parts, decoded, entities, owner_M, clock_M)


def _stretches(bounds: NDArray[np.int64]) -> list[slice]:
    return [slice(first, end) for first, end in pairwise(bounds.tolist())]


def _advance(time_M: NDArray[np.int64], clock_ms: int) -> int:
    """Event times of a partition that stood at `clock_ms` to its clock at each, in place; the last."""
    if not len(time_M):
        return clock_ms
    time_M[0] = max(int(time_M[0]), clock_ms)
    np.maximum.accumulate(time_M, out=time_M)
    return int(time_M[-1])


def _by_part(
    entities: Distinct, event_bounds: NDArray[np.int64]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Entities that are distinct within each part, each event's, and where those of each part begin."""
    parts, place_M = len(event_bounds) - 1, entities.place_M
    if parts == 1:
        return entities.texts, place_M, np.array([0, len(entities.texts)])
    part_M = np.repeat(np.arange(parts), np.diff(event_bounds))
    home_N = np.empty(len(entities.texts), np.int64)
    home_N[place_M[::-1]] = part_M[::-1]  # of several the last that is written stays: where each occurs first
    if np.array_equal(home_N[place_M], part_M):  # always, when producers agree on partitions
        return entities.texts, place_M, np.searchsorted(home_N, np.arange(parts + 1))
    rows: dict[tuple[int, int], int] = {}
    owner_M = np.array(
        [rows.setdefault(pair, len(rows)) for pair in zip(part_M.tolist(), place_M.tolist(), strict=True)]
    )
    bounds = np.searchsorted([part for part, _ in rows], np.arange(parts + 1))
    return [entities.texts[place] for _, place in rows], owner_M, bounds
