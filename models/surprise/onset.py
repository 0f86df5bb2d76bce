"""When something new begins: strong news, unless as strong ones came shortly before, or many in the recent past."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.compiled import inlined
from models.surprise.memory import Places

__all__ = ["advance_onset"]

REFRACTORY = 150.0  # readings in which what was as strong fades
BUDGET = 2000.0  # readings in which an onset is forgotten that makes the next ones weaker
STRENGTH, AGE, USED = 3, 4, 5  # words of the head


@inlined
def advance_onset(places: Places, state_W: NDArray[np.float32], news: float) -> float:
    """Strength of an onset with this reading, 0 for none."""
    at = places.head
    age = np.float64(state_W[at + AGE])
    held = np.float64(state_W[at + STRENGTH]) * max(0.0, 1.0 - age / REFRACTORY)
    used = np.float64(state_W[at + USED]) * (1.0 - 1.0 / BUDGET)
    onset = 0.0
    if news > held:
        rise = news - held
        onset = rise / (1.0 + used)
        used += np.sqrt(rise)
        state_W[at + STRENGTH] = news
        age = np.float64(0.0)
    state_W[at + AGE] = age + 1.0
    state_W[at + USED] = used
    return onset
