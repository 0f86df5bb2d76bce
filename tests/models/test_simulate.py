"""The simulator: repeatable, shaped as documented, and fraud that is neither trivial nor invisible."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from models.clock import DAY_MS, from_iso
from models.pipeline import load_pipeline
from models.pipeline.spec import GeoField
from models.samples import file_columns, write_file
from models.simulate import Simulated, simulate

DAYS = 20


@pytest.fixture(scope="module")
def world() -> Simulated:
    return simulate(seed=3, customers=300, merchants=80, days=DAYS)


def test_the_same_seed_gives_the_same_data_and_another_seed_does_not(world: Simulated) -> None:
    """A simulation is a function of its arguments."""
    again = simulate(seed=3, customers=300, merchants=80, days=DAYS)
    assert (
        list(world.event_rows())[:500]
        != list(simulate(seed=4, customers=300, merchants=80, days=DAYS).event_rows())[:500]
    )
    for name, column in world.events.items():
        np.testing.assert_array_equal(column, again.events[name])
    for name, column in world.labels.items():
        np.testing.assert_array_equal(column, again.labels[name])


def test_columns_are_the_fields_of_the_payments_pipeline(world: Simulated) -> None:
    """Events carry exactly the fields that payments.toml declares."""
    pipeline = load_pipeline("payments")
    expected = set()
    for name, field in pipeline.fields.items():
        expected |= {f"{name}.latitude", f"{name}.longitude"} if isinstance(field, GeoField) else {name}
    assert set(world.events) == expected
    assert {len(column) for column in world.events.values()} == {len(world)}


def test_events_are_in_time_order_within_the_days_and_ids_are_unique(world: Simulated) -> None:
    """Event time never goes back, stays inside the simulated days, and names no event twice."""
    time = world.events["timestamp"]
    start = from_iso("2026-01-01")
    assert np.all(np.diff(time) >= 0)
    assert start <= time[0]
    assert time[-1] < start + DAYS * DAY_MS
    assert len(set(world.events["transaction_id"])) == len(world)


def test_labels_arrive_in_order_after_their_event_and_before_the_cap(world: Simulated) -> None:
    """A label is later than its event, at most the cap later, and tells the truth."""
    index = {event_id: i for i, event_id in enumerate(world.events["transaction_id"])}
    rows = np.array([index[event_id] for event_id in world.labels["event_id"]])
    delay = world.labels["time"] - world.events["timestamp"][rows]
    assert np.all(np.diff(world.labels["time"]) >= 0)
    assert delay.min() > 0
    assert delay.max() <= 7 * DAY_MS
    assert 1 * DAY_MS < delay.mean() < 3 * DAY_MS
    np.testing.assert_array_equal(world.labels["fraud"], world.fraud_N[rows])
    np.testing.assert_array_equal(world.labels["merchant_id"], world.events["merchant_id"][rows])


def test_every_pattern_occurs_and_fraud_has_the_share_asked_for(world: Simulated) -> None:
    """Each kind of fraud is there, rare as asked, and most of it is reported one day."""
    counts = Counter(world.pattern_N.tolist())
    assert all(counts[i] > 0 for i in range(5))
    assert world.fraud_N.mean() == pytest.approx(0.008, rel=0.35)
    assert 0.9 < world.labels["fraud"].sum() / world.fraud_N.sum() <= 1.0
    assert not simulate(seed=3, customers=300, merchants=80, days=DAYS, fraud_share=0).fraud_N.any()


def test_no_single_field_gives_the_fraud_away(world: Simulated) -> None:
    """Cutting at the best amount, or at magstripe, catches far less than half of the fraud at 50 % precision."""
    fraud, amount = world.fraud_N, world.events["amount"]
    order = np.argsort(-amount)
    precision = np.cumsum(fraud[order]) / np.arange(1, len(order) + 1)
    recall = np.cumsum(fraud[order]) / fraud.sum()
    assert recall[precision >= 0.5].max(initial=0.0) < 0.5
    assert fraud[world.events["channel"] == "magstripe"].mean() < 0.5


def test_online_payments_have_a_device_and_no_place_and_shops_the_reverse(world: Simulated) -> None:
    """Missing values are where the documentation says."""
    online = world.events["channel"] == "online"
    assert 0 < online.mean() < 1
    np.testing.assert_array_equal(online, ~world.events["card_present"])
    np.testing.assert_array_equal(online, np.isnan(world.events["location.latitude"]))
    np.testing.assert_array_equal(online, np.array([d is not None for d in world.events["device_id"]]))


def test_a_world_too_small_is_refused_by_name() -> None:
    """The error names the arguments and what was expected."""
    with pytest.raises(ValueError, match="merchants=3"):
        simulate(customers=10, merchants=3, days=5)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_written_file_holds_the_same_columns_in_every_format(suffix: str, tmp_path: Path) -> None:
    """CSV, JSONL and Parquet carry the same values, missing ones included."""
    small = simulate(seed=1, customers=20, merchants=10, days=3)
    path = tmp_path / f"payments{suffix}"
    write_file(small, path)
    expected = file_columns(small)
    if suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        read = {name: [row[name] for row in rows] for name in rows[0]}
        expected = {name: ["" if v is None else str(v) for v in column] for name, column in expected.items()}
    elif suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        read = {name: [row.get(name) for row in lines] for name in expected}
    else:
        read = pyarrow.parquet.read_table(path).to_pydict()
    assert read == expected


def test_an_unknown_file_format_is_refused(tmp_path: Path) -> None:
    """The error names the file and the formats."""
    with pytest.raises(ValueError, match=r"payments\.xlsx: expected a name that ends in \.csv"):
        write_file(simulate(seed=1, customers=20, merchants=10, days=3), tmp_path / "payments.xlsx")


def test_the_rules_of_fraud_change_on_the_day_asked_for_and_honest_customers_do_not() -> None:
    """Patterns of the first rules end on that day and the later ones begin; honest payments are those of the same seed
    without a change."""
    changed = simulate(seed=5, customers=900, merchants=90, days=40, rules_change_day=20)
    still = simulate(seed=5, customers=900, merchants=90, days=40)
    day = (changed.events["timestamp"] - changed.events["timestamp"][0]) // DAY_MS
    for number in range(1, 9):
        days = day[changed.pattern_N == number]
        assert len(days) > 0
        assert days.max() <= 20 if number < 5 else days.min() >= 19  # counted from the first payment, not midnight
    honest = [s.events["amount"][s.pattern_N == 0] for s in (changed, still)]
    np.testing.assert_array_equal(*honest)
