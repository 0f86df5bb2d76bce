"""Labels of several sources: whose verdict counts, how much, and how little one source can do alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from models.pipeline.learning import LabelSource
from models.pipeline.load import load_pipeline
from training.archive import event_schema, label_schema
from training.replay import History
from training.verdicts import Verdicts, resolve

Row = tuple[str, int, bool, str | None]


def judged(rows: list[Row], sources: dict[str, LabelSource]) -> Verdicts:
    pipeline = load_pipeline("handbook")
    schema = label_schema(pipeline)
    empty = schema.empty_table()
    columns = {name: pa.nulls(len(rows), schema.field(name).type) for name in empty.column_names}
    ids, times, frauds, names = zip(*rows, strict=True)
    columns["event_id"] = pa.array(ids)
    columns["label_time"] = pa.array(times, pa.timestamp("ms", tz="UTC"))
    columns["fraud"], columns["source"] = pa.array(frauds), pa.array(names, pa.string())
    nothing = np.zeros(0, np.int64)
    events = event_schema(pipeline).empty_table()
    return resolve(History(pipeline, events, pa.table(columns), nothing, np.array(times)), sources)


def test_the_heavier_source_counts_whenever_it_comes_and_of_equal_ones_the_last() -> None:
    """An analyst's word is not undone by a later automatic one; two analysts: the newer."""
    sources = {"analyst": LabelSource(weight=1.0), "rule": LabelSource(weight=0.3)}
    found = judged(
        [("a", 1, True, "analyst"), ("a", 2, False, "rule"), ("b", 1, True, "rule"), ("b", 2, False, "analyst"),
         ("c", 1, True, "analyst"), ("c", 2, False, "analyst"), ("d", 1, True, "rule")], sources,
    )  # fmt: skip
    assert found.is_fraud(["a", "b", "c", "d", "e"]).tolist() == [True, False, False, True, False]
    weights = found.weight(["a", "d", "e"])
    assert weights is not None
    assert weights.tolist() == pytest.approx([1.0, 0.3, 1.0])
    assert found.conflicts == 3


def test_a_source_decides_at_most_its_share_and_what_came_last_is_left_out() -> None:
    """A flood of frauds from one source moves the training set only as far as its cap; the rest is neither kind."""
    rows: list[Row] = [(f"chargeback-{n}", n, True, "chargeback") for n in range(30)]
    rows += [(f"flood-{n}", 100 + n, True, "partner") for n in range(1000)]
    found = judged(rows, {"partner": LabelSource(weight=0.5, cap=0.25)})
    kept = [n for n in range(1000) if found.is_fraud([f"flood-{n}"])[0]]
    assert kept == list(range(10))  # 10 of 40 are a quarter
    assert found.is_left_out(["flood-9", "flood-10", "chargeback-3"]).tolist() == [False, True, False]
    assert found.by_source == {"chargeback": 30, "partner": 10}


def test_without_sources_the_last_verdict_to_arrive_counts() -> None:
    """As everywhere else in the project."""
    found = judged([("a", 1, True, "x"), ("a", 2, False, None), ("b", 3, True, None)], {})
    assert found.is_fraud(["a", "b"]).tolist() == [False, True]
    assert found.weight(["a"]) is None
