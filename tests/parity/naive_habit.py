"""The oracle of habits: one event at a time, by name, with sets for filters; see `tests.parity.naive`.

What a state keeps is a float32 after every event, as documented, and so is what a habit learns from.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field

__all__ = ["Habit", "Partners", "Place", "float32", "great_circle_km"]

EARTH_KM = 6371.0088


@dataclass
class Habit:
    """The usual value and the spread about it."""

    usual: float = 0.0
    spread: float = 0.0
    known: int = 0

    def surprise(self, x: float | None) -> float:
        return 0.0 if x is None or not self.known else float32(x) - self.usual

    def score(self, x: float | None) -> float:
        return min(max(self.surprise(x) / self.spread, -10.0), 10.0) if self.known else 0.0

    def learn(self, x: float | None) -> None:
        if x is None:
            return
        if self.known == 0:
            self.usual, self.spread = float32(x), 0.5
        else:
            r = float32(x) - self.usual
            rate = max(1 / (self.known + 1), 1 / 128)
            cut = 1.5 * self.spread
            self.usual = float32(self.usual + rate * (cut if r > cut else -cut if r < -cut else r))
            self.spread = spread_after(self.spread, abs(r), rate)
        self.known += 1


@dataclass
class Partners:
    """Values of an entity field: two Bloom filters as sets of bit numbers, and how often a value is novel."""

    young: set[int] = field(default_factory=set)
    old: set[int] = field(default_factory=set)
    taken: int = 0
    share: float = 0.0
    known: int = 0

    def shown(self, value: int | None) -> tuple[float, float]:
        """novel, novelty."""
        if value is None:
            return 0.0, 0.0
        bits = {value % 64, value // 64 % 64}
        novel = float(not bits <= self.young and not bits <= self.old)
        return novel, novel - self.share if self.known else 0.0

    def learn(self, value: int | None) -> None:
        if value is None:
            return
        novel, _ = self.shown(value)
        self.share = float32(self.share + max(1 / (self.known + 1), 1 / 128) * (novel - self.share))
        self.known += 1
        bits = {value % 64, value // 64 % 64}
        if not bits <= self.young:
            self.young, self.taken = self.young | bits, self.taken + 1
            if self.taken == 12:
                self.young, self.old, self.taken = set(), self.young, 0


@dataclass
class Place:
    """The usual place in degrees, how far (in degrees) positions are from it, and how far in log1p km is usual."""

    here: tuple[float, float] | None = None
    reach: float = 0.5
    far: Habit = field(default_factory=Habit)

    def shown(self, position: tuple[float, float] | None) -> tuple[float, float]:
        """away, away_score. position: latitude and longitude in degrees."""
        if position is None or self.here is None:
            return 0.0, 0.0
        away = self._away(position)
        return away, self.far.score(away)

    def learn(self, position: tuple[float, float] | None) -> None:
        if position is None:
            return
        if self.here is None:
            self.here = position
            return
        rate = max(1 / (self.far.known + 2), 1 / 128)  # the first position had no distance
        self.far.learn(self._away(position))
        north, east = position[0] - self.here[0], around(position[1] - self.here[1])
        degrees = math.sqrt(north**2 + east**2)
        step = rate * (1.0 if degrees <= 1.5 * self.reach else 1.5 * self.reach / degrees)
        self.here = float32(self.here[0] + step * north), float32(around(self.here[1] + step * east))
        self.reach = spread_after(self.reach, degrees, rate)

    def _away(self, position: tuple[float, float]) -> float:
        assert self.here is not None
        a, b = ((math.radians(p[0]), math.radians(p[1])) for p in (self.here, position))
        return math.log1p(great_circle_km(a, b))


def spread_after(spread: float, deviation: float, rate: float) -> float:
    more = deviation - spread if deviation < 3 * spread else 2 * spread
    return float32(min(max(spread + rate * more, 0.02), 1e37))


def around(degrees: float) -> float:
    """Between -180 and 180 degrees."""
    if degrees > 180:
        return degrees - 360
    return degrees + 360 if degrees < -180 else degrees


def float32(value: float) -> float:
    """What a state keeps of a number."""
    kept: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return kept


def great_circle_km(a: tuple[float, float], b: tuple[float, float]) -> float:
    """By the angle between the two unit vectors (atan2 form of Vincenty's formula), not by haversines. In radians."""
    turn = b[1] - a[1]
    across = math.hypot(
        math.cos(b[0]) * math.sin(turn),
        math.cos(a[0]) * math.sin(b[0]) - math.sin(a[0]) * math.cos(b[0]) * math.cos(turn),
    )
    along = math.sin(a[0]) * math.sin(b[0]) + math.cos(a[0]) * math.cos(b[0]) * math.cos(turn)
    return EARTH_KM * math.atan2(across, along)
