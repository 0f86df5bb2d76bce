"""Events and labels as columns: what the codec hands to everything above it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["EventBatch", "LabelBatch"]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """M decoded events in arrival order. Column orders are those of `models.features.layout.Layout`.

    event_id, entity: M texts.
    time_M: int64, event time in epoch milliseconds.
    id_hash_M: uint64, xxh3-64 of the event id; never 0, which marks an empty row of a window.
    values_MV: float32, numbers, booleans (0/1) and positions (degrees); NaN where missing.
    hashes_MK: uint32, hashes of categories and of entities other than the key; 0 where missing.
    profile_keys: for each shared profile, M texts, None where the event has no such key.
    """

    event_id: list[str]
    entity: list[str]
    time_M: NDArray[np.int64]
    id_hash_M: NDArray[np.uint64]
    values_MV: NDArray[np.float32]
    hashes_MK: NDArray[np.uint32]
    profile_keys: dict[str, list[str | None]]

    def __len__(self) -> int:
        return len(self.event_id)

    @staticmethod
    def concatenate(parts: list[EventBatch]) -> EventBatch:
        """All events of several batches of one pipeline, in order; at least one batch."""
        if len(parts) == 1:
            return parts[0]
        return EventBatch(
            event_id=[event_id for part in parts for event_id in part.event_id],
            entity=[entity for part in parts for entity in part.entity],
            time_M=np.concatenate([part.time_M for part in parts]),
            id_hash_M=np.concatenate([part.id_hash_M for part in parts]),
            values_MV=np.concatenate([part.values_MV for part in parts]),
            hashes_MK=np.concatenate([part.hashes_MK for part in parts]),
            profile_keys={name: [k for p in parts for k in p.profile_keys[name]] for name in parts[0].profile_keys},
        )

    def take(self, index_N: NDArray[np.int64]) -> EventBatch:
        """The events at these positions, in that order."""
        index = index_N.tolist()
        return EventBatch(
            event_id=[self.event_id[i] for i in index],
            entity=[self.entity[i] for i in index],
            time_M=self.time_M[index_N],
            id_hash_M=self.id_hash_M[index_N],
            values_MV=self.values_MV[index_N],
            hashes_MK=self.hashes_MK[index_N],
            profile_keys={name: [keys[i] for i in index] for name, keys in self.profile_keys.items()},
        )


@dataclass(frozen=True, slots=True)
class LabelBatch:
    """M labels in arrival order.

    event_id: the events they judge. time_M: int64, when each label arrived (epoch milliseconds).
    id_hash_M: as in EventBatch. fraud_M: bool. profile_keys: as in EventBatch; a label names the profiles that should
    learn of it. amounts: of the number fields that verdicts are compared by (`Pipeline.label_amounts`), the value of
    each judged event: float64 (M,), NaN where the label does not say it. source: who judged; None where nobody asks.
    """

    event_id: list[str]
    time_M: NDArray[np.int64]
    id_hash_M: NDArray[np.uint64]
    fraud_M: NDArray[np.bool_]
    profile_keys: dict[str, list[str | None]]
    amounts: dict[str, NDArray[np.float64]]
    source: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.event_id)
