"""The feature function: (states, profiles, events) → (windows, next states), over a whole batch.

Everybody calls this: the worker with what Redis holds, replay, training and evaluation with arrays. The result
for an event does not depend on which other events share its batch, to the bit; `tests/parity` compares it with
a loop too simple to be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS
from models.compiled import plain
from models.events import EventBatch, LabelBatch
from models.features.encoded import Encoded
from models.features.entities import Events, Windows, advance
from models.features.layout import Layout, as_bytes
from models.features.profiles import Increments, accumulate, collect, read
from models.features.ratios import compared_profiles, label_increments
from models.features.runs import write_runs
from models.features.surprise import judge
from models.features.verdicts import read_verdicts

__all__ = ["Loaded", "Step", "increments_of", "step", "warm_up"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a batch of M events needs from a store.

    states_N: one state an entity that occurs (`Layout.state_dtype`). owner_M: each event's row in it.
    rings: for each shared profile, the rings of the P that occur (P, R, RING_SLOTS).
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
    """

    encoded: Encoded
    applied_A: NDArray[np.int64]
    late_A: NDArray[np.bool_]
    states_N: NDArray[np.void]


def step(layout: Layout, batch: EventBatch, clock_M: NDArray[np.int64], loaded: Loaded) -> Step:
    """Apply M events in arrival order; `loaded` is left as it was.

    clock_M: the greatest event time of each event's source partition up to and including it, epoch ms. What the
    applied events add to the shared profiles, `increments_of` says.
    """
    events = Events(
        plain(loaded.owner_M, np.int64),
        plain(batch.time_M, np.int64),
        plain(batch.id_hash_M, np.uint64),
        plain(batch.values_MV, np.float32),
        plain(batch.hashes_MK, np.uint32),
    )
    states_N = np.require(loaded.states_N, layout.state_dtype, ("C", "W"))
    next_N = np.empty_like(states_N)
    out = _empty_windows(layout, len(batch))
    advance(layout.facts, as_bytes(states_N), events, as_bytes(next_N), out)
    column, clock_M = judge(layout, events, next_N, out), plain(clock_M, np.int64)
    for name, profile in layout.pipeline.profiles.items():
        column = read(
            layout, profile, loaded.rings[name], loaded.ring_owner[name], clock_M,
            events.values_MV, out.applied_M, out.context_MC, column,
        )  # fmt: skip
    verdicts_MJSG = read_verdicts(layout, loaded.rings, loaded.ring_owner, clock_M, out.applied_M)
    if layout.inputs.verdicts:
        write_runs(verdicts_MJSG, out.context_MC, column)
    inputs, shape = layout.inputs, out.mask_ML.shape
    encoded = Encoded(
        out.x_MLF.reshape(*shape, len(inputs.x)), out.codes_MLK.reshape(*shape, len(inputs.codes)),
        out.mask_ML, out.context_MC, verdicts_MJSG,
    )  # fmt: skip
    if out.applied_M.all():
        return Step(encoded, np.arange(len(batch)), out.late_M, next_N)
    applied_A = np.flatnonzero(out.applied_M)
    return Step(encoded.take(applied_A), applied_A, out.late_M[applied_A], next_N)


def increments_of(
    layout: Layout,
    batch: EventBatch,
    clock_M: NDArray[np.int64],
    ring_owner: dict[str, NDArray[np.int64]],
    applied_A: NDArray[np.int64] | None = None,
) -> dict[str, Increments]:
    """What the events of a batch add to each shared profile; clock_M and ring_owner as in `step` and `Loaded`.

    applied_A: positions of those that were applied; all of them when left out.
    """
    which: slice | NDArray[np.int64] = slice(None) if applied_A is None or len(applied_A) == len(batch) else applied_A
    increments = {}
    for name, profile in layout.pipeline.profiles.items():
        amount_A = None if profile.amount is None else batch.values_MV[which, layout.values.index(profile.amount)]
        increments[name] = collect(profile, ring_owner[name][which], clock_M[which], amount_M=amount_A)
    return increments


def warm_up(layout: Layout) -> None:
    """Compile what a worker runs, or load what an earlier process compiled: many seconds, or a fraction of one."""
    time_M = np.array([DAY_MS, DAY_MS - 1])
    batch = EventBatch(
        event_id=["1", "2"],
        entity=["1", "1"],
        time_M=time_M,
        id_hash_M=np.array([1, 2], dtype=np.uint64),
        values_MV=np.zeros((2, len(layout.values)), np.float32),
        hashes_MK=np.zeros((2, len(layout.hashes)), np.uint32),
        profile_keys={name: ["1", None] for name in layout.pipeline.profiles},
    )
    rings = {name: layout.empty_profiles(profile, 1) for name, profile in layout.pipeline.profiles.items()}
    owners = dict.fromkeys(rings, np.array([0, -1]))
    clock_M = np.maximum.accumulate(time_M)
    step(layout, batch, clock_M, Loaded(layout.empty_states(1), np.zeros(2, np.int64), rings, owners))
    for name, added in increments_of(layout, batch, clock_M, owners).items():
        accumulate(layout.pipeline.profiles[name], rings[name], added)
    labels = LabelBatch(
        batch.event_id, time_M, batch.id_hash_M, np.array([True, False]), batch.profile_keys,
        {name: np.array([1.0, np.nan]) for name in layout.pipeline.label_amounts},
    )  # fmt: skip
    compared = {name: rings[name] for name in compared_profiles(layout, labels)}
    for name, added in label_increments(layout, labels, clock_M, owners, compared).items():
        accumulate(layout.pipeline.profiles[name], rings[name], added)


def _empty_windows(layout: Layout, events: int) -> Windows:
    inputs = layout.inputs
    return Windows(
        np.empty((events, inputs.length * len(inputs.x)), np.float32),
        np.empty((events, inputs.length * len(inputs.codes)), np.int32),
        np.empty((events, inputs.length), np.bool_),
        np.empty((events, len(inputs.context)), np.float32),
        np.zeros(events, np.bool_),
        np.zeros(events, np.bool_),
    )
