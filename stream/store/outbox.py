"""The outbox: what one batch adds to shared profiles, written with the batch's states and applied after.

Redis keeps the last entry of each source partition. An entry is applied shard by shard; each shard remembers
the number of the last entry it applied of each source, so applying one again changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from models.errors import StateError
from models.features.profiles import Increments
from stream.store.values import ProfileFormat

__all__ = ["Outbox", "make_outbox"]


class Outbox(msgspec.Struct, frozen=True, array_like=True):
    """One entry: its number, and the packed increments by profile name and key, each of which occurs once."""

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


def make_outbox(
    number: int,
    formats: Mapping[str, ProfileFormat],
    keys: Mapping[str, Sequence[str]],
    increments: Mapping[str, Sequence[Increments]],
) -> Outbox:
    """The entry of one batch. keys: for each profile the key, which no other has, of each owner of its increments."""
    items: list[tuple[str, str, bytes]] = []
    for name, parts in increments.items():
        packed: dict[int, bytes] = {}
        for part in parts:
            added = formats[name].pack_increments(part)
            packed = {o: packed.get(o, b"") + added.get(o, b"") for o in packed | added} if packed else added
        owners = keys[name]
        items += [(name, owners[o], data) for o, data in packed.items()]
    return Outbox(number, items)
