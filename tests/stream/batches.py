"""Batches of payments through a real store, as the worker does it: what the tests of the store share."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.columns import columns_to_batch, distinct
from models.features.step import Loaded, Step, increments_of, step
from stream.store.keys import Position, event_tag
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore, Write

__all__ = ["CARDS", "DAY_MS", "MERCHANTS", "START_MS", "TAG", "process", "random_columns"]

START_MS = 1_700_000_000_000
DAY_MS = 86_400_000
TAG = event_tag(3)
MERCHANTS, CARDS = [f"m{i}" for i in range(9)], [f"c{i}" for i in range(5)]


def random_columns(seed: int, count: int, first_id: int = 0) -> dict[str, list[Any]]:
    """Payments of a few cards at a few merchants, some without a device."""
    rng = np.random.default_rng(seed)
    return {
        "transaction_id": [f"t{first_id + i}" for i in range(count)],
        "timestamp": (START_MS + np.sort(rng.integers(0, 3 * DAY_MS, count))).tolist(),
        "card_id": [f"c{i}" for i in rng.integers(0, 5, count)],
        "merchant_id": [f"m{i}" for i in rng.integers(0, 9, count)],
        "device_id": [f"d{i}" if i else None for i in rng.integers(0, 7, count)],
        "amount": rng.uniform(1, 300, count).round(2).tolist(),
        "channel": rng.choice(["web", "pos"], count).tolist(),
    }


def process(
    store: RedisStore, columns: dict[str, list[Any]], held: Position | None, apply: bool = True
) -> tuple[Step, Position, Outbox]:
    """One batch as the worker does it: load, step, store, apply."""
    layout = store.layout
    batch = columns_to_batch(layout, columns)
    clock_M = np.maximum.accumulate(np.maximum(batch.time_M, held.clock_ms if held else 0))
    entities, owner_M = distinct(batch.entity)
    profile_keys, ring_owner = {}, {}
    for name, values in batch.profile_keys.items():
        profile_keys[name], ring_owner[name] = distinct(values)
    loaded = store.load({TAG: entities}, profile_keys)
    assert loaded.positions == {TAG: held}
    result = step(layout, batch, clock_M, Loaded(loaded.states_N, owner_M, loaded.rings, ring_owner))
    before = held or Position()
    position = Position(before.next_offset + len(batch), int(clock_M[-1]), before.outbox_seq + 1)
    added = increments_of(layout, batch, clock_M, ring_owner, result.applied_A)
    increments = added
    outbox = make_outbox(position.outbox_seq, store.formats, profile_keys, increments)
    assert store.store([Write(TAG, held, position, outbox, entities, result.states_N)])[0]
    if apply:
        store.apply([(TAG, outbox)])
    return result, position, outbox
