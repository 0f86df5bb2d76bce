"""Seeded synthetic machines with known faults, for the demo, tests and benchmarks: readings of sensors.toml.

A machine follows a load that has a daily course, a work week and whims. Its channels follow the load, each with its
gain, inertia and noise; some readings lack a channel, some come late or not at all. Five kinds of fault are laid over:

    drift         a bearing runs hotter and hotter for hours
    stuck         a channel repeats its last value
    spike         one to three readings are far off
    oscillation   pressure and flow swing
    decoupling    a channel does what it did half a day ago: plausible by itself, not with the others

The same arguments give the same data on one numpy version. It is no statement about real machines.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, HOUR_MS, from_iso

__all__ = ["CHANNELS", "FAULTS", "Fault", "Machines", "simulate_machines"]

FAULTS = ("", "drift", "stuck", "spike", "oscillation", "decoupling")  # index 0: none


class _Channel(NamedTuple):
    name: str
    base: float  # without load
    gain: float  # at full load
    inertia: float  # minutes
    noise: float


CHANNELS = (
    _Channel("speed", 600.0, 900.0, 1.0, 4.0),
    _Channel("current", 8.0, 42.0, 1.0, 0.4),
    _Channel("voltage", 402.0, -9.0, 1.0, 0.8),
    _Channel("vibration", 0.9, 2.2, 2.0, 0.06),
    _Channel("bearing_temperature", 31.0, 34.0, 60.0, 0.2),
    _Channel("oil_temperature", 36.0, 22.0, 120.0, 0.15),
    _Channel("oil_pressure", 2.1, 2.4, 3.0, 0.03),
    _Channel("flow", 12.0, 65.0, 3.0, 0.6),
)
NAMES = tuple(channel.name for channel in CHANNELS)
COLUMN = {name: c for c, name in enumerate(NAMES)}
FAULT_HOURS = {"drift": 12.0, "stuck": 8.0, "spike": 0.0, "oscillation": 6.0, "decoupling": 12.0}
WHIM_HOURS = 2.0
MONDAY = 3  # days from a Monday to 1970-01-01
WEEKEND = 0.6  # of the load of other days
VARIES = np.array([0.03, 0.15])  # bases and gains between machines
WITHOUT = 0.002  # of readings a channel
LATE_SHARE = 0.1  # of the interval, standard deviation
LOST = 0.003  # of the readings


class Fault(NamedTuple):
    """machine: its identifier. start_ms, end_ms: event times, the end is no longer within."""

    kind: str
    machine: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class Machines:
    """Columns of N readings in event-time order.

    events: keyed by the fields of sensors.toml; `timestamp` is int64 epoch milliseconds, a missing number is NaN.
    fault_N: int8, index into FAULTS; the truth. faults: each with its times.
    """

    events: dict[str, NDArray[Any]]
    fault_N: NDArray[np.int8]
    faults: tuple[Fault, ...]

    def __len__(self) -> int:
        return len(self.fault_N)

    def event_rows(self) -> Iterator[dict[str, object]]:
        """Readings one by one, as `Codec.encode_event` takes them."""
        names = list(self.events)
        for values in zip(*(column.tolist() for column in self.events.values()), strict=True):
            yield dict(zip(names, values, strict=True))


def simulate_machines(
    seed: int = 0,
    machines: int = 40,
    days: float = 10.0,
    *,
    every_s: float = 300.0,
    faults: int = 1,
    faults_from_day: float | None = None,
    start: str = "2026-01-01",
) -> Machines:
    """Readings of so many machines for so many days from `start` (ISO-8601, UTC).

    every_s: between two readings of a machine, about. faults: episodes of each kind, each on a machine of its own, at
    times drawn from `faults_from_day` on (None: the second half). Raises ValueError for too few machines or days.
    """
    kinds = list(range(1, len(FAULTS))) * faults
    if machines < len(kinds) or days * DAY_MS < 40 * every_s * 1000:
        raise ValueError(
            f"machines = {machines}, days = {days}: expected a machine for each of {len(kinds)} faults, and forty "
            "readings of each"
        )
    rng = np.random.default_rng(seed)
    start_ms, times = from_iso(start), int(days * DAY_MS / (every_s * 1000))
    first_ms = DAY_MS * (days / 2 if faults_from_day is None else faults_from_day)
    kind_of = dict(zip(rng.permutation(machines).tolist(), kinds, strict=False))
    parts, found = [], []
    for machine in range(machines):
        at_T = every_s * (np.arange(times) + rng.normal(0, LATE_SHARE, times))
        time_T = np.sort(np.maximum(1000 * at_T, 0).astype(np.int64))
        value_TC, fault_T = _readings(rng, start_ms + time_T, every_s), np.zeros(times, np.int8)
        if (kind := kind_of.get(machine, 0)) > 0:
            low, high = _lay_over(rng, FAULTS[kind], value_TC, time_T, first_ms, every_s)
            fault_T[low:high] = kind
            border_ms = start_ms + time_T[low], start_ms + time_T[high - 1] + 1
            found.append(Fault(FAULTS[kind], _name(machine), *map(int, border_ms)))
        value_TC[rng.random(value_TC.shape) < WITHOUT] = np.nan
        kept = rng.random(times) >= LOST
        parts.append((np.full(times, machine)[kept], time_T[kept], value_TC[kept], fault_T[kept]))
    machine_N, time_N, value_NC, fault_N = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(time_N, kind="stable")
    events: dict[str, NDArray[Any]] = {
        "reading_id": np.array([f"r{seed}-{n:08d}" for n in range(len(order))]),
        "timestamp": start_ms + time_N[order],
        "machine_id": np.array([_name(machine) for machine in machine_N[order].tolist()]),
        **{name: np.round(value_NC[order, c], 3) for c, name in enumerate(NAMES)},
    }
    return Machines(events, fault_N[order], tuple(sorted(found, key=lambda fault: fault.start_ms)))


def _name(machine: int) -> str:
    return f"m{machine:03d}"


def _readings(rng: np.random.Generator, time_T: NDArray[np.int64], every_s: float) -> NDArray[np.float64]:
    """One machine without a fault. time_T: epoch ms."""
    hour_T = time_T % DAY_MS / HOUR_MS
    at_work_T = 0.5 - 0.5 * np.cos(2 * np.pi * (hour_T - 3.0 + rng.normal(0, 1.0)) / 24.0)
    weekend_T = (time_T // DAY_MS + MONDAY) % 7 >= 5
    whim_T = _lagged(rng.normal(0, 1.0, len(time_T)), WHIM_HOURS * 60, every_s) * np.sqrt(WHIM_HOURS * 3600 / every_s)
    load_T = np.clip(0.15 + 0.6 * at_work_T * np.where(weekend_T, WEEKEND, 1.0) + 0.12 * whim_T, 0.0, 1.0)
    value_TC = np.empty((len(time_T), len(CHANNELS)))
    for c, channel in enumerate(CHANNELS):
        base, gain = np.array([channel.base, channel.gain]) * (1.0 + VARIES * rng.normal(size=2))
        followed_T = _lagged(load_T, channel.inertia, every_s)
        value_TC[:, c] = base + gain * followed_T + rng.normal(0, channel.noise, len(time_T))
    return value_TC


def _lagged(x_T: NDArray[np.float64], minutes: float, every_s: float) -> NDArray[np.float64]:
    """What follows x with so much inertia."""
    keep = float(np.exp(-every_s / (60.0 * minutes)))
    out_T = np.empty_like(x_T)
    held = float(x_T[0])
    for t, x in enumerate(x_T.tolist()):
        held = keep * held + (1.0 - keep) * x
        out_T[t] = held
    return out_T


def _lay_over(
    rng: np.random.Generator,
    kind: str,
    value_TC: NDArray[np.float64],
    time_T: NDArray[np.int64],
    from_ms: float,
    every_s: float,
) -> tuple[int, int]:
    """Change the readings of one machine; the first one that is faulty and the first that no longer is."""
    a_day = max(1, int(DAY_MS / (every_s * 1000)))
    steps = max(int(FAULT_HOURS[kind] * 3600 / every_s), int(rng.integers(1, 4)))
    earliest = max(int(np.searchsorted(time_T, from_ms)), a_day if kind == "decoupling" else 1)
    low = int(rng.integers(earliest, max(earliest + 1, len(time_T) - steps)))
    high = min(low + steps, len(time_T))
    shape = np.arange(high - low)
    if kind == "drift":
        value_TC[low:high, COLUMN["bearing_temperature"]] += 40.0 * (shape + 1) / steps
    elif kind == "stuck":
        column = COLUMN[str(rng.choice(["current", "oil_pressure", "flow"]))]
        value_TC[low:high, column] = value_TC[low - 1, column]
    elif kind == "spike":
        value_TC[low:high, COLUMN["current"]] += 60.0
    elif kind == "oscillation":
        swing = np.where(shape // 2 % 2, -1.0, 1.0)
        value_TC[low:high, COLUMN["oil_pressure"]] += 0.6 * swing
        value_TC[low:high, COLUMN["flow"]] += 14.0 * swing
    else:
        column = COLUMN["flow"]
        value_TC[low:high, column] = value_TC[low - a_day // 2 : high - a_day // 2, column].copy()
    return low, high
