"""Habits against the naive loop, where the streams of the other parity tests hardly take them."""

from __future__ import annotations

import random

from tests.parity.test_features_parity import (
    HOUR,
    PIPELINES,
    START_MS,
    Item,
    assert_same_bits,
    assert_same_features,
    assert_same_states,
    random_row,
    run,
    run_naive,
)  # fmt: skip


def test_habits_of_a_card_that_gets_around() -> None:
    """More partners than are remembered, amounts of one habit and then another, and a home on the date line."""
    pipeline, rng = PIPELINES["payments"], random.Random(4)
    now, items = START_MS, []
    for i in range(400):
        now += round(HOUR * rng.expovariate(1.0))
        row = random_row(pipeline, rng) | {
            "transaction_id": f"t{i}", "card_id": "c", "timestamp": now, "merchant_id": f"m{rng.randrange(40)}",
            "device_id": f"d{i // 9}", "amount": round(rng.lognormvariate(3 + i // 200, 0.01 + 0.5 * (i % 7 == 0)), 2),
            "location.latitude": rng.gauss(-17, 0.3), "location.longitude": (rng.gauss(0, 0.4) % 360) - 180,
        }  # fmt: skip
        items.append(Item(now, row))
    results, naive = run_naive(pipeline, items)
    assert {r.context["merchant_id.novel"] for r in results.values()} == {0.0, 1.0}
    whole = run(pipeline, items, set())
    assert_same_features(pipeline, whole, results)
    assert_same_states(pipeline, whole.store, naive)
    assert_same_bits(run(pipeline, items, set(range(len(items)))), whole)
