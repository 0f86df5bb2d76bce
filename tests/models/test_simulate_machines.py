"""Simulated machines: the same twice, each kind of fault on a machine of its own, and faults that are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from models.codec import Codec
from models.pipeline import load_pipeline
from models.simulate_machines import FAULTS, Machines, simulate_machines


@pytest.fixture(scope="module")
def machines() -> Machines:
    return simulate_machines(3, machines=12, days=6.0, faults=2)


def test_the_same_arguments_give_the_same_readings(machines: Machines) -> None:
    again = simulate_machines(3, machines=12, days=6.0, faults=2)
    for name, column in machines.events.items():
        assert np.array_equal(column, again.events[name], equal_nan=column.dtype == float)
    assert again.faults == machines.faults


def test_each_fault_has_a_machine_of_its_own_in_the_second_half(machines: Machines) -> None:
    assert sorted(fault.kind for fault in machines.faults) == sorted(2 * FAULTS[1:])
    assert len({fault.machine for fault in machines.faults}) == len(machines.faults)
    time_N, name_N = machines.events["timestamp"], machines.events["machine_id"]
    middle = (int(time_N.min()) + int(time_N.max())) // 2
    for fault in machines.faults:
        assert fault.start_ms > middle - 3_600_000
        within = (name_N == fault.machine) & (time_N >= fault.start_ms) & (time_N < fault.end_ms)
        assert (machines.fault_N[within] == FAULTS.index(fault.kind)).all()
        assert (machines.fault_N[(name_N == fault.machine) & ~within] == 0).all()


def test_a_stuck_channel_repeats_itself(machines: Machines) -> None:
    fault = next(fault for fault in machines.faults if fault.kind == "stuck")
    rows = (machines.events["machine_id"] == fault.machine) & (machines.fault_N > 0)
    columns = [machines.events[name][rows] for name in ("current", "oil_pressure", "flow")]
    assert min(np.nanmax(column) - np.nanmin(column) for column in columns) == 0.0


def test_readings_are_events_of_the_pipeline(machines: Machines) -> None:
    """Missing channels are left out, the others within what sensors.toml takes."""
    codec = Codec(load_pipeline("sensors"))
    rows = list(machines.event_rows())[:500]
    keys = [str(row["machine_id"]).encode() for row in rows]
    decoded = codec.decode([codec.encode_event(row) for row in rows], np.full(500, 2_000_000_000_000), keys)
    assert not decoded.bad
    assert np.isnan(decoded.batch.values_MV).any()
    assert len(np.unique(machines.events["reading_id"])) == len(machines)


def test_too_few_machines_are_refused() -> None:
    with pytest.raises(ValueError, match=r"machines = 4, days = 10.0: expected a machine for each of 5 faults"):
        simulate_machines(1, machines=4)
