"""Seeded synthetic card payments with known fraud, for the demo, tests and benchmarks.

Customers have habits (amounts, hours, places, favourite merchants, devices), merchants have places and
categories, and four kinds of fraud are laid over them:

    spree        a stolen card is used in another city, several times within hours, above its usual amounts
    testing      many tiny online payments seconds apart, then a large one; fraudsters reuse few devices
    merchant     cards copied at one merchant pay there for days, at ordinary amounts: only labels tell
    takeover     an online account is used from a new device, at night, above its usual amounts

From a day that is asked for, fraud goes by other rules, as it does when it is found out, while honest customers stay as
they are (a drift of the concept, not of the inputs, but for what fraud itself moves):

    limit        a stolen card pays contactless in its own city, many times within an hour, just below the limit
    vouchers     vouchers of round amounts from one online shop, minutes apart, from the customer's own device
    webshop      as merchant, but online and from the customers' own devices
    remote       as takeover, but by day and from the customer's own device

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

from models import simulate_frauds as frauds
from models.clock import DAY_MS, HOUR_MS, from_iso
from models.simulate_world import (
    CATEGORIES,
    CHANNELS,
    CHIP,
    CONTACTLESS,
    DEVICES_EACH,
    FAVOURITES,
    MAGSTRIPE,
    NO_DEVICE,
    ONLINE,
    Ints,
    Payments,
    World,
    make_world,
)

__all__ = ["PATTERNS", "Simulated", "simulate"]

PATTERNS = (
    "",
    "spree",
    "testing",
    "merchant",
    "takeover",
    "limit",
    "vouchers",
    "webshop",
    "remote",
)  # index 0: honest; the last four only once the rules have changed
FIRST, LATER = (1, 2, 3, 4), (5, 6, 7, 8)  # places in PATTERNS: each of the later takes the place of one of the first
PATTERN_SHARES = (0.0, *(0.3, 0.2, 0.25, 0.25) * 2)  # of the fraudulent events of a time
MEAN_SIZES = (0, 7, 10, 20, 6, 6.5, 8, 20, 6)  # events of an episode
MAKERS = {
    1: frauds.spree, 2: frauds.testing, 3: frauds.merchant, 4: frauds.takeover,
    5: frauds.limit, 6: frauds.vouchers, 7: frauds.webshop, 8: frauds.remote,
}  # fmt: skip


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
    rules_change_day: int | None = None,
) -> Simulated:
    """Payments of `days` days from `start` (ISO-8601, UTC).

    payments_per_day: mean for a customer. fraud_share: fraudulent events per honest one; there is at least one
    episode of each pattern, so very small simulations hold more. reported_share: fraud that ever gets a label.
    cleared_share: honest events that an analyst labels as such. label_delay_days: mean delay of a label, gamma
    distributed and cut at label_delay_max_days. Labels may arrive after the last event. rules_change_day: from this day
    on fraud goes by the later rules; None stands for never.
    Raises ValueError when the world is too small to hold the patterns.
    """
    if customers < 2 or merchants < 8 or days < 2:
        raise ValueError(f"customers={customers}, merchants={merchants}, days={days}: expected at least 2, 8 and 2")
    rng = np.random.default_rng(seed)
    world = make_world(rng, customers, merchants, days, payments_per_day)
    honest = _honest(rng, world)
    parts = [honest]
    patterns = [0]
    if fraud_share > 0:
        change_ms = world.span_ms if rules_change_day is None else rules_change_day * DAY_MS
        for number in FIRST if rules_change_day is None else (*FIRST, *LATER):
            wanted = fraud_share * len(honest.time) * PATTERN_SHARES[number]
            planned = MAKERS[number](rng, world, max(1, round(wanted / MEAN_SIZES[number])))
            in_force = planned.time < change_ms if number in FIRST else planned.time >= change_ms
            parts.append(planned if rules_change_day is None else planned.take(np.flatnonzero(in_force)))
            patterns.append(number)
    pattern = np.repeat(np.array(patterns, dtype=np.int8), [len(part.time) for part in parts])
    every = Payments.concatenate(parts)
    inside = np.flatnonzero(every.time < world.span_ms)
    order = inside[np.argsort(every.time[inside], kind="stable")]
    events = _event_columns(world, every.take(order), from_iso(start), seed)
    pattern_N = pattern[order]
    mean, cap = label_delay_days * DAY_MS, label_delay_max_days * DAY_MS
    judged = rng.random(len(order)) < np.where(pattern_N > 0, reported_share, cleared_share)
    delay = np.minimum(rng.gamma(2.0, mean / 2.0, len(order)), cap).astype(np.int64)
    return Simulated(events, _label_columns(events, pattern_N > 0, judged, delay), pattern_N)


def _honest(rng: np.random.Generator, world: World) -> Payments:
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
    return Payments(time, customer, merchant, amount, channel, np.where(channel == ONLINE, owned, NO_DEVICE))


def _event_columns(world: World, part: Payments, start_ms: int, seed: int) -> dict[str, NDArray[Any]]:
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
