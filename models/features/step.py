"""The feature function: (states, profiles, events) → (windows, next states, increments), over a whole batch.

Everybody calls this: the worker with what Redis holds, replay, training and evaluation with arrays. The result
for an event does not depend on which other events share its batch, to the bit; `tests/parity` compares it with
a loop too simple to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.aggregates import advance_decayed, entity_clock, horizon_features
from models.features.duplicates import find_duplicates
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.profiles import Increments, accumulate, collect, profile_features, safe_span_ms
from models.features.windows import Sections, encode_rows, lay_out
from models.pipeline.spec import Profile

__all__ = ["Loaded", "Step", "increments_of", "step"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a batch of M events needs from a store.

    states_N: one state an entity that occurs (`Layout.state_dtype`). owner_M: each event's row in it.
    rings: for each shared profile, the rings of the P that occur (P, half-lives, RING_SLOTS).
    ring_owner: for each profile, each event's row in it, -1 where the event has no such key.
    """

    states_N: NDArray[np.void]
    owner_M: NDArray[np.int64]
    rings: dict[str, NDArray[np.void]]
    ring_owner: dict[str, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Step:
    """What came of a batch.

    encoded: windows of the A applied events. applied_A: their positions in the batch, in arrival order; the
    rest are duplicates. late_A: True where an event is older than its entity's clock. states_N: next states.
    increments: what the batch adds to each shared profile, in parts to be added in this order.
    """

    encoded: Encoded
    applied_A: NDArray[np.int64]
    late_A: NDArray[np.bool_]
    states_N: NDArray[np.void]
    increments: dict[str, list[Increments]]


def step(layout: Layout, batch: EventBatch, clock_M: NDArray[np.int64], loaded: Loaded) -> Step:
    """Apply M events in arrival order; `loaded` is left as it was.

    clock_M: the greatest event time of each event's source partition up to and including it, epoch ms.
    """
    run = _Run(layout, batch, clock_M, loaded)
    parts = [run.advance(part) for part in _spans(layout, clock_M)]
    return Step(
        encoded=Encoded.concatenate([encoded for encoded, _, _ in parts]),
        applied_A=np.concatenate([applied for _, applied, _ in parts]),
        late_A=np.concatenate([late for _, _, late in parts]),
        states_N=run.states_N,
        increments=run.increments,
    )


def increments_of(
    layout: Layout, events: EventBatch, clock_M: NDArray[np.int64], ring_owner: dict[str, NDArray[np.int64]]
) -> dict[str, Increments]:
    """What M applied events add to each shared profile; clock_M and ring_owner as in `step` and `Loaded`."""
    return {
        name: collect(profile, ring_owner[name], clock_M, amount_M=_amount(layout, profile, events))
        for name, profile in layout.pipeline.profiles.items()
    }


def _amount(layout: Layout, profile: Profile, events: EventBatch) -> NDArray[np.float64] | None:
    if profile.amount is None:
        return None
    return events.values_MV[:, layout.values.index(profile.amount)].astype(np.float64)


def _spans(layout: Layout, clock_M: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Positions of the batch, cut into runs whose clocks lie within what the profile rings tolerate."""
    limit = safe_span_ms(layout)
    every = np.arange(len(clock_M))
    if limit is None or not len(clock_M) or clock_M.max() - clock_M.min() <= limit:
        return [every]
    spans, first = [], 0
    low = high = int(clock_M[0])
    for m, clock in enumerate(clock_M.tolist()):
        low, high = min(low, clock), max(high, clock)
        if high - low > limit:
            spans.append(every[first:m])
            first, low, high = m, clock, clock
    return [*spans, every[first:]]


class _Run:
    """A batch on its way: states and rings as they are after the spans so far."""

    def __init__(self, layout: Layout, batch: EventBatch, clock_M: NDArray[np.int64], loaded: Loaded) -> None:
        self.layout, self.batch, self.clock_M, self.loaded = layout, batch, clock_M, loaded
        self.states_N = loaded.states_N.copy()
        self.rings = {name: rings.copy() for name, rings in loaded.rings.items()}
        self.increments: dict[str, list[Increments]] = {name: [] for name in self.rings}

    def advance(self, part: NDArray[np.int64]) -> tuple[Encoded, NDArray[np.int64], NDArray[np.bool_]]:
        """Apply one span: its windows, the positions of its events that were applied, and which were late."""
        layout, states_N = self.layout, self.states_N
        duplicate = find_duplicates(states_N["rows"]["id"], self.loaded.owner_M[part], self.batch.id_hash_M[part])
        applied = part[~duplicate]
        order = np.argsort(self.loaded.owner_M[applied], kind="stable")  # by entity, arrival order kept
        sorted_m = applied[order]
        events = self.batch.take(sorted_m)
        owner_A = self.loaded.owner_M[sorted_m]
        sections = lay_out(layout, states_N, owner_A, events)
        own_clock_A = entity_clock(states_N["clock"], owner_A, events.time_M)
        before_AHS, decayed_NHS = advance_decayed(layout, states_N, owner_A, sections, own_clock_A)
        mask_AL = sections.id_E[sections.window_AL] != 0
        total_A = states_N["count"][owner_A] + sections.rank_A
        columns = horizon_features(layout, sections, mask_AL, own_clock_A, total_A, before_AHS)
        columns += self._profile_columns(events, sorted_m)
        x_EF, codes_EK = encode_rows(layout, sections)
        encoded = Encoded(
            x_BLF=np.where(mask_AL[:, :, None], x_EF[sections.window_AL], np.float32(0)),
            codes_BLK=np.where(mask_AL[:, :, None], codes_EK[sections.window_AL], 0),
            mask_BL=mask_AL,
            context_BC=np.column_stack([c.astype(np.float32) for c in columns]),
        )
        self._write_back(owner_A, sections, own_clock_A, decayed_NHS)
        arrival = np.argsort(order, kind="stable")
        return encoded.take(arrival), applied, (events.time_M < own_clock_A)[arrival]

    def _profile_columns(self, events: EventBatch, sorted_m: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        layout, clock_A = self.layout, self.clock_M[sorted_m]
        owners = {name: owner_M[sorted_m] for name, owner_M in self.loaded.ring_owner.items()}
        columns: list[NDArray[np.float64]] = []
        for name, added in increments_of(layout, events, clock_A, owners).items():
            # Added before it is read: a reader sees whole buckets that ended `delay` before its clock, and no
            # event of this batch adds to one of those unless it came earlier.
            accumulate(self.rings[name], added)
            self.increments[name].append(added)
            profile = layout.pipeline.profiles[name]
            amount_A = _amount(layout, profile, events)
            columns += profile_features(layout, profile, self.rings[name], owners[name], clock_A, amount_A)
        return columns

    def _write_back(
        self,
        owner_A: NDArray[np.int64],
        sections: Sections,
        clock_A: NDArray[np.int64],
        decayed_NHS: NDArray[np.float64],
    ) -> None:
        newest, states_N = sections.newest_NL, self.states_N
        rows = states_N["rows"]
        rows["time"], rows["id"] = sections.time_E[newest], sections.id_E[newest]
        rows["values"], rows["hashes"] = sections.values_EV[newest], sections.hashes_EK[newest]
        states_N["count"] += np.bincount(owner_A, minlength=len(states_N))
        np.maximum.at(states_N["clock"], owner_A, clock_A)
        states_N["decayed"] = decayed_NHS
