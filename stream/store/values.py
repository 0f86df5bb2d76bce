"""States and shared profiles as the bytes Redis holds, and back: a batch is joined once, and is then one array."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.errors import StateError
from models.features.layout import RING_SLOTS, SLOT, STATE_VERSION, Layout
from models.features.profiles import COUNTERS, Increments
from models.features.verdicts import capacity, stretch_ms
from models.pipeline.spec import Profile
from stream.store.records import HEADER, RECORD_BYTES, RECORD_WORDS, fill_records, fill_rings

__all__ = ["ProfileFormat", "state_rows", "unpack_states"]

PROFILE_VERSION = 2
DENSE_VERSION = 1  # all slots of all rings in a row; still read, and rewritten when something is added


def unpack_states(layout: Layout, values: Sequence[bytes | None]) -> NDArray[np.void]:
    """States of N stored values, None where there is none: structured (N,). Raises StateError."""
    size = layout.state_dtype.itemsize
    empty = layout.empty_states(1).tobytes()
    joined = bytearray().join([empty if value is None else value for value in values])  # may be written to
    if odd := {size if value is None else len(value) for value in values} - {size}:
        raise StateError(f"a stored state has {min(odd)} bytes: expected {size} for {_pipeline(layout)}")
    states = np.frombuffer(joined, dtype=layout.state_dtype)
    odd_N = (states["version"] != STATE_VERSION) | (states["layout"] != layout.layout_id)
    if odd_N.any():
        first = states[odd_N][0]
        raise StateError(
            f"a stored state has version {first['version']} and layout {first['layout']:08x}: expected"
            f" {STATE_VERSION} and {layout.layout_id:08x} for {_pipeline(layout)}"
        )
    return states


def _pipeline(layout: Layout) -> str:
    """Whose states they are, and what to do when they are not."""
    return (
        f"pipeline {layout.pipeline.name}; the pipeline file's fields, their transforms, window or horizons have"
        " changed, or an older checkout wrote it: give the pipeline a new name, or replay into an empty Redis"
    )


def state_rows(states: NDArray[np.void]) -> NDArray[np.uint8]:
    """The value of each state: (N, bytes), a view where memory allows."""
    return np.ascontiguousarray(states).view(np.uint8).reshape(len(states), states.dtype.itemsize)


class ProfileFormat:
    """One shared profile's stored value: a header, then a record for each slot that holds anything, then verdicts.

    Most profiles are of somebody who is rarely heard of, and hold a few slots of their many.
    """

    def __init__(self, layout: Layout, name: str, profile: Profile) -> None:
        self.name = name
        self._layout, self._profile = layout, profile
        layout_id = layout.profile_id(profile)
        self.header, self._dense_header = (HEADER.pack(v, layout_id) for v in (PROFILE_VERSION, DENSE_VERSION))
        self._version_word, self._layout_word = np.frombuffer(self.header, np.uint32).tolist()
        self._counted = len(profile.half_lives) * RING_SLOTS
        self.dense_size = HEADER.size + self._counted * SLOT.itemsize
        self.unpack([self.header])  # compiles now, or reads the compiled code, not in the first batch
        self.pack_increments(Increments(*(np.zeros(1, np.int64) for _ in range(7))))

    def unpack(self, values: Sequence[bytes | None]) -> NDArray[np.void]:
        """Rings of P stored values: structured (P, R, RING_SLOTS). Raises StateError."""
        rings = self._layout.empty_profiles(self._profile, len(values))
        places = [p for p, value in enumerate(values) if value is not None]
        known = [value for value in values if value is not None]
        size_N = np.fromiter(map(len, known), np.int64, len(known))
        for n in np.flatnonzero(size_N == self.dense_size).tolist():
            if known[n].startswith(self._dense_header):
                dense = np.frombuffer(known[n], SLOT, offset=HEADER.size).reshape(-1, RING_SLOTS)
                rings[places[n], : len(dense)] = dense
                known[n], size_N[n] = self.header, HEADER.size  # a value without records in its place
        odd_N = np.flatnonzero((size_N - HEADER.size) % RECORD_BYTES)
        if len(odd_N):
            raise self._refused(known[odd_N[0]])
        words = np.frombuffer(b"".join(known), np.uint32)
        slots_PW = rings.view(np.uint32).reshape(len(values), rings.shape[1] * RING_SLOTS * SLOT.itemsize // 4)
        place_N = np.array(places, np.int64)
        odd = fill_rings(words, size_N, place_N, self._version_word, self._layout_word, self._counted, slots_PW)
        if odd >= 0:
            raise self._refused(known[odd])
        return rings

    def pack_increments(self, increments: Increments) -> dict[int, bytes]:
        """For each owner the increments of its value, as `apply.lua` reads them."""
        count = len(increments)
        records, first = np.empty((count, RECORD_WORDS), np.uint32), np.empty(count + 1, np.int64)
        names = ("owner", "ring", "bucket", *COUNTERS)
        columns = tuple(np.ascontiguousarray(getattr(increments, name), np.int64) for name in names)
        owners = fill_records(columns, len(self._profile.half_lives), records, first)
        first[owners] = count
        data, bounds = records.tobytes(), (first[: owners + 1] * RECORD_BYTES).tolist()
        owner = increments.owner[first[:owners]].tolist()
        return {o: data[a:b] for o, a, b in zip(owner, bounds[:-1], bounds[1:], strict=True)}

    def arguments(self, increments: Sequence[bytes]) -> tuple[bytes | int, ...]:
        """What `apply.lua` is told of some profiles of this kind: packed increments, in the order of their keys."""
        counts = struct.pack(f"<{len(increments)}H", *[len(packed) // RECORD_BYTES for packed in increments])
        room, stretch = capacity(self._profile), stretch_ms(self._profile)
        return self.header, self.dense_size, room, stretch, counts, b"".join(increments)

    def _refused(self, value: bytes) -> StateError:
        return StateError(
            f"a stored profile {self.name} has {len(value)} bytes and header {value[: HEADER.size].hex()}: expected"
            f" {HEADER.size} and a multiple of {RECORD_BYTES}, and {self.header.hex()}; its key, amount,"
            " delay (with verdicts), verdicts or half_lives have changed: give the profile a new name"
        )
