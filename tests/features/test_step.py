"""The feature step as its callers see it: what it leaves alone, what it skips, what it compiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.events import EventBatch
from models.features import entities, profiles, verdicts
from models.features.layout import Layout
from models.features.profiles import Increments, accumulate
from models.features.step import Loaded, Step, increments_of, step, warm_up
from models.pipeline.load import load_pipeline

START_MS, MINUTE, DAY = 1_700_000_000_000, 60_000, 86_400_000
LAYOUT = Layout(load_pipeline("payments"))
RING_NAMES = tuple(LAYOUT.pipeline.profiles)


def _batch(events: int, seed: int, ids: list[int] | None = None) -> EventBatch:
    """Payments a minute apart, a fifth of them late, some values missing."""
    rng = np.random.default_rng(seed)
    values_MV = rng.uniform(0, 50, (events, len(LAYOUT.values))).astype(np.float32)
    values_MV[rng.random(values_MV.shape) < 0.1] = np.nan
    id_M = np.arange(1, events + 1) + 1_000_000 * seed if ids is None else np.array(ids)
    return EventBatch(
        event_id=[str(i) for i in id_M],
        entity=["card"] * events,
        time_M=START_MS + np.arange(events) * MINUTE - (rng.random(events) < 0.2) * 3 * DAY,
        id_hash_M=id_M.astype(np.uint64),
        values_MV=values_MV,
        hashes_MK=rng.integers(0, 6, (events, len(LAYOUT.hashes))).astype(np.uint32),
        profile_keys={name: [name] * events for name in RING_NAMES},
    )


def _loaded(owner_M: np.ndarray, owners: int, ring_owner_M: np.ndarray, rings: int) -> Loaded:
    return Loaded(
        LAYOUT.empty_states(owners),
        owner_M,
        {name: LAYOUT.empty_profiles(profile, rings) for name, profile in LAYOUT.pipeline.profiles.items()},
        dict.fromkeys(RING_NAMES, ring_owner_M),
    )


def _one_by_one(batch: EventBatch, clock_M: np.ndarray, loaded: Loaded) -> tuple[list[Step], Loaded]:
    steps = []
    for m in range(len(batch)):
        at = np.array([m])
        owners = {name: owner_M[at] for name, owner_M in loaded.ring_owner.items()}
        now = replace(loaded, owner_M=loaded.owner_M[at], ring_owner=owners)
        steps.append(step(LAYOUT, batch.take(at), clock_M[at], now))
        for name, added in increments_of(LAYOUT, batch.take(at), clock_M[at], owners, steps[-1].applied_A).items():
            accumulate(LAYOUT.pipeline.profiles[name], loaded.rings[name], added)
        loaded = replace(loaded, states_N=steps[-1].states_N)
    return steps, loaded


@pytest.mark.parametrize("owners", [1, 3])
def test_many_events_of_one_entity_are_as_if_they_came_alone(owners: int) -> None:
    """A batch of several windows' worth of one entity, repeats and late events in it, changes no bit."""
    ids = list(range(1, 121))
    ids[7], ids[60], ids[119] = 3, 5, 110  # repeats: near, after the window has passed, at the end
    batch = _batch(120, 1, ids)
    clock_M = np.maximum.accumulate(batch.time_M)
    owner_M, ring_owner_M = np.arange(120) % owners, np.arange(120) % 3 - 1
    whole = step(LAYOUT, batch, clock_M, _loaded(owner_M, owners, ring_owner_M, 2))
    steps, loaded = _one_by_one(batch, clock_M, _loaded(owner_M, owners, ring_owner_M, 2))
    expected = [m for m in range(120) if len(steps[m].applied_A)]
    assert whole.applied_A.tolist() == expected
    # of one entity two repeats are still in the window; of three entities each comes under another one
    assert len(expected) == (118 if owners == 1 else 120)
    for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
        alone = np.concatenate([getattr(s.encoded, name) for s in steps])
        assert getattr(whole.encoded, name).tobytes() == alone.tobytes(), name
    assert whole.late_A.tolist() == np.concatenate([s.late_A for s in steps]).tolist()
    assert whole.states_N.tobytes() == loaded.states_N.tobytes()
    rings = _loaded(owner_M, owners, ring_owner_M, 2).rings
    for name, added in increments_of(
        LAYOUT, batch, clock_M, dict.fromkeys(RING_NAMES, ring_owner_M), whole.applied_A
    ).items():
        accumulate(LAYOUT.pipeline.profiles[name], rings[name], added)
        assert np.array_equal(rings[name], loaded.rings[name])


def test_what_was_loaded_is_left_as_it_was() -> None:
    """States and rings that were handed in are read only, also when the batch covers days."""
    batch = _batch(40, 2)
    loaded = _loaded(np.zeros(40, np.int64), 1, np.zeros(40, np.int64), 1)
    before = loaded.states_N.tobytes(), [rings.tobytes() for rings in loaded.rings.values()]
    clock_M = np.maximum.accumulate(batch.time_M + np.arange(40) * DAY)
    result = step(LAYOUT, batch, clock_M, loaded)
    assert (loaded.states_N.tobytes(), [rings.tobytes() for rings in loaded.rings.values()]) == before
    assert int(result.states_N["count"][0]) == 40
    counts_A = result.encoded.context_BC[:, LAYOUT.inputs.context.index("merchant.count.7d")]
    assert counts_A[0] == 0 < counts_A[-1], "the last events saw the first ones"


def test_an_empty_batch_gives_nothing() -> None:
    """No events: no windows, states unchanged, nothing added."""
    none = np.zeros(0, np.int64)
    batch = _batch(1, 3).take(none)
    result = step(LAYOUT, batch, none, _loaded(none, 2, none, 0))
    assert len(result.encoded) == len(result.applied_A) == 0
    assert result.states_N.tobytes() == LAYOUT.empty_states(2).tobytes()
    assert all(len(a) == 0 for a in increments_of(LAYOUT, batch, none, dict.fromkeys(RING_NAMES, none)).values())


def test_any_kind_of_memory_gives_the_same_bits_and_is_not_compiled_for() -> None:
    """Columns that are read-only, strided or in Fortran order are computed alike, by code that is there already."""
    warm_up(LAYOUT)
    batch = _batch(9, 4)
    owner_M = np.arange(9) % 2
    clock_M = np.maximum.accumulate(batch.time_M)
    loaded = _loaded(owner_M, 2, owner_M, 2)
    plain = step(LAYOUT, batch, clock_M, loaded)
    kernels = [entities.advance, verdicts._read]
    kernels += [profiles._read, profiles._collect, profiles._accumulate, profiles._apart]
    known = [list(kernel.signatures) for kernel in kernels]  # type: ignore[attr-defined]
    strided = np.repeat(batch.time_M, 2)[::2]
    odd = replace(batch, time_M=strided, values_MV=np.asfortranarray(batch.values_MV))
    for array in (odd.id_hash_M, odd.hashes_MK, owner_M, clock_M, loaded.states_N, *loaded.rings.values()):
        array.flags.writeable = False
    again = step(LAYOUT, odd, clock_M, loaded)
    increments_of(LAYOUT, odd, clock_M, loaded.ring_owner)
    assert again.encoded.context_BC.tobytes() == plain.encoded.context_BC.tobytes()
    assert again.encoded.x_BLF.tobytes() == plain.encoded.x_BLF.tobytes()
    assert again.states_N.tobytes() == plain.states_N.tobytes()
    assert [list(kernel.signatures) for kernel in kernels] == known  # type: ignore[attr-defined]


def test_increments_of_another_batch_are_added_to_the_rows_that_are_here() -> None:
    """Increments with owner -1 are for profiles that were not loaded: they are left out, the others added."""
    profile = LAYOUT.pipeline.profiles["merchant"]
    batch = _batch(6, 5)
    owner_M = np.array([0, 1, 2, 0, 1, 2])
    added = increments_of(LAYOUT, batch, batch.time_M, dict.fromkeys(RING_NAMES, owner_M))["merchant"]
    whole = LAYOUT.empty_profiles(profile, 3)
    accumulate(profile, whole, added)
    here = np.array([1, -1, 0])  # of the three, the last and the first are loaded, in this order
    moved = Increments(here[added.owner], *(getattr(added, n) for n in Increments.__slots__[1:]))
    rings = LAYOUT.empty_profiles(profile, 2)
    accumulate(profile, rings, moved)
    assert rings.tobytes() == whole[[2, 0]].tobytes()
    assert int(whole["count"].sum()) == 6 * len(profile.half_lives)
