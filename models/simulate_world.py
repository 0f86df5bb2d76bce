"""The world of simulated card payments: who lives where, which shops there are, what people usually spend."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.clock import DAY_MS

CATEGORIES = ("grocery", "fuel", "restaurant", "transport", "pharmacy", "clothing", "electronics", "travel", "gaming")
CATEGORY_AMOUNT = np.array([30.0, 40, 25, 8, 18, 60, 180, 240, 20])  # typical amount, USD
CHANNELS = ("chip", "contactless", "magstripe", "online")
CHIP, CONTACTLESS, MAGSTRIPE, ONLINE = range(4)
FAVOURITES = 8
ONLINE_SLOTS = (2, 5)  # which of a customer's favourites are online shops
MAX_CITIES = 12
DEVICES_EACH = 2  # a customer's device, and the one that replaces it one day
NO_DEVICE = -1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
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
class Payments:
    """Payments of one kind, in any order. `time` in milliseconds from the start; `device` a number or NO_DEVICE."""

    time: Ints
    customer: Ints
    merchant: Ints
    amount: Floats
    channel: Ints
    device: Ints

    def take(self, index: Ints) -> Payments:
        return Payments(self.time[index], self.customer[index], self.merchant[index], self.amount[index],
                     self.channel[index], self.device[index])  # fmt: skip

    @staticmethod
    def concatenate(parts: list[Payments]) -> Payments:
        names = ("time", "customer", "merchant", "amount", "channel", "device")
        return Payments(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def make_world(rng: np.random.Generator, customers: int, merchants: int, days: int, rate: float) -> World:
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
    world = World(
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
        trip_city_C=other_city(rng, home_C, cities),
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


def other_city(rng: np.random.Generator, city: Ints, cities: int) -> Ints:
    return np.asarray((city + rng.integers(1, cities, len(city))) % cities)
