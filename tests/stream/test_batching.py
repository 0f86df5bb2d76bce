"""The size of a batch follows the latency objective."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stream.batching import LARGEST, SMALLEST, BatchSize


def _settle(size: BatchSize, seconds_of: Callable[[int], float], batches: int = 100) -> int:
    """The limit after full batches that take so long."""
    for _ in range(batches):
        size.observe(size.limit, seconds_of(size.limit))
    return size.limit


@pytest.mark.parametrize("objective_s", [0.03, 0.05, 0.2])
def test_full_batches_come_to_take_less_than_the_objective(objective_s: float) -> None:
    """2 ms and 40 µs an event: the limit settles below the objective, and above half of it."""
    size = BatchSize(objective_s)
    limit = _settle(size, lambda n: 0.002 + 40e-6 * n)
    assert objective_s / 2 < 0.002 + 40e-6 * limit < objective_s


def test_the_limits_have_limits() -> None:
    """However fast or slow batches are, a batch is neither absurdly small nor without bound."""
    assert _settle(BatchSize(0.05), lambda _: 0.0001) == LARGEST
    assert _settle(BatchSize(0.05), lambda _: 9.0) == SMALLEST


def test_small_batches_say_nothing() -> None:
    """Light load does not change what a full batch may be."""
    size = BatchSize(0.05)
    before = size.limit
    for _ in range(100):
        size.observe(5, 0.004)
    assert size.limit == before


def test_a_slow_machine_is_noticed_before_batches_are_full() -> None:
    """A batch that takes too long shrinks the limit even when it was half full."""
    size = BatchSize(0.05)
    first = size.limit
    size.observe(first // 2 + 1, 0.2)
    assert size.limit < first


def test_it_recovers_when_batches_are_fast_again() -> None:
    """A stall costs a few small batches, not more."""
    size = BatchSize(0.05)
    fast: Callable[[int], float] = lambda n: 0.002 + 20e-6 * n  # noqa: E731
    settled = _settle(size, fast)
    size.observe(size.limit, 5.0)
    assert size.limit < settled
    assert _settle(size, fast, 10) > 0.9 * settled
