"""Seeded synthetic card payments with known fraud, for the demo, tests and benchmarks.

Customers have habits (amounts, hours, places, favourite merchants, devices), merchants have places and
categories, and four kinds of fraud are laid over them:

    spree        a stolen card is used in another city, several times within hours, above its usual amounts
    testing      many tiny online payments seconds apart, then a large one; fraudsters reuse few devices
    merchant     cards copied at one merchant pay there for days, at ordinary amounts: only labels tell
    takeover     an online account is used from a new device, at night, above its usual amounts

Honest customers travel, buy a new phone and stay up late too, so no single sign decides. Labels arrive
days after their event. The same arguments give the same data on one numpy version. What is made here is
no statement about real fraud: docs/simulator.md says what to use it for. `models.samples` writes files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS, HOUR_MS, from_iso

__all__ = ["PATTERNS", "Simulated", "simulate"]

PATTERNS = ("", "spree", "testing", "merchant", "takeover")  # index 0: honest
PATTERN_SHARES = (0.0, 0.3, 0.2, 0.25, 0.25)  # of the fraudulent events
MEAN_SIZES = (0, 7, 10, 20, 6)  # events of an episode
CATEGORIES = ("grocery", "fuel", "restaurant", "transport", "pharmacy", "clothing", "electronics", "travel", "gaming")
CATEGORY_AMOUNT = np.array([30.0, 40, 25, 8, 18, 60, 180, 240, 20])  # typical amount, USD
CHANNELS = ("chip", "contactless", "magstripe", "online")
CHIP, CONTACTLESS, MAGSTRIPE, ONLINE = range(4)
FAVOURITES = 8
ONLINE_SLOTS = (2, 5)  # which of a customer's favourites are online shops
MAX_CITIES = 12
DEVICES_EACH = 2  # a customer's device, and the one that replaces it one day
CARDS_PER_FRAUD_DEVICE = 4
NO_DEVICE = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Simulated:
    """Columns of N events in event-time order and of M labels in order of arrival.

    events: keyed by the field names of payments.toml; `timestamp` is int64 epoch milliseconds, positions are
    `location.latitude` and `location.longitude` (degrees, NaN online), `device_id` is None in shops.
    labels: `event_id`, `time` (int64 epoch milliseconds of arrival), `fraud` (bool), and of the event
    `card_id`, `merchant_id`, `device_id`, `amount`.
    pattern_N: int8, index into PATTERNS; the truth, also of fraud that nobody reported.
    """

    events: dict[str, NDArray[Any]]
    labels: dict[str, NDArray[Any]]
    pattern_N: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pattern_N)

    @property
    def fraud_N(self) -> NDArray[np.bool_]:  # noqa: N802
        return self.pattern_N > 0

    def event_rows(self) -> Iterator[dict[str, object]]:
        """Events one by one, as `Codec.encode_event` takes them."""
        return _rows(self.events)

    def label_rows(self) -> Iterator[dict[str, object]]:
        """Labels one by one, keyed as in `labels`."""
        return _rows(self.labels)


def _rows(columns: dict[str, NDArray[Any]]) -> Iterator[dict[str, object]]:
    names = list(columns)
    for values in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield dict(zip(names, values, strict=True))


def simulate(
    seed: int = 0,
    customers: int = 1000,
    merchants: int = 300,
    days: int = 60,
    *,
    payments_per_day: float = 1.7,
    fraud_share: float = 0.008,
    reported_share: float = 0.97,
    cleared_share: float = 0.01,
    label_delay_days: float = 2.0,
    label_delay_max_days: float = 7.0,
    start: str = "2026-01-01",
) -> Simulated:
    """Payments of `days` days from `start` (ISO-8601, UTC).

    payments_per_day: mean for a customer. fraud_share: fraudulent events per honest one; there is at least one
    episode of each pattern, so very small simulations hold more. reported_share: fraud that ever gets a label.
    cleared_share: honest events that an analyst labels as such. label_delay_days: mean delay of a label, gamma
    distributed and cut at label_delay_max_days. Labels may arrive after the last event.
    Raises ValueError when the world is too small to hold the patterns.
    """
    if customers < 2 or merchants < 8 or days < 2:
        raise ValueError(f"customers={customers}, merchants={merchants}, days={days}: expected at least 2, 8 and 2")
    rng = np.random.default_rng(seed)
    world = _make_world(rng, customers, merchants, days, payments_per_day)
    honest = _honest(rng, world)
    parts = [honest]
    if fraud_share > 0:
        makers = (_spree, _testing, _merchant, _takeover)
        for number, make in enumerate(makers, start=1):
            wanted = fraud_share * len(honest.time) * PATTERN_SHARES[number]
            parts.append(make(rng, world, max(1, round(wanted / MEAN_SIZES[number]))))
    pattern = np.repeat(np.arange(len(parts), dtype=np.int8), [len(part.time) for part in parts])
    every = _Part.concatenate(parts)
    inside = np.flatnonzero(every.time < world.span_ms)
    order = inside[np.argsort(every.time[inside], kind="stable")]
    events = _event_columns(world, every.take(order), from_iso(start), seed)
    pattern_N = pattern[order]
    mean, cap = label_delay_days * DAY_MS, label_delay_max_days * DAY_MS
    judged = rng.random(len(order)) < np.where(pattern_N > 0, reported_share, cleared_share)
    delay = np.minimum(rng.gamma(2.0, mean / 2.0, len(order)), cap).astype(np.int64)
    return Simulated(events, _label_columns(events, pattern_N > 0, judged, delay), pattern_N)


@dataclass(frozen=True, slots=True)
class _World:
    """Who pays where. Arrays of customers (C) and merchants (M); shops of city k are local[first[k]:first[k + 1]]."""

    span_ms: int
    rate_C: Floats  # payments a day
    scale_C: Floats  # multiplies a category's amount
    spread_C: Floats  # deviation of the log amount
    hour_C: Floats  # middle of the waking day, hours
    home_C: Ints  # city
    favourite_CS: Ints
    new_device_C: Ints  # when the second device replaces the first
    trip_C: Ints  # start of a trip
    trip_end_C: Ints
    trip_city_C: Ints
    category_M: Ints
    latitude_M: Floats
    longitude_M: Floats
    online_M: NDArray[np.bool_]
    city_M: Ints
    local: Ints
    first: Ints
    shops: Ints  # online ones

    @property
    def customers(self) -> int:
        return len(self.rate_C)

    @property
    def cities(self) -> int:
        return len(self.first) - 1

    def shop_in(self, rng: np.random.Generator, city: Ints) -> Ints:
        """A shop of each city, the popular ones more often."""
        count = self.first[city + 1] - self.first[city]
        return self.local[self.first[city] + (rng.random(len(city)) ** 2 * count).astype(np.int64)]

    def online_shop(self, rng: np.random.Generator, n: int) -> Ints:
        return self.shops[(rng.random(n) ** 2 * len(self.shops)).astype(np.int64)]

    def usual_amount(self, rng: np.random.Generator, customer: Ints, merchant: Ints) -> Floats:
        typical = CATEGORY_AMOUNT[self.category_M[merchant]] * self.scale_C[customer]
        return np.asarray(typical * np.exp(self.spread_C[customer] * rng.standard_normal(len(customer))))


@dataclass(frozen=True, slots=True)
class _Part:
    """Payments of one kind, in any order. `time` in milliseconds from the start; `device` a number or NO_DEVICE."""

    time: Ints
    customer: Ints
    merchant: Ints
    amount: Floats
    channel: Ints
    device: Ints

    def take(self, index: Ints) -> _Part:
        return _Part(self.time[index], self.customer[index], self.merchant[index], self.amount[index],
                     self.channel[index], self.device[index])  # fmt: skip

    @staticmethod
    def concatenate(parts: list[_Part]) -> _Part:
        names = ("time", "customer", "merchant", "amount", "channel", "device")
        return _Part(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def _make_world(rng: np.random.Generator, customers: int, merchants: int, days: int, rate: float) -> _World:
    span_ms = days * DAY_MS
    cities = min(MAX_CITIES, merchants // 4)
    city_M = np.arange(merchants) % cities
    online_M = np.arange(merchants) >= merchants - max(1, merchants // 5)
    local = np.flatnonzero(~online_M)
    local = local[np.argsort(city_M[local], kind="stable")]
    first = np.searchsorted(city_M[local], np.arange(cities + 1))
    centre = np.column_stack([rng.uniform(30, 48, cities), rng.uniform(-120, -75, cities)])
    place_M = centre[city_M] + rng.normal(0, 0.08, (merchants, 2))
    home_C = rng.integers(0, cities, customers)
    trip_C = rng.integers(0, span_ms, customers)
    trip_days = np.where(rng.random(customers) < min(1.0, days / 90), rng.integers(2, 7, customers), 0)
    world = _World(
        span_ms=span_ms,
        rate_C=rng.gamma(3.0, rate / 3.0, customers),
        scale_C=np.exp(rng.normal(0, 0.5, customers)),
        spread_C=rng.uniform(0.25, 0.6, customers),
        hour_C=rng.normal(14.5, 2.0, customers),
        home_C=home_C,
        favourite_CS=np.empty((customers, FAVOURITES), np.int64),
        new_device_C=rng.integers(0, max(span_ms, 365 * DAY_MS), customers),
        trip_C=trip_C,
        trip_end_C=trip_C + trip_days * DAY_MS,
        trip_city_C=_other_city(rng, home_C, cities),
        category_M=rng.integers(0, len(CATEGORIES), merchants),
        latitude_M=place_M[:, 0].round(5),
        longitude_M=place_M[:, 1].round(5),
        online_M=online_M,
        city_M=city_M,
        local=local,
        first=first,
        shops=np.flatnonzero(online_M),
    )
    for slot in range(FAVOURITES):
        shop = world.online_shop(rng, customers) if slot in ONLINE_SLOTS else world.shop_in(rng, home_C)
        world.favourite_CS[:, slot] = shop
    return world


def _other_city(rng: np.random.Generator, city: Ints, cities: int) -> Ints:
    return np.asarray((city + rng.integers(1, cities, len(city))) % cities)


def _honest(rng: np.random.Generator, world: _World) -> _Part:
    span_days = world.span_ms // DAY_MS
    customer = np.repeat(np.arange(world.customers), rng.poisson(world.rate_C * span_days))
    n = len(customer)
    hour = np.where(rng.random(n) < 0.06, rng.uniform(0, 24, n), rng.normal(world.hour_C[customer], 3.0)) % 24
    time = rng.integers(0, span_days, n) * DAY_MS + (hour * HOUR_MS).astype(np.int64)
    slot = np.minimum(rng.geometric(0.3, n) - 1, FAVOURITES - 1)
    merchant = world.favourite_CS[customer, slot]
    elsewhere = rng.random(n) < 0.2
    merchant = np.where(elsewhere, world.shop_in(rng, world.home_C[customer]), merchant)
    merchant = np.where(elsewhere & (rng.random(n) < 0.3), world.online_shop(rng, n), merchant)
    away = (time >= world.trip_C[customer]) & (time < world.trip_end_C[customer]) & ~world.online_M[merchant]
    merchant = np.where(away, world.shop_in(rng, world.trip_city_C[customer]), merchant)
    # Now and then somebody buys something large.
    amount = world.usual_amount(rng, customer, merchant) * np.where(rng.random(n) < 0.02, rng.uniform(2, 8, n), 1)
    in_shop = rng.choice([CHIP, CONTACTLESS, MAGSTRIPE], n, p=[0.45, 0.5, 0.05])
    channel = np.where(world.online_M[merchant], ONLINE, in_shop)
    owned = customer * DEVICES_EACH + (time >= world.new_device_C[customer])
    return _Part(time, customer, merchant, amount, channel, np.where(channel == ONLINE, owned, NO_DEVICE))


def _episodes(rng: np.random.Generator, size: Ints, gap_ms: float) -> tuple[Ints, Ints]:
    """Episode number and time since its start, for each event; gaps are exponential with this mean."""
    episode = np.repeat(np.arange(len(size)), size)
    gap = rng.exponential(gap_ms, len(episode))
    first = np.concatenate([[0], np.cumsum(size)[:-1]])
    total = np.cumsum(gap)
    return episode, (total - total[first][episode]).astype(np.int64)


def _spread_out(rng: np.random.Generator, span_ms: int, n: int) -> Ints:
    """Random times, one in each n-th of the span: every week sees every pattern, as with many more customers."""
    return ((np.arange(n) + rng.random(n)) / n * span_ms).astype(np.int64)


def _spree(rng: np.random.Generator, world: _World, n: int) -> _Part:
    episode, since = _episodes(rng, rng.integers(3, 12, n), HOUR_MS / 4)
    victim = rng.integers(0, world.customers, n)
    start = _spread_out(rng, world.span_ms, n)
    city = _other_city(rng, world.home_C[victim], world.cities)
    customer = victim[episode]
    merchant = world.shop_in(rng, city[episode])
    amount = world.usual_amount(rng, customer, merchant) * rng.uniform(1.2, 5, len(episode))
    channel = rng.choice([CHIP, CONTACTLESS, MAGSTRIPE], len(episode), p=[0.1, 0.5, 0.4])
    return _Part(start[episode] + since, customer, merchant, amount, channel, np.full(len(episode), NO_DEVICE))


def _testing(rng: np.random.Generator, world: _World, n: int) -> _Part:
    size = rng.integers(6, 15, n)
    episode, since = _episodes(rng, size, 20_000.0)
    customer = rng.integers(0, world.customers, n)[episode]
    merchant = world.online_shop(rng, len(episode))
    last = np.cumsum(size) - 1
    amount = rng.uniform(0.5, 3, len(episode))
    amount[last] = world.usual_amount(rng, customer[last], merchant[last]) * rng.uniform(4, 10, n)
    device = _fraud_device(rng, world, n)[episode]
    start = _spread_out(rng, world.span_ms, n)
    return _Part(start[episode] + since, customer, merchant, amount, np.full(len(episode), ONLINE), device)


def _merchant(rng: np.random.Generator, world: _World, n: int) -> _Part:
    episode, since = _episodes(rng, rng.integers(12, 29, n), 5 * HOUR_MS)
    shop = rng.choice(world.local, n)
    start = _spread_out(rng, world.span_ms, n)
    customer = _neighbour(rng, world, world.city_M[shop][episode])
    merchant = shop[episode]
    amount = world.usual_amount(rng, customer, merchant)
    channel = rng.choice([CHIP, CONTACTLESS, MAGSTRIPE], len(episode), p=[0.2, 0.5, 0.3])
    return _Part(start[episode] + since, customer, merchant, amount, channel, np.full(len(episode), NO_DEVICE))


def _neighbour(rng: np.random.Generator, world: _World, city: Ints) -> Ints:
    """A customer who lives in each city; anybody where nobody does."""
    by_city = np.argsort(world.home_C, kind="stable")
    first = np.searchsorted(world.home_C[by_city], np.arange(world.cities + 1))
    count = (first[1:] - first[:-1])[city]
    anybody = rng.integers(0, world.customers, len(city))
    place = np.minimum(first[city] + (rng.random(len(city)) * count).astype(np.int64), world.customers - 1)
    return np.asarray(np.where(count > 0, by_city[place], anybody))


def _takeover(rng: np.random.Generator, world: _World, n: int) -> _Part:
    episode, since = _episodes(rng, rng.integers(3, 10, n), HOUR_MS / 2)
    victim = rng.integers(0, world.customers, n)
    night = (world.hour_C[victim] + rng.normal(12, 2.0, n)) % 24
    start = _spread_out(rng, world.span_ms, n) // DAY_MS * DAY_MS + (night * HOUR_MS).astype(np.int64)
    customer = victim[episode]
    merchant = world.online_shop(rng, len(episode))
    amount = world.usual_amount(rng, customer, merchant) * rng.uniform(1.2, 6, len(episode))
    device = _fraud_device(rng, world, n)[episode]
    return _Part(start[episode] + since, customer, merchant, amount, np.full(len(episode), ONLINE), device)


def _fraud_device(rng: np.random.Generator, world: _World, n: int) -> Ints:
    first = world.customers * DEVICES_EACH  # numbers below belong to customers
    return first + rng.integers(0, max(1, n // CARDS_PER_FRAUD_DEVICE), n)


def _event_columns(world: _World, part: _Part, start_ms: int, seed: int) -> dict[str, NDArray[Any]]:
    online = part.channel == ONLINE
    return {
        "transaction_id": _texts([f"t{seed}-{i:08d}" for i in range(len(part.time))]),
        "timestamp": part.time + start_ms,
        "card_id": _texts([f"card-{i:06d}" for i in part.customer.tolist()]),
        "merchant_id": _texts([f"merchant-{i:05d}" for i in part.merchant.tolist()]),
        "device_id": _texts([None if i == NO_DEVICE else f"device-{i:07d}" for i in part.device.tolist()]),
        "amount": np.maximum(part.amount.round(2), 0.01),
        "merchant_category": np.array(CATEGORIES, dtype=object)[world.category_M[part.merchant]],
        "channel": np.array(CHANNELS, dtype=object)[part.channel],
        "location.latitude": np.where(online, np.nan, world.latitude_M[part.merchant]),
        "location.longitude": np.where(online, np.nan, world.longitude_M[part.merchant]),
        "card_present": ~online,
    }


def _texts(values: list[Any]) -> NDArray[Any]:
    return np.array(values, dtype=object)


def _label_columns(
    events: dict[str, NDArray[Any]], fraud: NDArray[np.bool_], judged: NDArray[np.bool_], delay: Ints
) -> dict[str, NDArray[Any]]:
    arrival = events["timestamp"] + delay
    rows = np.flatnonzero(judged)
    rows = rows[np.argsort(arrival[rows], kind="stable")]
    return {
        "event_id": events["transaction_id"][rows],
        "time": arrival[rows],
        "fraud": fraud[rows],
        **{name: events[name][rows] for name in ("card_id", "merchant_id", "device_id", "amount")},
    }
