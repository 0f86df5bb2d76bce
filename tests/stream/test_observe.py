"""Many observations of a histogram at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from stream.metrics import LATENCY_S
from stream.observe import observe_many

values = st.floats(0, 100) | st.sampled_from([*LATENCY_S, 0.0, 1e9])


def histogram(labels: tuple[str, ...] = ()) -> Histogram:
    return Histogram("latency_seconds", "A histogram.", labels, buckets=LATENCY_S, registry=CollectorRegistry())


def samples(histogram: Histogram) -> dict[tuple[str, str], float]:
    (metric,) = histogram.collect()
    return {(s.name, s.labels.get("le", "")): s.value for s in metric.samples if not s.name.endswith("_created")}


@given(batches=st.lists(st.lists(values, max_size=40), max_size=4))
def test_many_are_as_one_by_one(batches: list[list[float]]) -> None:
    """Each bucket counts what it counts one by one, bounds included, and the sum is theirs."""
    many, single = histogram(), histogram()
    for batch in batches:
        observe_many(many, np.array(batch, dtype=np.float64))
        for value in batch:
            single.observe(value)
    expected = samples(single)
    assert samples(many) == {key: pytest.approx(value, rel=1e-12) for key, value in expected.items()}
    assert expected["latency_seconds_count", ""] == sum(map(len, batches))


def test_the_child_of_a_label() -> None:
    """Observations go to the child they are given, and to no other."""
    parent = histogram(("pipeline",))
    parent.labels("b").observe(1.0)
    observe_many(parent.labels("a"), np.array([0.004, 70.0]))
    (metric,) = parent.collect()
    counts = {s.labels["pipeline"]: s.value for s in metric.samples if s.name == "latency_seconds_count"}
    assert counts == {"a": 2, "b": 1}
