"""Names of Redis keys, and the packed position record.

All state of one source partition shares the hash tag `{<tag>}`, so a transaction over it stays on one
node of a Redis Cluster. Tags: `<partition>` for events, `labels-<partition>` for labels. Shared profiles
belong to no partition; they are spread over PROFILE_SHARDS tags `p<shard>`, each with its own record of
what was applied, so that one script call per shard applies an outbox atomically and at most once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from models.errors import StateError

__all__ = [
    "PROFILE_SHARDS",
    "Position",
    "ProfilePlaces",
    "applied_key",
    "event_tag",
    "label_tag",
    "outbox_key",
    "position_key",
    "profile_key",
    "profile_shard",
    "state_key",
]

PROFILE_SHARDS = 16  # fixed for the life of the data: the shard is part of the key
REMEMBERED_PLACES = 1 << 15  # of each profile: about 10 MB
POSITION = struct.Struct("<HqqQ")
POSITION_VERSION = 1


@dataclass(frozen=True, slots=True)
class Position:
    """How far one source partition is processed.

    next_offset: the first offset not yet stored. clock_ms: the greatest event time stored (labels: arrival
    time). outbox_seq: number of the last outbox entry written with it.
    """

    next_offset: int = 0
    clock_ms: int = 0
    outbox_seq: int = 0

    def pack(self) -> bytes:
        return POSITION.pack(POSITION_VERSION, self.next_offset, self.clock_ms, self.outbox_seq)

    @staticmethod
    def unpack(data: bytes) -> Position:
        """Raises StateError when the record is of another version or size."""
        if len(data) != POSITION.size:
            raise StateError(f"position record has {len(data)} bytes: expected {POSITION.size}")
        version, *rest = POSITION.unpack(data)
        if version != POSITION_VERSION:
            raise StateError(f"position record has version {version}: expected {POSITION_VERSION}")
        return Position(*rest)


def event_tag(partition: int) -> str:
    return str(partition)


def label_tag(partition: int) -> str:
    return f"labels-{partition}"


def position_key(pipeline: str, tag: str) -> str:
    return f"{pipeline}:{{{tag}}}:position"


def outbox_key(pipeline: str, tag: str) -> str:
    return f"{pipeline}:{{{tag}}}:outbox"


def state_key(pipeline: str, tag: str, entity: str) -> str:
    return f"{pipeline}:{{{tag}}}:s:{entity}"


def profile_shard(profile: str, value: str) -> int:
    return int(xxhash.xxh3_64_intdigest(f"{profile}:{value}".encode()) % PROFILE_SHARDS)


def profile_key(pipeline: str, profile: str, value: str) -> str:
    return f"{pipeline}:p:{{p{profile_shard(profile, value)}}}:{profile}:{value}"


def applied_key(pipeline: str, shard: int) -> str:
    return f"{pipeline}:p:{{p{shard}}}:applied"


class ProfilePlaces:
    """Shard and Redis key of profiles, remembered for those heard of lately. May be shared by threads."""

    def __init__(self, pipeline: str) -> None:
        self._pipeline = pipeline
        self._known: dict[str, dict[str, tuple[int, str]]] = {}

    def of(self, profile: str, values: Iterable[str]) -> list[tuple[int, str]]:
        """(shard, key) of each value of a profile's key field."""
        known = self._known.setdefault(profile, {})
        if len(known) > REMEMBERED_PLACES:
            known.clear()
        return [known.get(value) or self._add(known, profile, value) for value in values]

    def _add(self, known: dict[str, tuple[int, str]], profile: str, value: str) -> tuple[int, str]:
        place = known[value] = (profile_shard(profile, value), profile_key(self._pipeline, profile, value))
        return place
