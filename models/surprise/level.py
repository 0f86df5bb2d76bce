"""From evidence to one score that means the same for every entity.

Each kind of evidence is averaged over several horizons: a spike shows in the shortest, a fault that lasts in the
longest. An average counts by how far it is above its usual value under normal operation, in the entity's own spreads;
the level is the mean of their logarithms, so that no single one decides, and score = level / (1 + level).

How rare a score is, the entity's own past says: its rank is the share of earlier readings whose scores were in a lower
range, 1 less the p-value of a conformal test (Laxhammar and Falkman 2011) that forgets.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.compiled import inlined
from models.surprise.memory import EVIDENCE, HORIZONS, LEVEL, RANKS, Places

__all__ = ["advance_rank", "advance_score"]

HORIZON = np.array([5.0, 30.0, 120.0, 240.0, 480.0])  # readings; half of it is an average's time constant
NOVELTY_GAIN = 100.0  # a hundredth of a half range, averaged over channels, counts as one spread
SPREADS = 2.5  # mean absolute deviations: about where one of a hundred normal values is
LEAST_SPREAD = 1e-3
RANKED = 20_000.0  # readings that ranks rest on; older ones count half, and half again


@inlined
def advance_score(
    places: Places, state_W: NDArray[np.float32], evidence_K: NDArray[np.float64], seen: float, rate: float
) -> float:
    """Score in [0, 1) with this reading. rate: by which the usual values move, 0 to leave them. evidence_K: novelty
    is the last."""
    level = 0.0
    for kind in range(EVIDENCE):
        for horizon in range(HORIZONS):
            at = places.levels + (kind * HORIZONS + horizon) * LEVEL
            pace = max(2.0 / (HORIZON[horizon] + 1.0), 1.0 / (seen + 1.0))
            average = state_W[at] + pace * (evidence_K[kind] - state_W[at])
            state_W[at] = average
            if kind == EVIDENCE - 1:
                level += math.log1p(NOVELTY_GAIN * average)
                continue
            usual, spread = np.float64(state_W[at + 1]), np.float64(state_W[at + 2])
            level += math.log1p(max(average - usual, 0.0) / (spread + LEAST_SPREAD * (1.0 + usual)))
            off = average - usual
            state_W[at + 1] = usual + rate * off
            state_W[at + 2] = spread + rate * (SPREADS * abs(off) - spread)
    level /= EVIDENCE * HORIZONS
    return level / (1.0 + level)


@inlined
def advance_rank(places: Places, state_W: NDArray[np.float32], score: float, weight: float) -> float:
    """Rank in [0, 1) of a score among those before it; then it is counted, by `weight`."""
    at, own = places.ranks, min(RANKS - 1, int(score * RANKS))
    total, reached = np.float64(0.0), np.float64(0.0)
    for r in range(RANKS):
        total += state_W[at + r]
        if r >= own:
            reached += state_W[at + r]
    if total >= RANKED:
        for r in range(RANKS):
            state_W[at + r] *= np.float32(0.5)
    state_W[at + own] += np.float32(weight)
    return 1.0 - (1.0 + reached) / (1.0 + total)
