"""Compares the habits in a stored state with those of the naive loop."""

from __future__ import annotations

import numpy as np

from models.features.layout import Layout
from tests.parity.naive import NaiveEntity

__all__ = ["assert_same_habits", "tolerance"]


def tolerance(column: str) -> float:
    """How far a feature may be from the loop's; a score is a surprise over a spread of 0.02 at the least."""
    return 2e-6 / 0.02 if column.endswith((".score", ".away_score")) else 2e-6


def assert_same_habits(layout: Layout, state: np.void, entity: NaiveEntity) -> None:
    """What is remembered exactly, numbers to the tolerance of features."""
    for place, name in enumerate((*layout.number_names, "gap")):
        habit = entity.habits[name]
        assert_near(state["habits"][place], [habit.usual, habit.spread, habit.known])
    for place, name in enumerate(layout.other_entities):
        known = entity.partners[name]
        bits = [sum(1 << bit for bit in kept) for kept in (known.young, known.old)]
        assert state["remembered"][place].tolist() == bits
        assert_near(state["novelties"][place], [known.share, known.known, known.taken])
    for place, name in enumerate(layout.geo_names):
        usual = entity.places[name]
        if usual.here is None:
            assert not any(state["places"][place].tolist())
        else:
            far = [usual.far.usual, usual.far.spread, usual.far.known + 1]
            assert_near(state["places"][place], [*usual.here, usual.reach, *far])


def assert_near(found: np.void, expected: list[float]) -> None:
    np.testing.assert_allclose(np.array(found.tolist()), expected, rtol=2e-6, atol=2e-6)
