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

__all__ = ["Outbox", "make_outbox", "make_outboxes"]


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
    increments: Mapping[str, Increments],
) -> Outbox:
    """The entry of one batch of one source. keys: for each profile the key of each owner of its increments."""
    return make_outboxes([number], formats, keys, increments)[0]


def make_outboxes(
    numbers: Sequence[int],
    formats: Mapping[str, ProfileFormat],
    keys: Mapping[str, Sequence[str]],
    increments: Mapping[str, Increments],
) -> list[Outbox]:
    """The entries of one batch of several sources.

    keys: for each profile K keys, all different. increments: of the p-th source, owner p * K + k is that of the k-th.
    """
    outboxes = [Outbox(number, []) for number in numbers]
    for name, added in increments.items():
        owners = keys[name]
        for owner, packed in formats[name].pack_increments(added).items():
            source, k = divmod(owner, len(owners))
            outboxes[source].items.append((name, owners[k], packed))
    return outboxes
