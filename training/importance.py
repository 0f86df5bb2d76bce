"""What the detector lives on as a whole: how much worse it ranks when a group of inputs is of another event.

Permutation importance (Breiman, "Random Forests", Machine Learning 2001, section 10; for groups of correlated inputs
Gregorutti et al., CSDA 2015): the groups are those of the reason codes (`models.attribution.input_groups`). A group
keeps its distribution and loses its meaning; the fall of the average precision is its importance. Groups that say the
same cover for each other, so a small figure does not prove that a group could go.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.attribution import Group, input_groups
from models.features.encoded import Encoded, InputSpec
from training.bootstrap import Interval, weighted_ap
from training.deletion import Score

__all__ = ["Importance", "importance", "swapped"]

REPEATS = 3


@dataclass(frozen=True, slots=True)
class Importance:
    """A group's mean fall of average precision, with its least and greatest over the shuffles."""

    group: str
    drop: Interval


def importance(
    score: Score,
    inputs: InputSpec,
    encoded: Encoded,
    fraud_B: NDArray[np.bool_],
    weight_B: NDArray[np.float64],
    *,
    repeats: int = REPEATS,
    seed: int = 0,
) -> tuple[float, list[Importance]]:
    """The sample's average precision, and the groups by importance, greatest first.

    weight_B: how many events of the whole each stands for, as in a sample that keeps every fraud.
    """
    rng = np.random.default_rng(seed)
    whole = weighted_ap(fraud_B, score(encoded), weight_B)
    found = []
    for group in input_groups(inputs):
        drops = []
        for _ in range(repeats):
            # Donors are drawn as the whole has them, or frauds would donate far too often.
            donor_B = rng.choice(len(encoded), size=len(encoded), p=weight_B / weight_B.sum())
            drops.append(whole - weighted_ap(fraud_B, score(swapped(encoded, group, donor_B)), weight_B))
        found.append(Importance(group.name, Interval(float(np.mean(drops)), min(drops), max(drops))))
    return whole, sorted(found, key=lambda i: -i.drop.value)


def swapped(encoded: Encoded, group: Group, donor_B: NDArray[np.int64]) -> Encoded:
    """The windows, each with the group's inputs of another one, the donor."""
    x_BLF, codes_BLK, mask_BL = encoded.x_BLF.copy(), encoded.codes_BLK.copy(), encoded.mask_BL.copy()
    context_BC, verdicts_BJSG = encoded.context_BC.copy(), encoded.verdicts_BJSG.copy()
    columns = list(group.columns)
    if group.kind == "x":
        x_BLF[:, -1, columns] = encoded.x_BLF[donor_B][:, -1, columns]
    elif group.kind == "code":
        codes_BLK[:, -1, columns] = encoded.codes_BLK[donor_B][:, -1, columns]
    elif group.kind == "context":
        context_BC[:, columns] = encoded.context_BC[donor_B][:, columns]
    elif group.kind == "history":
        x_BLF[:, :-1], codes_BLK[:, :-1] = encoded.x_BLF[donor_B, :-1], encoded.codes_BLK[donor_B, :-1]
        mask_BL[:, :-1] = encoded.mask_BL[donor_B, :-1]
    else:
        verdicts_BJSG[:, columns] = encoded.verdicts_BJSG[donor_B][:, columns]
        derived = list(group.derived)
        context_BC[:, derived] = encoded.context_BC[donor_B][:, derived]
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)
