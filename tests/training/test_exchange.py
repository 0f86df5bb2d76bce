"""Exchanged events: what they are, and that their windows are those they would have had."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from models.features.encoded import Encoded
from models.features.memory import MemoryStore
from models.pipeline.load import load_pipeline
from models.samples import write_file
from models.simulate import simulate
from training.exchange import exchanged, windows_of_exchanged
from training.from_table import history_of_table
from training.replay import Chunk, chunks
from training.tables import Mapped, read_file

SHARE = 0.2


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Chunk]:
    """Events of a small world without labels, and the store that has stepped over all but the last chunk."""
    path = tmp_path_factory.mktemp("exchange") / "payments.parquet"
    write_file(simulate(seed=3, customers=1200, merchants=200, days=3, fraud_share=0.02), path)
    mapped = Mapped(read_file(path), load_pipeline("payments"), labels="is_fraud", label_time="label_time")
    history, found = history_of_table(mapped)[0], []
    for chunk in chunks(replace(history, labels=history.labels.slice(0, 0), label_clock_M=history.label_clock_M[:0])):
        found.append(chunk)
        if len(found) == 12:
            return found
        chunk.store.step(chunk.batch, chunk.clock_M)
    raise AssertionError("too few chunks")


def assert_equal(one: Encoded, other: Encoded) -> None:
    for field in fields(Encoded):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_values_come_from_another_entity_and_the_rest_stays(parts: list[Chunk]) -> None:
    """Only the last event of an entity is exchanged: numbers, codes with their keys, or both, from one donor."""
    batch, pipeline = parts[-1].batch, parts[-1].store.layout.pipeline
    changed, place_P = exchanged(pipeline, batch, SHARE, np.random.default_rng(0))
    rest_M = ~np.isin(np.arange(len(batch)), place_P)
    assert 5 < len(place_P) < 0.4 * len(batch)
    np.testing.assert_array_equal(changed.values_MV[rest_M], batch.values_MV[rest_M])
    np.testing.assert_array_equal(changed.hashes_MK[rest_M], batch.hashes_MK[rest_M])
    assert (changed.entity, changed.event_id) == (batch.entity, batch.event_id)
    entity_M = np.array(batch.entity)
    kinds = set()
    for p in place_P.tolist():
        assert p == np.flatnonzero(entity_M == entity_M[p])[-1]
        same_numbers = (_rows(batch.values_MV) == _rows(changed.values_MV)[p]) & (entity_M != entity_M[p])
        same_codes = (_rows(batch.hashes_MK) == _rows(changed.hashes_MK)[p]) & (entity_M != entity_M[p])
        kinds.add((bool(same_numbers.any()), bool(same_codes.any())))
        donors = np.flatnonzero(same_codes)
        merchants = {batch.profile_keys["merchant"][d] for d in donors.tolist()} | {batch.profile_keys["merchant"][p]}
        assert changed.profile_keys["merchant"][p] in merchants
        assert changed.profile_keys["card"][p] == batch.profile_keys["card"][p]
    assert (True, True) in kinds
    assert (False, False) not in kinds


def _rows(array: np.ndarray) -> np.ndarray:
    """Each row as one value, NaN equal to NaN."""
    return np.ascontiguousarray(array).view(f"V{array.shape[1] * array.itemsize}").ravel()


def test_their_windows_are_those_of_a_world_in_which_they_happened(parts: list[Chunk]) -> None:
    """One event at a time up to the exchanged one, which then is stepped in its place: the same windows to the bit."""
    last = parts[-1]
    pipeline = last.store.layout.pipeline
    windows = windows_of_exchanged(last, SHARE, np.random.default_rng(1))
    changed, place_P = exchanged(pipeline, last.batch, SHARE, np.random.default_rng(1))
    assert windows is not None
    assert len(windows) == len(place_P) > 5
    for n, p in list(enumerate(sorted(place_P.tolist())))[::8]:
        world = _store_before(parts)
        one = np.array([p])
        if p:
            world.step(last.batch.take(np.arange(p)), last.clock_M[:p])
        alone = world.step(changed.take(one), last.clock_M[one])
        assert_equal(alone.encoded, windows.take(slice(n, n + 1)))


def test_the_store_does_not_notice(parts: list[Chunk]) -> None:
    """What is stepped afterwards is what would have been stepped without."""
    last = parts[-1]
    with_it, without = _store_before(parts), _store_before(parts)
    windows_of_exchanged(Chunk(with_it, last.batch, last.clock_M), SHARE, np.random.default_rng(2))
    one, other = (store.step(last.batch, last.clock_M) for store in (with_it, without))
    assert_equal(one.encoded, other.encoded)
    assert one.states_N.tobytes() == other.states_N.tobytes()


def _store_before(parts: list[Chunk]) -> MemoryStore:
    """A new store that has stepped over all but the last chunk."""
    store = MemoryStore(parts[0].store.layout.pipeline)
    for chunk in parts[:-1]:
        store.step(chunk.batch, chunk.clock_M)
    return store
