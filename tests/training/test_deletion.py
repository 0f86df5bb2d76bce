"""Reason codes are put to the test themselves: a detector whose dependence is known says what has to come out."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.attribution import explain, input_groups
from models.engines.base import Engine, scores_of
from models.features.encoded import VERDICT_FEATURES, Encoded, InputSpec
from models.weights import Scaling
from training.deletion import deletion_test, named_groups, verdict, without
from training.importance import importance, swapped

INPUTS = InputSpec(
    x=("amount", "amount.missing", "gap", "hour_sin", "hour_cos"), codes=(("kind", 5), ("channel", 4)),
    context=tuple(f"card.{what}.{h}" for what in ("events", "amount_mean") for h in ("1h", "1d")), length=4,
    verdicts=("shop",), verdict_length=3,
)  # fmt: skip
ROWS = 120


class Known(Engine):
    """Lives on the gap, the category, one context feature and the verdicts; nothing else moves it."""

    name = "known"

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        gap_B, kind_B = encoded.x_BLF[:, -1, 2], encoded.codes_BLK[:, -1, 0]
        frauds_B = encoded.verdicts_BJSG[:, 0, :, 1].sum(axis=1)
        return np.asarray(2.0 * gap_B + 1.5 * kind_B + encoded.context_BC[:, 3] + frauds_B - 4.0, dtype=np.float32)


def windows(seed: int = 0) -> Encoded:
    rng = np.random.default_rng(seed)
    mask_BL = np.ones((ROWS, INPUTS.length), dtype=bool)
    return Encoded(
        rng.uniform(0.5, 2, (ROWS, INPUTS.length, 5)).astype(np.float32),
        rng.integers(1, 4, (ROWS, INPUTS.length, 2)).astype(np.int32), mask_BL,
        rng.uniform(0.5, 2, (ROWS, 4)).astype(np.float32),
        rng.integers(0, 2, (ROWS, 1, 3, len(VERDICT_FEATURES))).astype(np.float32),
    )  # fmt: skip


def scaling() -> Scaling:
    verdicts = np.zeros((1, len(VERDICT_FEATURES)), dtype=np.float32)
    zeros = [np.zeros(n, dtype=np.float32) for n in (5, 4)]
    ones = [np.ones(n, dtype=np.float32) for n in (5, 4)]
    return Scaling(zeros[0], ones[0], zeros[1], ones[1], verdicts, verdicts + 1)


def score(encoded: Encoded) -> NDArray[np.float32]:
    return scores_of(Known().logits(encoded))


ENTITIES = [f"c{i // 3}" for i in range(ROWS)]


def test_named_reasons_of_a_detector_with_known_dependence_win() -> None:
    """Attribution finds what the detector reads, so removing it costs more than removing anything at random."""
    encoded = windows()
    reasons = explain(Known().logits_after, INPUTS, scaling(), encoded, 3)
    found = deletion_test(score, INPUTS, scaling(), encoded, named_groups(INPUTS, reasons), ENTITIES)
    assert found.events == ROWS
    assert len(found.named) == len(found.random) == 3
    assert found.named[-1].value > found.random[-1].value
    assert found.named[-1].low <= found.named[-1].value <= found.named[-1].high
    assert [e.value for e in found.named] == sorted(e.value for e in found.named)  # more removed, more lost
    assert found.wins > 0.95
    good, sentence = verdict(found)
    assert good
    assert sentence.startswith("The reason codes name what the scores rest on.")
    assert f"{found.named[-1].value:.3f}" in sentence


@pytest.mark.parametrize("seed", range(3))
def test_reasons_drawn_at_random_do_not_win(seed: int) -> None:
    """Names that have nothing to do with the score are found out."""
    rng, groups = np.random.default_rng(seed), len(input_groups(INPUTS))
    named = [rng.permutation(groups)[:3].tolist() for _ in range(ROWS)]
    found = deletion_test(score, INPUTS, scaling(), windows(), named, ENTITIES)
    good, sentence = verdict(found)
    assert found.wins < 0.75
    assert not good or "not on most events" in sentence


def test_reasons_that_name_what_is_not_read_lose() -> None:
    """Removing inputs that the detector never looks at costs nothing, and the sentence says so."""
    unread = [g for g, group in enumerate(input_groups(INPUTS)) if group.name in ("amount", "hour", "channel")]
    found = deletion_test(score, INPUTS, scaling(), windows(), [unread] * ROWS, ENTITIES)
    assert found.named[-1].value == pytest.approx(0.0, abs=1e-7)
    assert found.difference.high < 0
    assert verdict(found)[0] is False


def test_the_same_seed_gives_the_same_test() -> None:
    """Random groups and intervals are drawn from the seed alone."""
    named = [[0, 1]] * ROWS
    first, again, other = (
        deletion_test(score, INPUTS, scaling(), windows(), named, ENTITIES, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first.random != other.random


def test_removing_every_group_leaves_what_attribution_would() -> None:
    """Numbers become means, categories missing, past and verdicts nothing; and what is given is not changed."""
    encoded, groups = windows(), input_groups(INPUTS)
    before = encoded.x_BLF.copy()
    bare = without(encoded, scaling(), groups, np.tile(np.arange(len(groups)), (ROWS, 1)))
    assert not bare.x_BLF[:, -1].any()
    assert not bare.codes_BLK[:, -1].any()
    assert not bare.context_BC.any()
    assert not bare.verdicts_BJSG.any()
    assert bare.mask_BL[:, -1].all()
    assert not bare.mask_BL[:, :-1].any()
    np.testing.assert_array_equal(encoded.x_BLF, before)


def test_one_removed_group_scores_as_attribution_says() -> None:
    """The effect of a reason is the drop that the test measures for it alone: one rule, in two places."""
    encoded = windows()
    reasons = explain(Known().logits_after, INPUTS, scaling(), encoded, 1)
    named_B1 = np.array(named_groups(INPUTS, reasons))
    drop_B = score(encoded) - score(without(encoded, scaling(), input_groups(INPUTS), named_B1))
    np.testing.assert_allclose(drop_B, [of_event[0].effect for of_event in reasons], atol=1e-6)


def test_every_reason_leads_back_to_its_group() -> None:
    """All groups, each by whichever of its inputs was shown."""
    everything = explain(Known().logits_after, INPUTS, scaling(), windows(), 99)
    groups = len(input_groups(INPUTS))
    assert all(sorted(of_event) == list(range(groups)) for of_event in named_groups(INPUTS, everything))


@pytest.mark.parametrize("named", [[], [[0]] * (ROWS - 1), [[]] * ROWS, [[0, 1]] + [[0]] * (ROWS - 1)])
def test_a_test_that_cannot_be_is_refused(named: list[list[int]]) -> None:
    """Every window has reasons, and as many as the others."""
    with pytest.raises(ValueError, match="expected as many lists as windows"):
        deletion_test(score, INPUTS, scaling(), windows(), named, ENTITIES)


def test_importance_finds_what_the_detector_reads() -> None:
    """Groups that it never looks at cost nothing when shuffled; the strongest comes first; and all is seeded."""
    encoded = windows()
    fraud_B = score(encoded) > np.quantile(score(encoded), 0.8)
    weight_B = np.where(fraud_B, 1.0, 5.0)
    whole, found = importance(score, INPUTS, encoded, fraud_B, weight_B)
    assert whole == pytest.approx(1.0)
    drops = {i.group: i.drop.value for i in found}
    assert set(drops) == {group.name for group in input_groups(INPUTS)}
    read = {"gap", "kind", "card.amount_mean", "shop.verdicts"}
    assert all(drops[name] > 0.01 for name in read)
    assert all(abs(drop) < 1e-9 for name, drop in drops.items() if name not in read)
    assert [i.drop.value for i in found] == sorted(drops.values(), reverse=True)
    assert importance(score, INPUTS, encoded, fraud_B, weight_B)[1] == found


def test_swapping_a_group_moves_nothing_else() -> None:
    """Each column belongs to one group: swapping them all gives the donors' last events."""
    encoded, donor_B = windows(), np.random.default_rng(1).permutation(ROWS)
    moved = encoded
    for group in input_groups(INPUTS):
        alone = swapped(encoded, group, donor_B)
        assert sum(
            not np.array_equal(getattr(alone, name), getattr(encoded, name)) for name in Encoded.__slots__
        ) <= (2 if group.kind == "history" else 1)  # fmt: skip
        moved = Encoded(*(
            np.where(getattr(alone, name) == getattr(encoded, name), getattr(moved, name), getattr(alone, name))
            for name in Encoded.__slots__
        ))  # fmt: skip
    for name in Encoded.__slots__:
        np.testing.assert_array_equal(getattr(moved, name), getattr(encoded, name)[donor_B])
