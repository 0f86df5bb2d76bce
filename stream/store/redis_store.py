"""States, positions and shared profiles in Redis: one round trip to load a batch, one to store it.

Works on one Redis and on Redis Cluster: every command and script touches one hash tag. Blocking; the worker
calls it off the event loop. redis-py's exceptions pass through: retrying is the worker's decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from redis.exceptions import ResponseError

from models.errors import StateError
from models.features.layout import RING_SLOTS, Layout
from models.features.profiles import bucket_ms
from stream.store.keys import (
    Position,
    applied_key,
    outbox_key,
    position_key,
    profile_key,
    profile_shard,
    state_key,
)  # fmt: skip
from stream.store.outbox import Outbox
from stream.store.values import ProfileFormat, pack_states, unpack_states

__all__ = ["RedisStore", "Stored", "Write"]


@dataclass(frozen=True, slots=True)
class Stored:
    """What was loaded. positions: None where a source has none yet. states: for each tag, in the order of the
    entities asked for. rings: for each profile, in the order of its keys."""

    positions: dict[str, Position | None]
    states: dict[str, NDArray[np.void]]
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
        self.profile_ttl_ms = max(self.ttl_ms, longest * RING_SLOTS)  # by then the rings hold nothing that is read
        self._store, self._apply = (
            (resources.files("stream.store") / f"{name}.lua").read_bytes() for name in ("store", "apply")
        )

    def load(self, entities: Mapping[str, Sequence[str]], profile_keys: Mapping[str, Sequence[str]]) -> Stored:
        """Positions and states of some entities of some sources (by tag), and shared profiles by name.

        Raises StateError when a value was written by another layout.
        """
        commands: list[tuple[Any, ...]] = []
        for tag, names in entities.items():
            commands.append(("GET", position_key(self.pipeline, tag)))
            if names:
                commands.append(("MGET", *(state_key(self.pipeline, tag, name) for name in names)))
        shards = self._profiles_by_shard(profile_keys)
        for members in shards.values():
            commands.append(("MGET", *(key for _, _, key in members)))
        replies = iter(self._round_trip(commands))
        positions: dict[str, Position | None] = {}
        states: dict[str, NDArray[np.void]] = {}
        for tag, names in entities.items():
            record = next(replies)
            positions[tag] = None if record is None else Position.unpack(record)
            states[tag] = unpack_states(self.layout, next(replies) if names else [])
        values: dict[str, list[bytes | None]] = {name: [None] * len(keys) for name, keys in profile_keys.items()}
        for members in shards.values():
            for (name, at, _), value in zip(members, next(replies), strict=True):
                values[name][at] = value
        return Stored(positions, states, {name: self.formats[name].unpack(v) for name, v in values.items()})

    def store(self, writes: Sequence[Write]) -> list[bool]:
        """Write each source's states, position and outbox in a transaction of its own; one round trip for all.

        False where the position was not the expected one: nothing of that source is written. Dies before a
        transaction: nothing is written. Dies after it: everything is; the outbox is applied by whoever is next.
        """
        commands: list[tuple[Any, ...]] = []
        for write in writes:
            keys = [position_key(self.pipeline, write.tag), outbox_key(self.pipeline, write.tag)]
            keys += [state_key(self.pipeline, write.tag, name) for name in write.entities]
            values = [] if write.states is None else pack_states(write.states)
            held = b"" if write.expected is None else write.expected.pack()
            arguments = (held, write.position.pack(), write.outbox.pack(), self.ttl_ms, *values)
            commands.append(("EVAL", self._store, len(keys), *keys, *arguments))
        return [bool(reply) for reply in self._round_trip(commands)]

    def apply(self, entries: Sequence[tuple[str, Outbox]]) -> None:
        """Add outbox entries (by tag) to the shared profiles; again is harmless. Raises StateError on another layout.

        One round trip for all; entries of one source in the order of their numbers.
        """
        commands = [command for tag, outbox in entries for command in self._apply_commands(tag, outbox)]
        try:
            self._round_trip(commands)
        except ResponseError as error:
            if "LAYOUT" in str(error):
                raise StateError(
                    f"a stored profile of pipeline {self.pipeline} was written by another layout: its key, amount or"
                    " half_lives have changed: give the profile a new name"
                ) from error
            raise

    def _apply_commands(self, tag: str, outbox: Outbox) -> Iterator[tuple[Any, ...]]:
        for shard, items in sorted(outbox.by_shard().items()):
            keys = [applied_key(self.pipeline, shard)]
            keys += [profile_key(self.pipeline, name, key) for name, key, _ in items]
            arguments: list[Any] = [tag, outbox.number, self.profile_ttl_ms]
            for name, _, packed in items:
                arguments += [self.formats[name].empty, packed]
            yield ("EVAL", self._apply, len(keys), *keys, *arguments)

    def recover(self, tag: str) -> Position | None:
        """Take over a source: apply what its last owner may have left unapplied, and return its position."""
        # Both at one moment: read one after the other, the last owner could store between, and its entry would be
        # overwritten by our next store before anybody applied it.
        entry, record = self.client.mget(outbox_key(self.pipeline, tag), position_key(self.pipeline, tag))
        if entry is not None:
            self.apply([(tag, Outbox.unpack(entry))])
        return None if record is None else Position.unpack(record)

    def _profiles_by_shard(self, profile_keys: Mapping[str, Sequence[str]]) -> dict[int, list[tuple[str, int, str]]]:
        """(profile, place in its keys, Redis key) of each profile, by shard."""
        shards: dict[int, list[tuple[str, int, str]]] = {}
        for name, keys in profile_keys.items():
            for at, key in enumerate(keys):
                member = (name, at, profile_key(self.pipeline, name, key))
                shards.setdefault(profile_shard(name, key), []).append(member)
        return shards

    def _round_trip(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        if not commands:
            return []
        pipe = self.client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        return list(pipe.execute())
