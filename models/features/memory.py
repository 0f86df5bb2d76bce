"""A store in memory: what Redis is to the worker, for replay, training and tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.events import EventBatch, LabelBatch
from models.features.layout import Layout
from models.features.profiles import accumulate
from models.features.ratios import compared_profiles, label_increments
from models.features.step import Loaded, Step, increments_of, step
from models.pipeline.spec import Pipeline

__all__ = ["MemoryStore"]

FIRST_ROWS = 1024


class _Rows:
    """Rows by name in an array that doubles when it is full."""

    def __init__(self, empty: NDArray[np.void]) -> None:
        self.index: dict[str, int] = {}
        self._empty = empty  # one row
        self.array = np.repeat(empty, FIRST_ROWS, axis=0)

    def of(self, names: list[str]) -> NDArray[np.int64]:
        """Rows of these names; unknown names get one."""
        index = self.index
        rows = [index.setdefault(name, len(index)) for name in names]
        while len(index) > len(self.array):
            self.array = np.concatenate([self.array, np.repeat(self._empty, len(self.array), axis=0)])
        return np.array(rows, dtype=np.int64)

    def take(self, rows_N: NDArray[np.int64]) -> NDArray[np.void]:
        """A copy of these rows."""
        taken = self._bytes()[rows_N].view(self.array.dtype)
        return taken.reshape(len(rows_N), *self.array.shape[1:])

    def put(self, rows_N: NDArray[np.int64], values_N: NDArray[np.void]) -> None:
        """Overwrite these rows."""
        data = self._bytes()
        data[rows_N] = np.ascontiguousarray(values_N).view(np.uint8).reshape(len(rows_N), data.shape[1])

    def _bytes(self) -> NDArray[np.uint8]:
        """The rows as bytes of the same memory: numpy copies these at once, and the members of a record one by one."""
        return self.array.view(np.uint8).reshape(len(self.array), self._empty.nbytes)


class MemoryStore:
    """States of all entities and all shared profiles of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.layout = Layout(pipeline)
        self._states = _Rows(self.layout.empty_states(1))
        self._profiles = {name: _Rows(self.layout.empty_profiles(p, 1)) for name, p in pipeline.profiles.items()}

    def step(self, batch: EventBatch, clock_M: NDArray[np.int64]) -> Step:
        """Apply a batch and keep its states and increments. See `models.features.step.step`."""
        loaded, rows_N, ring_rows = self._loaded(batch)
        result = step(self.layout, batch, clock_M, loaded)
        self._states.put(rows_N, result.states_N)
        added_to = increments_of(self.layout, batch, clock_M, loaded.ring_owner, result.applied_A)
        for name, added in added_to.items():
            accumulate(self.layout.pipeline.profiles[name], loaded.rings[name], added)
            self._profiles[name].put(ring_rows[name], loaded.rings[name])
        return result

    def what_if(self, batch: EventBatch, clock_M: NDArray[np.int64]) -> Step:
        """What `step` would give; nothing is kept."""
        loaded, _, _ = self._loaded(batch)
        return step(self.layout, batch, clock_M, loaded)

    def learn(self, labels: LabelBatch, clock_M: NDArray[np.int64]) -> None:
        """Apply labels to the shared profiles. clock_M: as in `step`, of the labels' arrival times."""
        layout = self.layout
        owners = {name: self._rows_of_keys(name, keys) for name, keys in labels.profile_keys.items()}
        rings = {name: self._profiles[name].array for name in compared_profiles(layout, labels)}
        for name, added in label_increments(layout, labels, clock_M, owners, rings).items():
            accumulate(layout.pipeline.profiles[name], self._profiles[name].array, added)

    def state(self, entity: str) -> NDArray[np.void]:
        """The state of one entity: structured (1,); an empty one when it was never heard of."""
        row = self._states.index.get(entity)
        return self.layout.empty_states(1) if row is None else self._states.array[row : row + 1].copy()

    def profile(self, name: str, key: str) -> NDArray[np.void]:
        """The rings of one shared profile: structured (1, R, RING_SLOTS)."""
        row = self._profiles[name].index.get(key)
        if row is None:
            return self.layout.empty_profiles(self.layout.pipeline.profiles[name], 1)
        return self._profiles[name].array[row : row + 1].copy()

    def _loaded(self, batch: EventBatch) -> tuple[Loaded, NDArray[np.int64], dict[str, NDArray[np.int64]]]:
        """Copies of what the batch needs, and the rows that they are of: of states, and of each profile's rings."""
        rows_N, owner_M = np.unique(self._states.of(batch.entity), return_inverse=True)
        rings, ring_owner, ring_rows = {}, {}, {}
        for name, rows in self._profiles.items():
            known = self._rows_of_keys(name, batch.profile_keys[name])
            used, inverse = np.unique(known[known >= 0], return_inverse=True)
            ring_owner[name] = np.full(len(batch), -1, dtype=np.int64)
            ring_owner[name][known >= 0] = inverse
            ring_rows[name], rings[name] = used, rows.take(used)
        return Loaded(self._states.take(rows_N), owner_M.ravel(), rings, ring_owner), rows_N, ring_rows

    def _rows_of_keys(self, name: str, keys: list[str | None]) -> NDArray[np.int64]:
        rows = np.full(len(keys), -1, dtype=np.int64)
        known = [m for m, key in enumerate(keys) if key is not None]
        rows[known] = self._profiles[name].of([key for key in keys if key is not None])
        return rows
