"""The feature step of a batch that comes from several partitions: one call for all, then each part's own share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.encoded import Encoded
from models.features.layout import Layout, as_bytes
from models.features.step import Loaded, increments_of, step
from stream.scoring import Outcome, Part
from stream.store.redis_store import Stored

__all__ = ["advance", "profile_keys_of"]


def profile_keys_of(parts: Sequence[Part], names: Iterable[str]) -> dict[str, dict[str, int]]:
    """For each profile the keys that occur in the batch, and the place of each."""
    places: dict[str, dict[str, int]] = {name: {} for name in names}
    for part in parts:
        for name, keys in part.profile_keys.items():
            for key in keys:
                places[name].setdefault(key, len(places[name]))
    return places


def advance(layout: Layout, parts: Sequence[Part], stored: Stored, places: dict[str, dict[str, int]]) -> Encoded:
    """Apply the events of all parts in one call; sets each part's outcome and returns the windows of all.

    stored: the states of each part's entities, by tag, and the rings of the keys in `places`.
    """
    first_entity = np.cumsum([0, *(len(part.entities) for part in parts)]).tolist()
    first_event = np.cumsum([0, *(len(part.owner_M) for part in parts)]).tolist()
    loaded = Loaded(
        states_N=_joined([stored.states[part.tag] for part in parts]),
        owner_M=np.concatenate([part.owner_M + n for part, n in zip(parts, first_entity, strict=False)]),
        rings=stored.rings,
        ring_owner={name: np.concatenate([_in_batch(p, name, places[name]) for p in parts]) for name in places},
    )
    batch = EventBatch.concatenate([part.decoded.batch for part in parts])
    clock_M = np.concatenate([part.clock_M for part in parts])
    result = step(layout, batch, clock_M, loaded)
    bounds = np.searchsorted(result.applied_A, first_event).tolist()
    for i, part in enumerate(parts):
        windows = slice(bounds[i], bounds[i + 1])
        applied_A = result.applied_A[windows] - first_event[i]
        part.outcome = Outcome(
            applied_A=applied_A,
            late_A=result.late_A[windows],
            windows=windows,
            states_N=result.states_N[first_entity[i] : first_entity[i + 1]],
            increments=increments_of(layout, part.decoded.batch, part.clock_M, part.ring_owner, applied_A),
        )
    return result.encoded


def _joined(states: list[NDArray[np.void]]) -> NDArray[np.void]:
    """The states of all parts; of one part they need no copy, which `step` makes anyway."""
    if len(states) == 1:
        return states[0]
    return np.concatenate([as_bytes(part) for part in states]).reshape(-1).view(states[0].dtype)


def _in_batch(part: Part, name: str, places: dict[str, int]) -> NDArray[np.int64]:
    """Each event's profile as a place in the whole batch's; -1 stays -1, the last of the list."""
    moved = np.array([*(places[key] for key in part.profile_keys[name]), -1], dtype=np.int64)
    return moved[part.ring_owner[name]]
