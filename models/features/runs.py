"""What a sequence of verdicts comes to: how old the newest is, and how long it has been nothing but fraud.

A detector can make these of the sequence itself, but needs many more examples to: they are counts and differences of
times over all of it. Legend: B events, J profiles, S verdicts, G features of a verdict, C columns of context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.features.encoded import RUN_FEATURES, VERDICT_FEATURES
from models.features.numerics import log1p

__all__ = ["write_runs"]

PRESENT, FRAUD, AGE, DAYS = (VERDICT_FEATURES.index(name) for name in ("present", "fraud", "age", "days"))
WIDTH = len(RUN_FEATURES)


@compiled
def write_runs(verdicts_BJSG: NDArray[np.float32], context_BC: NDArray[np.float32], column: int) -> None:
    """Write RUN_FEATURES of each profile, one after the other, from `column` on."""
    length = verdicts_BJSG.shape[2]
    for b in range(len(verdicts_BJSG)):
        for j in range(verdicts_BJSG.shape[1]):
            verdict_SG, c = verdicts_BJSG[b, j], column + j * WIDTH
            place = length - 1
            while place >= 0 and verdict_SG[place, PRESENT] > 0.0 and verdict_SG[place, FRAUD] > 0.0:
                place -= 1
            run = length - 1 - place
            context_BC[b, c] = verdict_SG[length - 1, AGE]
            context_BC[b, c + 1] = log1p(np.float64(run))
            context_BC[b, c + 2] = verdict_SG[place + 1, AGE] if run else 0.0
            context_BC[b, c + 3] = verdict_SG[place + 1, DAYS] if run else 0.0
            context_BC[b, c + 4] = verdict_SG[place, DAYS] if place >= 0 else 0.0


assert RUN_FEATURES == ("verdict_age", "run", "run_age", "run_days", "clean_days"), "as `write_runs` writes them"
