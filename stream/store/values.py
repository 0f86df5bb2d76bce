"""States and shared profiles as the bytes Redis holds, and back: no loop over fields, one view a batch."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import StateError
from models.features.layout import RING_SLOTS, SLOT, STATE_VERSION, Layout
from models.features.profiles import COUNTERS, Increments
from models.pipeline.spec import Profile

__all__ = ["ProfileFormat", "pack_states", "unpack_states"]

PROFILE_VERSION = 1
HEADER = struct.Struct("<HxxI")  # version, layout of the rings

INCREMENT = np.dtype([
    ("offset", "<u4"), ("bucket", "<i4"), ("count", "<u4"), ("labels", "<u4"), ("frauds", "<u4"), ("amount", "<i8"),
])  # fmt: skip


def unpack_states(layout: Layout, values: Sequence[bytes | None]) -> NDArray[np.void]:
    """States of N stored values, None where there is none: structured (N,). Raises StateError."""
    states = layout.empty_states(len(values))
    size = layout.state_dtype.itemsize
    known = [n for n, value in enumerate(values) if value is not None]
    if not known:
        return states
    joined = b"".join([value for value in values if value is not None])
    if len(joined) != size * len(known):
        odd = next(len(v) for v in values if v is not None and len(v) != size)
        raise StateError(f"a stored state has {odd} bytes: expected {size} for pipeline {layout.pipeline.name}")
    read = np.frombuffer(joined, dtype=layout.state_dtype)
    odd_N = (read["version"] != STATE_VERSION) | (read["layout"] != layout.layout_id)
    if odd_N.any():
        first = read[odd_N][0]
        raise StateError(
            f"a stored state of pipeline {layout.pipeline.name} has version {first['version']} and layout"
            f" {first['layout']:08x}: expected {STATE_VERSION} and {layout.layout_id:08x}; the pipeline file's"
            " fields, window or horizons have changed: give the pipeline a new name, or replay into an empty Redis"
        )
    states[known] = read
    return states


def pack_states(states: NDArray[np.void]) -> list[bytes]:
    """The value of each state."""
    size, data = states.dtype.itemsize, states.tobytes()
    return [data[i : i + size] for i in range(0, len(data), size)]


class ProfileFormat:
    """One shared profile's stored value: a header, then its rings."""

    def __init__(self, layout: Layout, name: str, profile: Profile) -> None:
        self.name = name
        self._layout, self._profile = layout, profile
        self._header = HEADER.pack(PROFILE_VERSION, layout.profile_id(profile))
        rings = layout.empty_profiles(profile, 1)
        self.empty = self._header + rings.tobytes()

    def unpack(self, values: Sequence[bytes | None]) -> NDArray[np.void]:
        """Rings of P stored values: structured (P, half-lives, RING_SLOTS). Raises StateError."""
        rings = self._layout.empty_profiles(self._profile, len(values))
        for p, value in enumerate(values):
            if value is None:
                continue
            if len(value) != len(self.empty) or value[: HEADER.size] != self._header:
                raise StateError(
                    f"a stored profile {self.name} has {len(value)} bytes and header {value[: HEADER.size].hex()}:"
                    f" expected {len(self.empty)} and {self._header.hex()}; its key, amount or half_lives have"
                    " changed: give the profile a new name"
                )
            rings[p] = np.frombuffer(value, dtype=SLOT, offset=HEADER.size).reshape(rings.shape[1:])
        return rings

    def pack_increments(self, increments: Increments) -> dict[int, bytes]:
        """For each owner the increments of its value, as `apply.lua` reads them."""
        packed = np.empty(len(increments), INCREMENT)
        slot = increments.ring * RING_SLOTS + increments.bucket % RING_SLOTS
        packed["offset"] = HEADER.size + slot * SLOT.itemsize
        for column in ("bucket", *COUNTERS):
            packed[column] = getattr(increments, column)
        owners, first = np.unique(increments.owner, return_index=True)  # increments are sorted by owner
        bounds = [*first.tolist(), len(packed)]
        return {o: packed[a:b].tobytes() for o, a, b in zip(owners.tolist(), bounds[:-1], bounds[1:], strict=True)}
