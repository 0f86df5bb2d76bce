"""States, positions and shared profiles in Redis: one round trip to load a batch, one to store it.

Works on one Redis and on Redis Cluster: every command and script touches one hash tag. Blocking; the worker
calls it off the event loop. redis-py's exceptions pass through: retrying is the worker's decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import ResponseError

from models.errors import StateError
from models.features.layout import RING_SLOTS, Layout
from models.features.profiles import bucket_ms
from stream.store.keys import (
    Position,
    ProfilePlaces,
    applied_key,
    outbox_key,
    position_key,
    state_key,
)  # fmt: skip
from stream.store.outbox import Outbox
from stream.store.values import ProfileFormat, state_rows, unpack_states
from stream.store.wire import Block, Command, Script, Wire

__all__ = ["RedisStore", "Stored", "Write"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What was loaded. positions: None where a source has none yet. states_N: tag by tag, in the order of the entities
    asked for. rings: for each profile, in the order of its keys."""

    positions: dict[str, Position | None]
    states_N: NDArray[np.void]
    rings: dict[str, NDArray[np.void]]


@dataclass(frozen=True, slots=True)
class Write:
    """What one source has come to. expected: the position that Redis must still have; None: none yet."""

    tag: str
    expected: Position | None
    position: Position
    outbox: Outbox
    entities: Sequence[str] = ()
    states: NDArray[np.void] | None = None  # of the entities, in their order


class RedisStore:
    """One pipeline's keys on one Redis or Redis Cluster."""

    def __init__(self, client: Any, layout: Layout) -> None:
        self.client, self.layout = client, layout
        self.pipeline = layout.pipeline.name
        self.ttl_ms = layout.pipeline.state.ttl_ms
        profiles = layout.pipeline.profiles
        self.formats = {name: ProfileFormat(layout, name, profile) for name, profile in profiles.items()}
        longest = max((bucket_ms(h) for p in profiles.values() for h in p.half_lives_ms), default=0)
        self.profile_ttl_ms = max(self.ttl_ms, longest * RING_SLOTS)  # rings hold nothing that is read then
        self._wire, self._places = Wire(client), ProfilePlaces(self.pipeline)
        self._store, self._apply = (
            Script((resources.files("stream.store") / f"{name}.lua").read_bytes()) for name in ("store", "apply")
        )

    @property
    def losses(self) -> int:
        """How often Redis was found to be away, or to have been: it may lack what was written last."""
        return self._wire.losses

    def load(self, entities: Mapping[str, Sequence[str]], profile_keys: Mapping[str, Sequence[str]]) -> Stored:
        """Positions and states of some entities of some sources (by tag), and shared profiles by name.

        Raises StateError when a value was written by another layout.
        """
        gets, keys = [], []
        for tag, names in entities.items():
            key = position_key(self.pipeline, tag)
            gets.append(Command(key, ("GET", key)))
            keys += self._state_keys(tag, names)
        for name, wanted in profile_keys.items():
            keys += [key for _, key in self._places.of(name, wanted)]
        records, values = self._wire.with_values(gets, keys)
        rest = iter(values)
        positions = {
            tag: None if record is None else Position.unpack(record)
            for tag, record in zip(entities, records, strict=True)
        }
        states_N = unpack_states(self.layout, list(islice(rest, sum(map(len, entities.values())))))
        rings = {n: self.formats[n].unpack(list(islice(rest, len(wanted)))) for n, wanted in profile_keys.items()}
        return Stored(positions, states_N, rings)

    def store(self, writes: Sequence[Write]) -> list[bool]:
        """Write each source's states, position and outbox in a transaction of its own; one round trip for all.

        False where the position was not the expected one: nothing of that source is written. Dies before a
        transaction: nothing is written. Dies after it: everything is; the outbox is applied by whoever is next.
        """
        return [bool(reply) for reply in self._wire.round_trip([self._store_command(write) for write in writes])]

    def apply(self, entries: Sequence[tuple[str, Outbox]]) -> None:
        """Add outbox entries (by tag) to the shared profiles; again is harmless. Raises StateError on another layout.

        One round trip for all; entries of one source in the order of their numbers, in a round trip each.
        """
        waiting = list(entries)
        try:
            while waiting:
                # A shard ignores what is older than what it knows: an entry must not overtake one of its source, as
                # it might when a server has forgotten the script and the first call has to be sent again.
                first = dict(reversed(waiting))
                self._wire.round_trip([c for tag, outbox in first.items() for c in self._apply_commands(tag, outbox)])
                waiting = [(tag, outbox) for tag, outbox in waiting if outbox is not first[tag]]
        except ResponseError as error:
            if "LAYOUT" in str(error):
                raise StateError(
                    f"a stored profile of pipeline {self.pipeline} was written by another layout: its key, amount,"
                    " delay (with verdicts), verdicts or half_lives have changed: give the profile a new name"
                ) from error
            raise

    def recover(self, tag: str) -> Position | None:
        """Take over a source: apply what its last owner may have left unapplied, and return its position."""
        # Both at one moment: read one after the other, the last owner could store between, and its entry would be
        # overwritten by our next store before anybody applied it.
        entry, record = self._wire.values([outbox_key(self.pipeline, tag), position_key(self.pipeline, tag)])
        if entry is not None:
            self.apply([(tag, Outbox.unpack(entry))])
        return None if record is None else Position.unpack(record)

    def _store_command(self, write: Write) -> Command:
        keys = [position_key(self.pipeline, write.tag), outbox_key(self.pipeline, write.tag)]
        keys += self._state_keys(write.tag, write.entities)
        held = b"" if write.expected is None else write.expected.pack()
        arguments = (held, write.position.pack(), write.outbox.pack(), self.ttl_ms)
        return self._store.call(keys, arguments, None if write.states is None else _block(state_rows(write.states)))

    def _apply_commands(self, tag: str, outbox: Outbox) -> Iterator[Command]:
        kinds: dict[str, tuple[list[str], list[bytes]]] = {name: ([], []) for name in self.formats}
        for name, key, packed in outbox.items:
            if name in kinds:  # the pipeline may have lost a profile since
                values, increments = kinds[name]
                values.append(key)
                increments.append(packed)
        shards: dict[int, tuple[list[str], list[Any]]] = {}
        for name, (values, increments) in kinds.items():
            members: dict[int, tuple[list[str], list[bytes]]] = {}
            for (shard, key), packed in zip(self._places.of(name, values), increments, strict=True):
                if shard not in members:
                    members[shard] = ([], [])
                keys, added = members[shard]
                keys.append(key)
                added.append(packed)
            for shard, (keys, added) in members.items():
                if shard not in shards:
                    shards[shard] = ([applied_key(self.pipeline, shard)], [tag, outbox.number, self.profile_ttl_ms])
                shards[shard][0].extend(keys)
                shards[shard][1].extend(self.formats[name].arguments(added))
        for keys, arguments in shards.values():
            yield self._apply.call(keys, arguments)

    def _state_keys(self, tag: str, entities: Sequence[str]) -> list[str]:
        prefix = state_key(self.pipeline, tag, "")
        return [prefix + entity for entity in entities]


def _block(rows: NDArray[np.uint8]) -> Block | None:
    """Rows of equal size as the last arguments of a command."""
    count, size = rows.shape
    if not count:
        return None
    before, after = f"${size}\r\n".encode(), b"\r\n"
    data = np.empty((count, len(before) + size + len(after)), np.uint8)
    data[:, : len(before)] = np.frombuffer(before, np.uint8)
    data[:, len(before) : -len(after)] = rows
    data[:, -len(after) :] = np.frombuffer(after, np.uint8)
    return Block(count, data.reshape(-1).data)
