"""The outbox: what one batch adds to shared profiles, written with the batch's states and applied after.

Redis keeps the last entry of each source partition. An entry is applied shard by shard; each shard remembers
the number of the last entry it applied of each source, so applying one again changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from models.errors import StateError
from models.features.profiles import Increments
from stream.store.keys import profile_shard
from stream.store.values import ProfileFormat

__all__ = ["Outbox", "make_outbox"]


class Outbox(msgspec.Struct, frozen=True, array_like=True):
    """One entry: its number, and the packed increments by profile name and key."""

    number: int
    items: list[tuple[str, str, bytes]]

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(self)

    @staticmethod
    def unpack(data: bytes) -> Outbox:
        """Raises StateError when the entry is none."""
        try:
            return msgspec.msgpack.decode(data, type=Outbox)
        except msgspec.MsgspecError as error:
            raise StateError(f"an outbox entry has {len(data)} bytes: {error}: expected one of this version") from error

    def by_shard(self) -> dict[int, list[tuple[str, str, bytes]]]:
        """The items of each shard of profiles."""
        shards: dict[int, list[tuple[str, str, bytes]]] = defaultdict(list)
        for item in self.items:
            shards[profile_shard(item[0], item[1])].append(item)
        return shards


def make_outbox(
    number: int,
    formats: Mapping[str, ProfileFormat],
    keys: Mapping[str, Sequence[str]],
    increments: Mapping[str, Sequence[Increments]],
) -> Outbox:
    """The entry of one batch. keys: for each profile the key of each owner row of its increments."""
    items: dict[tuple[str, str], bytes] = defaultdict(bytes)
    for name, parts in increments.items():
        for part in parts:
            for owner, packed in formats[name].pack_increments(part).items():
                items[name, keys[name][owner]] += packed
    return Outbox(number, [(name, key, packed) for (name, key), packed in sorted(items.items())])
