"""How simulated fraud goes about it: the rules of the first months, and those that take their place (`simulate`).

Each function plans n episodes of one pattern over the whole span of a world.
"""

from __future__ import annotations

import numpy as np

from models.clock import DAY_MS, HOUR_MS
from models.simulate_world import (
    CHIP,
    CONTACTLESS,
    DEVICES_EACH,
    MAGSTRIPE,
    NO_DEVICE,
    ONLINE,
    Floats,
    Ints,
    Payments,
    World,
    other_city,
)

__all__ = ["limit", "merchant", "remote", "spree", "takeover", "testing", "vouchers", "webshop"]

CARDS_PER_FRAUD_DEVICE = 4


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


def spree(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(3, 12, n), HOUR_MS / 4)
    victim = rng.integers(0, world.customers, n)
    start = _spread_out(rng, world.span_ms, n)
    city = other_city(rng, world.home_C[victim], world.cities)
    customer = victim[episode]
    merchant = world.shop_in(rng, city[episode])
    amount = world.usual_amount(rng, customer, merchant) * rng.uniform(1.2, 5, len(episode))
    channel = rng.choice([CHIP, CONTACTLESS, MAGSTRIPE], len(episode), p=[0.1, 0.5, 0.4])
    return Payments(start[episode] + since, customer, merchant, amount, channel, np.full(len(episode), NO_DEVICE))


def testing(rng: np.random.Generator, world: World, n: int) -> Payments:
    size = rng.integers(6, 15, n)
    episode, since = _episodes(rng, size, 20_000.0)
    customer = rng.integers(0, world.customers, n)[episode]
    merchant = world.online_shop(rng, len(episode))
    last = np.cumsum(size) - 1
    amount = rng.uniform(0.5, 3, len(episode))
    amount[last] = world.usual_amount(rng, customer[last], merchant[last]) * rng.uniform(4, 10, n)
    device = _fraud_device(rng, world, n)[episode]
    start = _spread_out(rng, world.span_ms, n)
    return Payments(start[episode] + since, customer, merchant, amount, np.full(len(episode), ONLINE), device)


def merchant(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(12, 29, n), 5 * HOUR_MS)
    shop = rng.choice(world.local, n)
    start = _spread_out(rng, world.span_ms, n)
    customer = _neighbour(rng, world, world.city_M[shop][episode])
    merchant = shop[episode]
    amount = world.usual_amount(rng, customer, merchant)
    channel = rng.choice([CHIP, CONTACTLESS, MAGSTRIPE], len(episode), p=[0.2, 0.5, 0.3])
    return Payments(start[episode] + since, customer, merchant, amount, channel, np.full(len(episode), NO_DEVICE))


def _neighbour(rng: np.random.Generator, world: World, city: Ints) -> Ints:
    """A customer who lives in each city; anybody where nobody does."""
    by_city = np.argsort(world.home_C, kind="stable")
    first = np.searchsorted(world.home_C[by_city], np.arange(world.cities + 1))
    count = (first[1:] - first[:-1])[city]
    anybody = rng.integers(0, world.customers, len(city))
    place = np.minimum(first[city] + (rng.random(len(city)) * count).astype(np.int64), world.customers - 1)
    return np.asarray(np.where(count > 0, by_city[place], anybody))


def takeover(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(3, 10, n), HOUR_MS / 2)
    victim = rng.integers(0, world.customers, n)
    night = (world.hour_C[victim] + rng.normal(12, 2.0, n)) % 24
    start = _spread_out(rng, world.span_ms, n) // DAY_MS * DAY_MS + (night * HOUR_MS).astype(np.int64)
    customer = victim[episode]
    merchant = world.online_shop(rng, len(episode))
    amount = world.usual_amount(rng, customer, merchant) * rng.uniform(1.2, 6, len(episode))
    device = _fraud_device(rng, world, n)[episode]
    return Payments(start[episode] + since, customer, merchant, amount, np.full(len(episode), ONLINE), device)


def _fraud_device(rng: np.random.Generator, world: World, n: int) -> Ints:
    first = world.customers * DEVICES_EACH  # numbers below belong to customers
    return first + rng.integers(0, max(1, n // CARDS_PER_FRAUD_DEVICE), n)


def limit(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(4, 10, n), HOUR_MS / 6)
    customer = rng.integers(0, world.customers, n)[episode]
    merchant = world.shop_in(rng, world.home_C[customer])
    amount = rng.uniform(38.0, 49.99, len(episode))
    start = _spread_out(rng, world.span_ms, n)
    channel = np.full(len(episode), CONTACTLESS)
    return Payments(start[episode] + since, customer, merchant, amount, channel, np.full(len(episode), NO_DEVICE))


def vouchers(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(5, 12, n), HOUR_MS / 12)
    customer = rng.integers(0, world.customers, n)[episode]
    merchant = world.online_shop(rng, n)[episode]
    amount = rng.choice([25.0, 50.0, 75.0, 100.0], len(episode))
    start = _spread_out(rng, world.span_ms, n)
    return _own_device(world, start[episode] + since, customer, merchant, amount)


def webshop(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(12, 29, n), 5 * HOUR_MS)
    customer = rng.integers(0, world.customers, len(episode))
    merchant = rng.choice(world.shops, n)[episode]
    amount = world.usual_amount(rng, customer, merchant)
    start = _spread_out(rng, world.span_ms, n)
    return _own_device(world, start[episode] + since, customer, merchant, amount)


def remote(rng: np.random.Generator, world: World, n: int) -> Payments:
    episode, since = _episodes(rng, rng.integers(3, 10, n), HOUR_MS / 2)
    victim = rng.integers(0, world.customers, n)
    start = _spread_out(rng, world.span_ms, n) // DAY_MS * DAY_MS + (world.hour_C[victim] * HOUR_MS).astype(np.int64)
    customer = victim[episode]
    merchant = world.online_shop(rng, len(episode))
    amount = world.usual_amount(rng, customer, merchant) * rng.uniform(1.5, 6, len(episode))
    return _own_device(world, start[episode] + since, customer, merchant, amount)


def _own_device(world: World, time: Ints, customer: Ints, merchant: Ints, amount: Floats) -> Payments:
    device = customer * DEVICES_EACH + (time >= world.new_device_C[customer])
    return Payments(time, customer, merchant, amount, np.full(len(time), ONLINE), device)
