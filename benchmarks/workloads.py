"""The seeded workloads: which entity has the next event, and what stands in it.

    uniform   payments; N cards, each as likely as the next
    skewed    payments; one card in a hundred is hot, and the hot ones have half of all events
    sensors   ten machines, a reading each millisecond; numbers only, no profiles, no labels
    machines  the shipped sensors pipeline: two thousand machines of eight channels, surprise and forecasts

Every event finds a full window: an entity's past is that of one of TEMPLATES entities, which `benchmarks.history`
plays before anything is counted. Entities 0 to TEMPLATES - 1 are the templates themselves, and their scores can be
computed again in memory: what is counted begins just after the edge of a bucket of the shared profiles, and ends
before the next one, so that nothing another card does shows in them.

What is drawn depends on the seed and on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, HOUR_MS, from_iso
from models.codec import Codec
from models.pipeline import Pipeline, load_pipeline
from models.simulate_machines import CHANNELS

__all__ = ["ROUNDS", "Events", "Workload", "machines", "sensors", "skewed", "uniform"]

START_MS = from_iso("2026-06-01T01:01:00Z")  # a minute after payments' delay behind a bucket edge (every 4 hours)
STEADY_MS = 3 * HOUR_MS + 50 * 60_000  # for so long no other bucket comes into view
TEMPLATES = 512
ROUNDS = 40  # events of an entity before the first that is counted
HOT_EVERY = 100
MERCHANTS = 2000
ONLINE_SHARE = 0.3
CATEGORIES = np.array(["grocery", "fuel", "restaurant", "transport", "clothing", "electronics", "travel", "gaming"])
IN_SHOP = np.array(["chip", "contactless", "magstripe"])
SENSORS, MACHINES = 10, 2000
CHANNEL_NAMES = tuple(channel.name for channel in CHANNELS)
CHANNEL_BASE, CHANNEL_GAIN = (np.array(column) for column in zip(*((c.base, c.gain) for c in CHANNELS), strict=True))
MISSING_SHARE = 0.002
ID_DIGITS = 8

Ints = NDArray[np.int64]
Columns = dict[str, list[Any]]
# (rng, entities, their names, times) → columns of everything else
Maker = Callable[[np.random.Generator, Ints, list[str], Ints], Columns]


@dataclass(frozen=True, slots=True)
class Events:
    """Encoded events in event-time order. `number` is the first one's; ids count on from it."""

    number: int
    ids: list[str]
    keys: list[bytes]
    values: list[bytes]
    time_E: Ints
    entity_E: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index_N: Ints) -> Events:
        """The events at these positions; ids no longer count on from `number`."""
        rows = index_N.tolist()
        ids, keys, values = ([column[i] for i in rows] for column in (self.ids, self.keys, self.values))
        return Events(self.number, ids, keys, values, self.time_E[index_N], self.entity_E[index_N])


@dataclass(frozen=True)
class Workload:
    """One of the seeded workloads; its pipeline file is written into `folder`."""

    name: str
    pipeline: Pipeline
    path: Path
    entities: int
    seed: int
    step_ms: float  # of event time from one event to the next
    history_ms: int  # of event time from one round of the past to the next
    hot_share: float
    own_profiles: tuple[str, ...]  # whose keys belong to one entity each
    make: Maker = field(repr=False)

    @property
    def templates(self) -> int:
        return min(TEMPLATES, self.entities)

    @property
    def steady_events(self) -> int:
        """So many events can be counted until shared profiles show more than the past."""
        return int(STEADY_MS / self.step_ms)

    def names(self, entity_E: Ints) -> list[str]:
        """The entities as events name them."""
        return _names("entity-", entity_E)

    def events(self, first: int, count: int) -> Events:
        """Events number first … first + count - 1 of those that are counted."""
        rng = np.random.default_rng((self.seed, 1, first))
        entity_E = rng.integers(0, self.entities, count)
        if self.hot_share:
            hot = np.arange(0, self.entities, HOT_EVERY)
            entity_E = np.where(rng.random(count) < self.hot_share, rng.choice(hot, count), entity_E)
        number_E = np.arange(first, first + count)
        time_E = START_MS + (number_E * self.step_ms).astype(np.int64)
        return self._encoded(rng, first, _names("e", number_E, ID_DIGITS), time_E, entity_E)

    def again(self, stock: Events, first: int) -> Events:
        """The same payments once more as number first …: other ids, later times. A tenth of the cost of new ones."""
        number_E = np.arange(first, first + len(stock))
        time_E = START_MS + (number_E * self.step_ms).astype(np.int64)
        ids = _names("e", number_E, ID_DIGITS)
        texts: list[str] = np.datetime_as_string(time_E.astype("datetime64[ms]"), timezone="UTC").tolist()
        spec = self.pipeline.pipeline
        id_key, time_key = self.pipeline.json_key(spec.event_id), self.pipeline.json_key(spec.time)
        start = len(f'{{"{id_key}":"{ids[0]}","{time_key}":"{texts[0]}"')  # the first two fields, of fixed width
        values = [
            f'{{"{id_key}":"{name}","{time_key}":"{text}"'.encode() + value[start:]
            for name, text, value in zip(ids, texts, stock.values, strict=True)
        ]
        return Events(first, ids, stock.keys, values, time_E, stock.entity_E)

    def past(self) -> Iterator[Events]:
        """The past of the templates: ROUNDS rounds with an event of each."""
        for number in range(ROUNDS):
            rng = np.random.default_rng((self.seed, 2, number))
            entity_E = np.arange(self.templates)
            start = START_MS - (ROUNDS - number) * self.history_ms
            time_E = start + np.sort(rng.integers(0, max(self.history_ms // 20, 1), self.templates))
            ids = _names(f"p{number:03d}-", entity_E)
            yield self._encoded(rng, number * self.templates, ids, time_E, entity_E)

    def one_each(self, entity_E: Ints) -> Events:
        """An old event of each of these entities, with a key for every profile: for what they alone have."""
        rng = np.random.default_rng((self.seed, 3, int(entity_E[0])))
        time_E = np.full(len(entity_E), START_MS - self.history_ms)
        return self._encoded(rng, 0, _names("o", entity_E), time_E, entity_E, everything=True)

    def _encoded(
        self, rng: np.random.Generator, number: int, ids: list[str], time_E: Ints, entity_E: Ints,
        everything: bool = False,
    ) -> Events:  # fmt: skip
        names = self.names(entity_E)
        columns = self.make(rng, entity_E, names, time_E)
        if everything and "device_id" in columns:
            columns["device_id"] = [f"device-{name}" for name in names]
        spec = self.pipeline.pipeline
        columns |= {spec.event_id: ids, spec.entity: names, spec.time: time_E.tolist()}
        encode, fields = Codec(self.pipeline).encode_event, list(columns)
        values = [encode(dict(zip(fields, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        return Events(number, ids, [name.encode() for name in names], values, time_E, entity_E)


def uniform(folder: Path, *, entities: int = 10_000, seed: int = 7) -> Workload:
    """Payments; every card is as likely as the next."""
    return _payments_workload("uniform", folder, entities, seed, 0.0)


def skewed(folder: Path, *, entities: int = 10_000, seed: int = 7) -> Workload:
    """Payments; one card in a hundred carries half of the events."""
    return _payments_workload("skewed", folder, entities, seed, 0.5)


def sensors(folder: Path, *, seed: int = 7) -> Workload:
    """Ten machines, a reading each millisecond."""
    path = folder / "bench-sensors.toml"
    path.write_bytes(Path(__file__).with_name("sensors.toml").read_bytes())
    return Workload(
        "sensors", load_pipeline(path), path, SENSORS, seed, step_ms=1.0, history_ms=10, hot_share=0.0,
        own_profiles=(), make=_readings,
    )  # fmt: skip


def machines(folder: Path, *, entities: int = MACHINES, seed: int = 7) -> Workload:
    """The shipped sensors pipeline with all its features, under a name of its own."""
    path = _renamed(folder, "sensors", "bench-machines")
    return Workload(
        "machines", load_pipeline(path), path, entities, seed, step_ms=1.0, history_ms=60_000, hot_share=0.0,
        own_profiles=(), make=_telemetry,
    )  # fmt: skip


def _renamed(folder: Path, shipped: str, name: str) -> Path:
    text = (resources.files("models") / "pipelines" / f"{shipped}.toml").read_text(encoding="utf-8")
    path = folder / f"{name}.toml"
    path.write_text(text.replace(f'name = "{shipped}"', f'name = "{name}"', 1), encoding="utf-8")
    return path


def _payments_workload(name: str, folder: Path, entities: int, seed: int, hot_share: float) -> Workload:
    """The shipped payments pipeline with all its features, under a name of its own."""
    path = _renamed(folder, "payments", "bench-payments")
    return Workload(
        name, load_pipeline(path), path, entities, seed, step_ms=10.0, history_ms=DAY_MS // 2, hot_share=hot_share,
        own_profiles=("device",), make=_payments,
    )  # fmt: skip


def _telemetry(rng: np.random.Generator, entity_E: Ints, _names: list[str], time_E: Ints) -> Columns:
    """Channels that follow a load with a daily course, each machine's by a gain of its own; some are missing."""
    load_E = 0.5 + 0.3 * np.sin(time_E / DAY_MS * 2 * np.pi + entity_E % 7) + rng.normal(0, 0.05, len(entity_E))
    values_EC = (
        load_E[:, None] * CHANNEL_GAIN * (1 + 0.01 * (entity_E % 31))[:, None] + CHANNEL_BASE
        + rng.normal(0, 0.02, (len(entity_E), len(CHANNEL_GAIN))) * CHANNEL_GAIN
    )  # fmt: skip
    values_EC[rng.random(values_EC.shape) < MISSING_SHARE] = np.nan
    return {name: np.round(values_EC[:, c], 3).tolist() for c, name in enumerate(CHANNEL_NAMES)}


def _payments(rng: np.random.Generator, entity_E: Ints, names: list[str], _time_E: Ints) -> Columns:
    """Cards with a usual amount, a home and a device for payments online; some merchants are frequented more."""
    count = len(entity_E)
    online_E = rng.random(count) < ONLINE_SHARE
    merchant_E = (MERCHANTS * rng.random(count) ** 2).astype(np.int64)
    home_E = np.stack([25 + entity_E % 23, -70 - entity_E % 41], axis=1)
    place_E = np.round(home_E + rng.normal(0, 0.05, (count, 2)), 5)
    place_E[online_E] = np.nan
    return {
        "merchant_id": _names("merchant-", merchant_E, 4),
        "device_id": [f"device-{n}" if on else None for n, on in zip(names, online_E.tolist(), strict=True)],
        "amount": np.round(np.exp(rng.normal(3 + (entity_E % 7) / 5, 0.7)), 2).tolist(),
        "merchant_category": CATEGORIES[merchant_E % len(CATEGORIES)].tolist(),
        "channel": np.where(online_E, "online", IN_SHOP[rng.integers(0, 3, count)]).tolist(),
        "location.latitude": place_E[:, 0].tolist(),
        "location.longitude": place_E[:, 1].tolist(),
        "card_present": (~online_E).tolist(),
    }


def _readings(rng: np.random.Generator, entity_E: Ints, names: list[str], time_E: Ints) -> Columns:
    """Slow swings that the numbers of a machine share, and noise."""
    phase_E = time_E / 2000 + entity_E
    swing_E, noise_EV = np.sin(phase_E), rng.normal(0, 1, (len(names), 6))
    usual_V = np.array([70.0, 400, 0, 0, 12, 3000])
    swings_V, spread_V = np.array([5.0, 20, 2, 2, 3, 200]), np.array([0.2, 2, 0.5, 0.5, 0.2, 10])
    values_EV = np.round(usual_V + swings_V * swing_E[:, None] + spread_V * noise_EV, 3)
    fields = ("temperature", "pressure", "vibration_x", "vibration_y", "current", "speed")
    return {name: values_EV[:, v].tolist() for v, name in enumerate(fields)}


def _names(prefix: str, number_E: Ints, digits: int = 7) -> list[str]:
    return [f"{prefix}{number:0{digits}d}" for number in number_E.tolist()]
