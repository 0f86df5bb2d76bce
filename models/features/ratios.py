"""How the amount of a labelled event compares with what is usual: a number that a verdict keeps.

The ratio is the transformed amount less the transformed mean amount of another shared profile of the same event, the
card's, say, or of the profile itself: the mean of its longest half-life, as an event at the label's clock would read
it. It reads buckets that ended by that clock − delay, which no event can change any more that is within `delay` of
the label, so live and replay come to the same number.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, plain
from models.events import LabelBatch
from models.features.layout import Layout
from models.features.numerics import transformed
from models.features.profiles import AMOUNT_SCALE, WEIGHTS, Increments, bucket_ms, collect, faded, words_of
from models.features.verdicts import RATIO_SCALE, UNKNOWN_RATIO

__all__ = ["compared_profiles", "label_increments"]

LARGEST = 2**31 - 1  # thousandths


def compared_profiles(layout: Layout, labels: LabelBatch) -> list[str]:
    """The profiles that `label_increments` reads for these labels: none when no label has an amount."""
    profiles = layout.pipeline.profiles
    found = {}
    for name, profile in profiles.items():
        other = layout.compared(name)
        if other is not None and profile.amount is not None and not np.isnan(labels.amounts[profile.amount]).all():
            found[other] = True
    return list(found)


def label_increments(
    layout: Layout,
    labels: LabelBatch,
    clock_M: NDArray[np.int64],
    ring_owner: Mapping[str, NDArray[np.int64]],
    rings: Mapping[str, NDArray[np.void]],
) -> dict[str, Increments]:
    """What M labels add to each shared profile.

    clock_M: the greatest arrival time of each label's source partition up to and including it, epoch ms. ring_owner:
    for each profile, each label's row in it, -1 where the label has no such key. rings: of the profiles that
    `compared_profiles` names, with these rows.
    """
    clock_M = plain(clock_M, np.int64)
    increments = {}
    for name, profile in layout.pipeline.profiles.items():
        if not profile.verdicts:
            increments[name] = collect(profile, ring_owner[name], clock_M, fraud_M=labels.fraud_M)
            continue
        ratio_M = np.full(len(labels), UNKNOWN_RATIO, np.int64)
        other = layout.compared(name)
        if other in rings:
            assert other is not None
            assert profile.amount is not None
            lengths_R = [bucket_ms(half_life) for half_life in layout.pipeline.profiles[other].half_lives_ms]
            _ratios(
                *words_of(rings[other]), len(lengths_R) - 1, lengths_R[-1], layout.pipeline.profiles[other].delay_ms,
                layout.transform(profile.amount), WEIGHTS, plain(ring_owner[other], np.int64), clock_M,
                plain(labels.amounts[profile.amount], np.float64), ratio_M,
            )  # fmt: skip
        increments[name] = collect(
            profile, ring_owner[name], clock_M, fraud_M=labels.fraud_M, id_M=labels.id_hash_M, ratio_M=ratio_M
        )
    return increments


@compiled
def _ratios(
    words_PRW: NDArray[np.int32],
    longs_PRW: NDArray[np.int64],
    ring: int,
    length: int,
    delay: int,
    how: int,
    weights_S: NDArray[np.float64],
    owner_M: NDArray[np.int64],
    clock_M: NDArray[np.int64],
    amount_M: NDArray[np.float64],
    ratio_M: NDArray[np.int64],
) -> None:
    """Writes thousandths where they are known."""
    for m in range(len(owner_M)):
        owner, amount = owner_M[m], amount_M[m]
        if owner < 0 or np.isnan(amount):
            continue
        newest = (clock_M[m] - delay) // length - 1
        count, _, _, total = faded(words_PRW[owner, ring], longs_PRW[owner, ring], newest, weights_S)
        if count > 0.0:
            ratio = transformed(how, amount) - transformed(how, total / AMOUNT_SCALE / count)
            ratio_M[m] = np.int64(np.rint(min(max(ratio * RATIO_SCALE, -LARGEST), LARGEST)))
