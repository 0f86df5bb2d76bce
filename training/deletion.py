"""Do the reason codes say what the score rests on? Remove what they name, and see whether the score falls.

The named inputs of an event are removed one after another, strongest first, each by the rule that attribution itself
removes them by: numbers become what training saw on average, categories become missing, a history has never been. The
fall of the score is compared with that of as many groups drawn at random (Samek et al., "Evaluating the Visualization
of What a Deep Neural Network Has Learned", IEEE TNNLS 2017, section III, for groups instead of pixels). Reasons that
do not beat random ones tell an analyst nothing, however plausible they read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.attribution import Group, Reason, input_groups
from models.features.encoded import Encoded, InputSpec
from models.weights import Scaling
from training.bootstrap import Interval, mean_interval

__all__ = ["Deletion", "Score", "deletion_test", "named_groups", "verdict", "without"]

# Encoded → score_B
Score = Callable[[Encoded], NDArray[np.float32]]

DRAWS = 10  # random choices of groups per event
FAITHFUL_SHARE = 0.75  # of events on which the named reasons must beat random ones, to be called good


@dataclass(frozen=True, slots=True)
class Deletion:
    """What removing k = 1 … n groups costs, over B events.

    named, random: the mean drop of the score for each k, of the named groups and of random ones. difference: named
    less random with all n removed. wins: share of events on which the named groups cost more than the mean of the
    random draws. score: mean score with nothing removed.
    """

    events: int
    draws: int
    score: float
    named: tuple[Interval, ...]
    random: tuple[Interval, ...]
    difference: Interval
    wins: float


def deletion_test(
    score: Score,
    inputs: InputSpec,
    scaling: Scaling,
    encoded: Encoded,
    named: Sequence[Sequence[int]],
    entity: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Deletion:
    """Compare removing the named groups with removing random ones.

    named: for each of the B windows the same number n ≥ 1 of places in `input_groups(inputs)`, strongest first
    (`named_groups`). entity: of each window; events of one entity are drawn together in the confidence intervals.
    Raises ValueError without windows, and for names that differ in number.
    """
    groups, lengths = input_groups(inputs), {len(names) for names in named}
    if len(encoded) == 0 or len(named) != len(encoded) or len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"deletion_test: {len(encoded)} windows, {len(named)} lists of reasons of lengths {lengths}: "
                         "expected as many lists as windows, all of one length above zero")  # fmt: skip
    whole_B = score(encoded).astype(np.float64)

    def drops(order_Bn: NDArray[np.int64]) -> NDArray[np.float64]:
        """drop_nB: with the first k + 1 groups of each row removed."""
        return np.stack([
            whole_B - score(without(encoded, scaling, groups, order_Bn[:, : k + 1])) for k in range(order_Bn.shape[1])
        ])  # fmt: skip

    named_Bn = np.array([list(names) for names in named], dtype=np.int64)
    rng = np.random.default_rng(seed)
    random_RnB = np.stack([
        drops(np.argsort(rng.random((len(encoded), len(groups))), axis=1)[:, : named_Bn.shape[1]]) for _ in range(draws)
    ])  # fmt: skip
    named_nB, random_nB = drops(named_Bn), random_RnB.mean(axis=0)
    return Deletion(
        events=len(encoded), draws=draws, score=float(whole_B.mean()),
        named=tuple(mean_interval(drop_B, entity, seed=seed) for drop_B in named_nB),
        random=tuple(mean_interval(drop_B, entity, seed=seed) for drop_B in random_nB),
        difference=mean_interval(named_nB[-1] - random_nB[-1], entity, seed=seed),
        wins=float(np.mean(named_nB[-1] > random_nB[-1])),
    )  # fmt: skip


def verdict(test: Deletion) -> tuple[bool, str]:
    """Whether the reasons beat random ones, and that as a sentence with the numbers it rests on."""
    n, named, random, more = len(test.named), test.named[-1], test.random[-1], test.difference
    numbers = (
        f"Removing the {n} named reasons lowers the score by {named.value:.3f} on average "
        f"(95% interval {named.low:.3f} to {named.high:.3f}), removing {n} random groups by {random.value:.3f} "
        f"({random.low:.3f} to {random.high:.3f}); the named ones cost more on {test.wins:.0%} of {test.events} events."
    )
    if not more.low > 0:
        return False, f"The reason codes are not shown to be better than random ones. {numbers}"
    if test.wins < FAITHFUL_SHARE:
        return True, f"The reason codes beat random ones on average, but not on most events. {numbers}"
    return True, f"The reason codes name what the scores rest on. {numbers}"


def named_groups(inputs: InputSpec, reasons: Sequence[Sequence[Reason]]) -> list[list[int]]:
    """The places in `input_groups(inputs)` that reasons speak of: a reason shows one input of its group."""
    groups = input_groups(inputs)
    names = {"x": inputs.x, "context": inputs.context}
    place = {names[group.kind][c]: g for g, group in enumerate(groups) if group.kind in names for c in group.columns}
    place |= {group.name: g for g, group in enumerate(groups) if group.name not in place}
    return [[place[reason.feature] for reason in of_event] for of_event in reasons]


def without(encoded: Encoded, scaling: Scaling, groups: Sequence[Group], removed_Bn: NDArray[np.int64]) -> Encoded:
    """The windows, each without its groups: places in `groups`, n for each window. Nothing else changes."""
    x_BLF, codes_BLK, mask_BL = encoded.x_BLF.copy(), encoded.codes_BLK.copy(), encoded.mask_BL.copy()
    context_BC, verdicts_BJSG = encoded.context_BC.copy(), encoded.verdicts_BJSG.copy()
    for g in np.unique(removed_Bn).tolist():
        group, columns = groups[g], list(groups[g].columns)
        row_V = np.flatnonzero((removed_Bn == g).any(axis=1))
        if group.kind == "x":
            x_BLF[row_V[:, None], -1, columns] = scaling.x_mean_F[columns]
        elif group.kind == "code":
            codes_BLK[row_V[:, None], -1, columns] = 0  # "missing" is the only category that stands for none
        elif group.kind == "context":
            context_BC[row_V[:, None], columns] = scaling.context_mean_C[columns]
        elif group.kind == "history":
            mask_BL[row_V, :-1] = False
        else:
            verdicts_BJSG[row_V[:, None], columns] = 0.0  # none has arrived
            context_BC[row_V[:, None], list(group.derived)] = 0.0
    return Encoded(x_BLF, codes_BLK, mask_BL, context_BC, verdicts_BJSG)
