"""The oracle of the feature path: one event at a time, dicts, lists and `math`; too simple to be wrong.

Nothing here is shared with `models.features`: definitions are taken from its documentation. An entity keeps all
events it ever applied, a shared profile every contribution ever made, and each feature is computed anew from
them, by name. It knows no batches, no rings and no running sums. Numbers are rounded to float32 when an event
comes in, because that is what a state keeps of them. Habits alone are running: `tests.parity.naive_habit`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xxhash

from models.pipeline.spec import (
    BooleanField,
    CategoryField,
    EntityField,
    GeoField,
    NumberField,
    Pipeline,
    Profile,
)  # fmt: skip
from tests.parity.naive_habit import Habit, Partners, Place, float32, great_circle_km

__all__ = ["Naive", "NaiveEntity", "Result", "hash32"]

HOUR_S = 3600.0
DAY_MS = 86_400_000
MONDAY_MS = 4 * DAY_MS  # 1970-01-05


@dataclass
class Happened:
    """An applied event: its time, and its values by name (degrees of a position by `<field>.latitude`, …)."""

    time: int
    event_id: str
    values: dict[str, float | None]
    hashes: dict[str, int | None]


@dataclass
class NaiveEntity:
    """Everything that was ever applied, in order of arrival."""

    past: list[Happened] = field(default_factory=list)
    recent_ids: deque[str] = field(default_factory=deque)
    clock: int = 0
    habits: dict[str, Habit] = field(default_factory=dict)
    partners: dict[str, Partners] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)


@dataclass
class Contribution:
    """What one event or label adds to a shared profile, at its partition's clock. amount: thousandths."""

    clock: int
    events: int = 0
    labels: int = 0
    frauds: int = 0
    amount: int = 0


@dataclass(frozen=True, order=True)
class Verdict:
    """A label of a shared profile, at its partition's clock. ratio: thousandths, None where it is unknown."""

    clock: int
    id_hash: int
    fraud: int
    ratio: int | None


@dataclass
class Result:
    """Features of one event by name; x, codes and mask for each place of the window, oldest first.

    verdicts: for each profile that shows any, those this event sees, oldest first.
    """

    x: list[dict[str, float] | None]
    codes: list[dict[str, int] | None]
    context: dict[str, float]
    late: bool
    verdicts: dict[str, list[dict[str, float]]]


class Naive:
    """States and shared profiles of one pipeline."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.p = pipeline
        self.numbers = pipeline.of_type(NumberField)
        self.booleans = pipeline.of_type(BooleanField)
        self.positions = pipeline.of_type(GeoField)
        self.categories = pipeline.of_type(CategoryField)
        self.others = [name for name in pipeline.of_type(EntityField) if name != pipeline.entity]
        self.entities: dict[str, NaiveEntity] = {}
        self.profiles: dict[tuple[str, str], list[Contribution]] = {}
        self.verdicts: dict[tuple[str, str], set[Verdict]] = {}

    def event(self, row: Mapping[str, Any], clock: int) -> Result | None:
        """Apply one event; None when it is a duplicate. clock: its partition's, this event included."""
        entity = self.entities.setdefault(str(row[self.p.entity]), self._unknown())
        event_id = str(row[self.p.pipeline.event_id])
        if event_id in entity.recent_ids:
            return None
        now = self._happened(row)
        late = now.time < entity.clock
        entity.clock = max(entity.clock, now.time)
        context = self._own(entity, now) | self._habits(entity, now) | self._shared(row, now, clock)
        verdicts = {
            name: self._seen(profile, self.verdicts.get((name, str(row.get(profile.key))), set()), clock)
            for name, profile in self.p.profiles.items()
            if profile.verdicts
        }
        for name, seen in verdicts.items():
            context |= self._run(name, seen)
        entity.past.append(now)
        entity.recent_ids.append(event_id)
        if len(entity.recent_ids) > self.p.window.length:
            entity.recent_ids.popleft()
        for name, profile in self.p.profiles.items():
            if row.get(profile.key) is not None:
                amount = now.values[profile.amount] if profile.amount else None
                added = Contribution(clock, events=1, amount=round((amount or 0.0) * 1000))
                self.profiles.setdefault((name, str(row[profile.key])), []).append(added)
        x: list[dict[str, float] | None] = []
        codes: list[dict[str, int] | None] = []
        for place in range(len(entity.past) - self.p.window.length, len(entity.past)):
            if place < 0:
                x.append(None)
                codes.append(None)
            else:
                before = entity.past[place - 1] if place else None
                x.append(self._x(entity.past[place], before) | self._surprise(entity, entity.past[place], before))
                codes.append(self._codes(entity.past[place]))
        self._learn(entity)
        return Result(x, codes, context, late, verdicts)

    def label(self, row: Mapping[str, Any], fraud: bool, clock: int) -> None:
        """One label arrived. row: of the event it judges, by field name."""
        for name, profile in self.p.profiles.items():
            if row.get(profile.key) is not None:
                added = Contribution(clock, labels=1, frauds=int(fraud))
                place = name, str(row[profile.key])
                self.profiles.setdefault(place, []).append(added)
                if profile.verdicts:
                    id_hash = xxhash.xxh3_64_intdigest(str(row[self.p.pipeline.event_id]).encode()) or 1
                    ratio = self._ratio(name, profile, row, clock)
                    self.verdicts.setdefault(place, set()).add(Verdict(clock, id_hash, int(fraud), ratio))

    def _ratio(self, name: str, profile: Profile, row: Mapping[str, Any], clock: int) -> int | None:
        """How the amount differs from the compared profile's mean of its longest half-life, in thousandths."""
        amount = row.get(profile.amount) if profile.amount else None
        other = self.p.profiles[profile.compare or name]
        past = self.profiles.get((profile.compare or name, str(row.get(other.key))), [])
        sums = self._faded(other, other.half_lives_ms[-1], past, clock)
        if amount is None or not sums["events"] or profile.amount is None:
            return None
        mean = sums["amount"] / 1000 / sums["events"]
        return round(1000 * (self._transformed(profile.amount, amount) - self._transformed(profile.amount, mean)))

    @staticmethod
    def _seen(profile: Profile, every: set[Verdict], clock: int) -> list[dict[str, float]]:
        """The newest of the verdicts in stretches that ended by clock - delay, four of a stretch: frauds first."""
        stretch = max(profile.delay_ms, 60_000)
        before = (clock - profile.delay_ms) // stretch
        kept: list[Verdict] = []
        for number in {v.clock // stretch for v in every if v.clock // stretch < before}:
            of_one = [v for v in every if v.clock // stretch == number]
            kept += sorted(of_one, key=lambda v: (-v.fraud, v.id_hash, v.clock, v.ratio or 0))[:4]
        seen = sorted(kept, key=lambda v: (v.clock, v.id_hash, v.fraud, v.ratio or 0))[-profile.verdicts :]
        out = []
        for i, v in enumerate(seen):
            ratio = 0.0 if v.ratio is None else v.ratio / 1000
            out.append({
                "present": 1.0, "fraud": float(v.fraud), "age": math.log1p((clock - v.clock) / 3_600_000),
                "days": (clock - v.clock) / DAY_MS,
                "gap": math.log1p((v.clock - seen[i - 1].clock) / 3_600_000) if i else 0.0,
                "ratio": ratio, "fraud_ratio": ratio * v.fraud,
            })  # fmt: skip
        return out

    @staticmethod
    def _run(name: str, seen: list[dict[str, float]]) -> dict[str, float]:
        """What the verdicts come to: the newest, the frauds in a row that end with it, and the last other one."""
        run = list(itertools.takewhile(lambda v: v["fraud"], reversed(seen)))
        clean = [v for v in seen if not v["fraud"]]
        return {
            f"{name}.verdict_age": seen[-1]["age"] if seen else 0.0,
            f"{name}.run": math.log1p(len(run)),
            f"{name}.run_age": run[-1]["age"] if run else 0.0,
            f"{name}.run_days": run[-1]["days"] if run else 0.0,
            f"{name}.clean_days": clean[-1]["days"] if clean else 0.0,
        }

    def _unknown(self) -> NaiveEntity:
        return NaiveEntity(
            habits={name: Habit() for name in [*self.numbers, "gap"]},
            partners={name: Partners() for name in self.others},
            places={name: Place() for name in self.positions},
        )

    def _happened(self, row: Mapping[str, Any]) -> Happened:
        names = [*self.numbers, *self.booleans]
        names += [f"{name}.{part}" for name in self.positions for part in ("latitude", "longitude")]
        return Happened(
            time=row[self.p.pipeline.time],
            event_id=str(row[self.p.pipeline.event_id]),
            values={n: None if (v := row.get(n)) is None else float32(v) for n in names},
            hashes={name: hash32(row.get(name)) for name in [*self.categories, *self.others]},
        )

    def _x(self, now: Happened, before: Happened | None) -> dict[str, float]:
        out: dict[str, float] = {}
        for name in [*self.numbers, *self.booleans]:
            value = now.values[name]
            out[name] = 0.0 if value is None else self._transformed(name, value)
            if not self.p.fields[name].required:
                out[f"{name}.missing"] = float(value is None)
        gap_s = 0.0 if before is None else max(now.time - before.time, 0) / 1000
        for name in self.positions:
            here = position(now, name)
            there = None if before is None else position(before, name)
            km = 0.0 if here is None or there is None else great_circle_km(here, there)
            out[f"{name}.distance"] = math.log1p(km)
            out[f"{name}.speed"] = math.log1p(km / max(gap_s / HOUR_S, 1 / 60))
            if not self.p.fields[name].required:
                out[f"{name}.missing"] = float(here is None)
        for name in self.others:
            same = before is not None and now.hashes[name] is not None and now.hashes[name] == before.hashes[name]
            out[f"{name}.repeated"] = float(same)
        out["gap"] = math.log1p(gap_s)
        day = 2 * math.pi * (now.time % DAY_MS) / DAY_MS
        week = 2 * math.pi * ((now.time - MONDAY_MS) % (7 * DAY_MS)) / (7 * DAY_MS)
        out |= {"hour_sin": math.sin(day), "hour_cos": math.cos(day)}
        return out | {"week_sin": math.sin(week), "week_cos": math.cos(week)}

    def _codes(self, now: Happened) -> dict[str, int]:
        out = {}
        for name in self.categories:
            found = now.hashes[name]
            out[name] = 0 if found is None else 1 + found % (self.p.fields[name].buckets - 1)  # type: ignore[union-attr]
        return out

    def _own(self, entity: NaiveEntity, now: Happened) -> dict[str, float]:
        """What the entity usually does. `entity.past` is without this event, `entity.clock` with it."""
        length = self.p.window.length
        window = entity.past[-(length - 1) :]
        out = {"history": math.log1p(len(entity.past))}
        for name in self.numbers:
            known = [v for e in window if (v := e.values[name]) is not None]
            x = now.values[name]
            out[f"{name}.over_median"] = 0.0
            if known and x is not None:
                median = statistics.median(known)
                out[f"{name}.over_median"] = self._transformed(name, x) - self._transformed(name, median)
        for name in [*self.categories, *self.others]:
            seen = any(e.hashes[name] == now.hashes[name] for e in window)
            out[f"{name}.seen"] = float(seen and now.hashes[name] is not None)
        for text, horizon in zip(self.p.window.horizons, self.p.window.horizons_ms, strict=True):
            within = [e for e in window if entity.clock - e.time <= horizon]
            if len(entity.past) < length or entity.clock - window[0].time > horizon:
                weighted = [(1.0, e) for e in within]
            else:
                weighted = [(math.exp(-(entity.clock - e.time) / horizon), e) for e in entity.past]
            out[f"count.{text}"] = math.log1p(math.fsum(w for w, _ in weighted) + 1)
            for name in self.numbers:
                out |= self._statistics(name, text, weighted, now.values[name])
            for name in [*self.categories, *self.others]:
                distinct = {e.hashes[name] for e in [*within, now]} - {None}
                out[f"{name}.distinct.{text}"] = math.log1p(len(distinct))
        return out

    def _known(self, now: Happened, before: Happened | None) -> dict[str, float | None]:
        """What habits are about: numbers transformed, and the gap, None where unknown."""
        known: dict[str, float | None] = {}
        for name in self.numbers:
            value = now.values[name]
            known[name] = None if value is None else self._transformed(name, value)
        passed = None if before is None or now.time < before.time else now.time - before.time
        return known | {"gap": None if passed is None else math.log1p(passed / 1000)}

    def _surprise(self, entity: NaiveEntity, now: Happened, before: Happened | None) -> dict[str, float]:
        return {f"{n}.surprise": entity.habits[n].surprise(x) for n, x in self._known(now, before).items()}

    def _habits(self, entity: NaiveEntity, now: Happened) -> dict[str, float]:
        """`entity.past` is without this event."""
        out: dict[str, float] = {}
        for name, x in self._known(now, entity.past[-1] if entity.past else None).items():
            habit = entity.habits[name]
            out |= {f"{name}.usual": habit.usual, f"{name}.spread": habit.spread, f"{name}.score": habit.score(x)}
        for name in self.others:
            out[f"{name}.novel"], out[f"{name}.novelty"] = entity.partners[name].shown(now.hashes[name])
        for name in self.positions:
            out[f"{name}.away"], out[f"{name}.away_score"] = entity.places[name].shown(degrees(now, name))
        return out

    def _learn(self, entity: NaiveEntity) -> None:
        """From the newest event; `entity.past` is with it."""
        now, before = entity.past[-1], entity.past[-2] if len(entity.past) > 1 else None
        for name, x in self._known(now, before).items():
            entity.habits[name].learn(x)
        for name in self.others:
            entity.partners[name].learn(now.hashes[name])
        for name in self.positions:
            entity.places[name].learn(degrees(now, name))

    def _statistics(
        self, name: str, horizon: str, weighted: list[tuple[float, Happened]], x: float | None
    ) -> dict[str, float]:
        known = [(w, v) for w, e in weighted if (v := e.values[name]) is not None]
        count, total = math.fsum(w for w, _ in known), math.fsum(w * v for w, v in known)
        mean = deviation = zscore = relative = 0.0
        if count > 1e-9:
            mean = total / count
            deviation = math.sqrt(math.fsum(w * (v - mean) ** 2 for w, v in known) / count)
            floor = 1e-3 * max(abs(mean), 1.0)
            relative = deviation / max(abs(mean), floor)
            if x is not None and deviation > floor:
                zscore = min(max((x - mean) / deviation, -20.0), 20.0)
        return {
            f"{name}.sum.{horizon}": self._transformed(name, total + (x or 0.0)),
            f"{name}.mean.{horizon}": self._transformed(name, mean),
            f"{name}.deviation.{horizon}": relative,
            f"{name}.zscore.{horizon}": zscore,
        }

    def _shared(self, row: Mapping[str, Any], now: Happened, clock: int) -> dict[str, float]:
        out: dict[str, float] = {}
        for name, profile in self.p.profiles.items():
            key = row.get(profile.key)
            for text, half_life in zip(profile.half_lives, profile.half_lives_ms, strict=True):
                past = [] if key is None else self.profiles.get((name, str(key)), [])
                sums = self._faded(profile, half_life, past, clock)
                out[f"{name}.count.{text}"] = math.log1p(sums["events"])
                out[f"{name}.fraud_rate.{text}"] = sums["frauds"] / (sums["labels"] + 2.0)
                out[f"{name}.frauds.{text}"] = math.log1p(sums["frauds"])
                out[f"{name}.labels.{text}"] = math.log1p(sums["labels"])
                if profile.amount is None:
                    continue
                x = now.values[profile.amount]
                mean = sums["amount"] / 1000 / sums["events"] if sums["events"] else 0.0
                out[f"{name}.amount.{text}"] = shown = self._transformed(profile.amount, mean)
                own = self._transformed(profile.amount, x or 0.0)
                known = sums["events"] > 0 and x is not None
                out[f"{name}.amount_ratio.{text}"] = own - shown if known else 0.0
        return out

    @staticmethod
    def _faded(profile: Profile, half_life: int, past: list[Contribution], clock: int) -> dict[str, float]:
        """Sums over the last 32 buckets that ended by clock - delay; half a bucket's weight each half-life."""
        length = half_life // 6
        newest = (clock - profile.delay_ms) // length - 1
        out = dict.fromkeys(("events", "labels", "frauds", "amount"), 0.0)
        for added in past:
            age = newest - added.clock // length
            if 0 <= age < 32:
                for name in out:
                    out[name] += getattr(added, name) * 0.5 ** (age / 6)
        return out

    def _transformed(self, name: str, value: float) -> float:
        how = getattr(self.p.fields[name], "transform", "linear")
        if how == "log1p":
            return math.log1p(max(value, 0.0))
        return math.asinh(value) if how == "asinh" else value


def hash32(value: Any) -> int | None:
    """What a state keeps of a category or an entity; JSON's words for truth."""
    if value is None:
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return (xxhash.xxh3_64_intdigest(text.encode()) % 2**32) or 1


def degrees(event: Happened, name: str) -> tuple[float, float] | None:
    latitude, longitude = event.values[f"{name}.latitude"], event.values[f"{name}.longitude"]
    return None if latitude is None or longitude is None else (latitude, longitude)


def position(event: Happened, name: str) -> tuple[float, float] | None:
    here = degrees(event, name)
    return None if here is None else (math.radians(here[0]), math.radians(here[1]))
