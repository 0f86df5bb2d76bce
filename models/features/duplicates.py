"""Which events of a batch were applied before: an event id that the entity's window already holds.

The window is what one-at-a-time processing would see: the last L events applied, those of this batch
included. A repeat that comes after L other events of its entity is not recognised.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_duplicates"]


def find_duplicates(
    window_ids_NL: NDArray[np.uint64], owner_M: NDArray[np.int64], id_M: NDArray[np.uint64]
) -> NDArray[np.bool_]:
    """True where event m repeats one that is still in its entity's window: bool (M,).

    window_ids_NL: ids in the N entities' stored windows, oldest first, 0 where empty. owner_M: each event's
    entity as a row of it. id_M: each event's id hash, in arrival order.
    """
    candidate_M: NDArray[np.bool_] = (window_ids_NL[owner_M] == id_M[:, None]).any(axis=1)
    values, inverse, counts = np.unique(id_M, return_inverse=True, return_counts=True)
    if len(values) < len(id_M):
        candidate_M |= counts[inverse] > 1
    if not candidate_M.any():
        return candidate_M
    # Repeats are rare, and what one of them matches depends on which earlier ones were applied: replay the
    # few entities that have any, event by event.
    duplicate_M = np.zeros(len(id_M), dtype=bool)
    length = window_ids_NL.shape[1]
    for owner in np.unique(owner_M[candidate_M]).tolist():
        recent: deque[int] = deque((i for i in window_ids_NL[owner].tolist() if i), maxlen=length)
        for m in np.flatnonzero(owner_M == owner).tolist():
            if int(id_M[m]) in recent:
                duplicate_M[m] = True
            else:
                recent.append(int(id_M[m]))
    return duplicate_M
