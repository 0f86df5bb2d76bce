"""Draft a pipeline file from a sample of events that nobody prepared.

Each column is guessed from its values and, where values leave a choice, from its name; every guess is
written beside its reason, for its owner to correct. Three roles must be found: an event's id, its time and
its entity. Nothing is guessed that would make the draft fail to load.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median

from models.clock import DAY_MS, HOUR_MS
from models.errors import PipelineError
from models.pipeline.sample import Column, Sample, read_sample

__all__ = ["Guess", "Guesses", "field_name", "guess", "infer"]

TIME_WORDS = {"time", "timestamp", "ts", "datetime", "date", "epoch", "unix", "created", "occurred", "at", "when"}
OTHER_TIME_WORDS = {"birth", "dob", "expiry", "expires", "expiration", "updated", "modified", "loaded", "settled"}
ID_WORDS = {"id", "uuid", "guid", "key", "ref", "reference", "number", "num", "no", "hash", "code"}
EVENT_WORDS = {"transaction", "trans", "txn", "tx", "event", "payment", "order", "record", "message", "reading"}
ACTOR_WORDS = ["card", "cc", "pan", "account", "acct", "iban", "customer", "cust", "client", "user", "member", "holder",
               "machine", "sensor", "asset", "unit", "device"]  # fmt: skip
PARTNER_WORDS = {"merchant", "terminal", "shop", "store", "seller", "vendor", "payee", "beneficiary", "recipient",
                 "device", "ip", "phone", "email", "browser", "pos", "acquirer", "counterparty", "dest"}  # fmt: skip
AMOUNT_WORDS = ["amount", "amt", "price", "total", "sum", "value", "cost", "usd", "eur"]
CATEGORY_WORDS = {"code", "type", "mcc", "category", "class", "status", "channel", "kind", "group", "zip", "zipcode",
                  "postcode", "flag", "level", "mode", "day", "month", "hour"}  # fmt: skip
LABEL_WORDS = {"fraud", "label", "class", "target", "chargeback", "isfraud", "fraudulent", "anomaly", "verdict"}
LATITUDE_WORDS, LONGITUDE_WORDS = ("latitude", "lat"), ("longitude", "long", "lon", "lng")
YES_NO = {"yes", "no", "y", "n", "t", "f"}

FIRST_MS, LAST_MS = 946_684_800_000, 4_102_444_800_000  # 2000 to 2100: an epoch outside is hardly one
NEARLY_UNIQUE = 0.99  # an export may hold an event twice
MIN_VERDICTS = 10  # of each kind; with fewer, a column may agree with the verdict by chance
MAX_CATEGORIES = 2000
MAX_PROFILES = 3
HORIZONS = {"1m": 60_000, "10m": 600_000, "1h": HOUR_MS, "1d": DAY_MS, "7d": 7 * DAY_MS, "30d": 30 * DAY_MS}


@dataclass(frozen=True, slots=True)
class Guess:
    """A field: its name, its TOML type and options, the column it reads, and why."""

    name: str
    type: str
    options: dict[str, object]
    source: str | None  # None for a position, whose columns are options
    why: str
    required: bool = True


@dataclass(slots=True)
class Guesses:
    """A whole draft."""

    roles: dict[str, Guess] = field(default_factory=dict)
    fields: list[Guess] = field(default_factory=list)
    profiles: dict[str, Guess] = field(default_factory=dict)
    amount: Guess | None = None
    verdict: Column | None = None
    horizons: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def infer(path: Path) -> Guesses:
    """What the columns of a file seem to be. Raises PipelineError when a role cannot be filled."""
    return guess(read_sample(path))


def guess(sample: Sample) -> Guesses:
    """As `infer`, for a sample that has been read."""
    return _Guesser(sample).run()


def field_name(text: str, taken: set[str]) -> str:
    """A field name that TOML and the pipeline take, and that is not taken.

    >>> field_name("TransactionID (new)", set()), field_name("2nd-party", {"n2nd_party"})
    ('transaction_id_new', 'n2nd_party_2')
    """
    name = "_".join(_words(text))[:36] or "field"
    name = name if name[0].isalpha() else f"n{name}"
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))  # é: e
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", plain)
    return re.findall(r"[a-z0-9]+", spaced.lower())


def _has(column: Column, words: set[str]) -> bool:
    return not words.isdisjoint(_words(column.name))


def _is_binary(column: Column) -> bool:
    return column.kind == "boolean" or (column.kind == "integer" and set(column.present) <= {0, 1})


class _Guesser:
    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.left = {column.name: column for column in sample.columns}
        self.out = Guesses(skipped=list(sample.ignored))
        self.taken: set[str] = set()

    def run(self) -> Guesses:
        for column in list(self.left.values()):
            if column.kind == "empty":
                self._skip(column, "no row has a value")
            elif column.distinct == 1 and not column.missing and self.sample.rows > 1:
                self._skip(column, "the same value in every row")
        self._label()
        times = self._time()
        for column in list(self.left.values()):
            if column.kind == "unusable":
                self._skip(column, column.why)
        self._event_id()
        self._counters(times)
        self._positions()
        self._entity(times)
        self._leaks()
        for column in list(self.left.values()):
            self._other(column)
        self._profiles()
        order = {id(role): i for i, role in enumerate(self.out.roles.values())}
        self.out.fields.sort(key=lambda g: order.get(id(g), len(order)))
        return self.out

    def _label(self) -> None:
        """The verdict is no feature; whatever else speaks of fraud would give the answer away."""
        named = [c for c in self.left.values() if _has(c, LABEL_WORDS)]
        binary = [c for c in named if _is_binary(c) or (c.kind == "text" and set(map(str.lower, c.present)) <= YES_NO)]
        binary.sort(key=lambda c: not _has(c, {"fraud", "isfraud"}))
        if binary:
            self.out.verdict = self.left.pop(binary[0].name)
        for column in named:
            if column.name in self.left and _has(column, {"fraud", "isfraud", "fraudulent", "chargeback", "verdict"}):
                self._skip(column, "by its name it tells the verdict, which is not known when an event is scored")

    def _time(self) -> list[int | None]:
        found: list[tuple[float, Column, str, list[int | None]]] = []
        for column in self.left.values():
            for unit, times in _readings(column):
                present = [t for t in times if t is not None]
                if not all((0 if unit == "iso8601" else FIRST_MS) < t < LAST_MS for t in present):
                    continue
                score = 4.0 if unit == "iso8601" else 0.0
                score += 3 * _has(column, TIME_WORDS) + _has(column, EVENT_WORDS) - 4 * _has(column, OTHER_TIME_WORDS)
                found.append((score - 5 * column.missing / self.sample.rows, column, unit, times))
        if not found:
            self._no_role("time", "a column of ISO-8601 date-times, or of epoch seconds or milliseconds since 2000")
        score, column, unit, times = max(found, key=lambda f: f[0])
        doubt = "" if score >= 2 else "; nothing else looks like a time, so check this one"
        words = {"iso8601": "ISO-8601 date-times", "s": "epoch seconds", "ms": "epoch milliseconds"}[unit]
        self._role("time", column, "time", {"unit": unit}, f"all values are {words}{doubt}")
        for other in [c for c in self.left.values() if c.kind == "iso8601"]:
            self._skip(other, "a second time; a pipeline has one")
        return times

    def _event_id(self) -> None:
        def score(column: Column) -> float:
            position = list(self.left).index(column.name)
            named = 4 * _has(column, EVENT_WORDS) + 2 * _has(column, ID_WORDS) - 3 * _has(column, PARTNER_WORDS)
            return named + (column.distinct == self.sample.rows) - position / 1000

        unique = [c for c in self.left.values() if c.kind in ("integer", "text")
                  and c.distinct >= NEARLY_UNIQUE * self.sample.rows]  # fmt: skip
        if not unique:
            self._no_role("event_id", "a column of whole numbers or texts that differ from event to event")
        best = max(unique, key=score)
        repeats = self.sample.rows - best.missing - best.distinct
        why = f"{best.distinct} different values in {self.sample.rows} rows"
        self._role("event_id", best, "id", {}, why + ("; repeated ids count as duplicates" if repeats else ""))

    def _counters(self, times: list[int | None]) -> None:
        """Row numbers and days since a start only ever rise: a model would learn the date by heart."""
        order = sorted((i for i, t in enumerate(times) if t is not None), key=lambda i: times[i] or 0)
        for column in list(self.left.values()):
            if column.kind not in ("integer", "number") or column.distinct <= 10 or len(order) < 50:
                continue
            values = [v for i in order if (v := column.values[i]) is not None]
            if all(a <= b for a, b in pairwise(values)):
                self._skip(column, "it only rises with time, as a row number or a clock does")

    def _positions(self) -> None:
        for column in list(self.left.values()):
            words = _words(column.name)
            for latitude in set(words) & set(LATITUDE_WORDS):
                partner = self._longitude([w for w in words if w != latitude])
                if partner is None or not (_within(column, 90) and _within(partner, 180)):
                    continue
                name = "_".join([*(w for w in words if w != latitude), "location"])
                options: dict[str, object] = {"latitude": column.name, "longitude": partner.name}
                why = "degrees by name and range"
                optional = bool(column.missing or partner.missing)
                self._add(name, "geo", options, None, why=why, required=not optional)
                del self.left[column.name], self.left[partner.name]

    def _longitude(self, rest: list[str]) -> Column | None:
        for column in self.left.values():
            words = _words(column.name)
            for longitude in set(words) & set(LONGITUDE_WORDS):
                if [w for w in words if w != longitude] == rest:
                    return column
        return None

    def _entity(self, times: list[int | None]) -> None:
        def score(column: Column) -> float:
            words = _words(column.name)
            actor = next((len(ACTOR_WORDS) - i for i, w in enumerate(ACTOR_WORDS) if w in words), 0)
            per_entity = (self.sample.rows - column.missing) / max(1, column.distinct)
            shape = 1.0 if per_entity >= 1.5 and column.distinct >= 5 else 0.0
            attribute = _has(column, CATEGORY_WORDS) or _has(column, set(AMOUNT_WORDS))
            return (
                actor - 8 * _has(column, PARTNER_WORDS) - 12 * attribute + 2 * _has(column, ID_WORDS) + 4 * shape
                - 20 * column.missing / self.sample.rows + min(3, column.distinct / 1000)
            )  # fmt: skip

        choices = [c for c in self.left.values() if c.kind in ("integer", "text") and c.distinct > 1]
        if not choices:
            self._no_role("entity", "a column that names the card, account or machine of each event")
        best = max(choices, key=score)
        named = any(w in _words(best.name) for w in ACTOR_WORDS)
        why = f"{best.distinct} different values in {self.sample.rows} rows"
        why += ", and by its name it is who acts" if named else "; a guess by its values alone"
        if best.missing:
            why += f"; {best.missing} rows have none and would be refused"
        self._role("entity", best, "entity", {}, why)
        self.out.horizons = _horizons(best, times)

    def _leaks(self) -> None:
        """A column that agrees with the verdict in every row was filled in after it."""
        if self.out.verdict is None or min(Counter(self.out.verdict.present).values()) < MIN_VERDICTS:
            return
        for column in list(self.left.values()):
            if column.kind == "number" or column.distinct > self.sample.rows // 20:
                continue
            pairs = set(zip(column.values, self.out.verdict.values, strict=True))
            if len(pairs) == len({value for value, _ in pairs}) > 1:
                self._skip(column, f"each of its values goes with one value of {self.out.verdict.name} only")

    def _other(self, column: Column) -> None:
        distinct, words = column.distinct, set(_words(column.name))
        optional = column.missing > 0
        identifier = column.kind in ("integer", "text") and distinct > 2
        if _is_binary(column):
            self._take(column, "boolean", {}, "two values, 0/1 or true/false", optional)
        elif identifier and words & PARTNER_WORDS and not words & (CATEGORY_WORDS | set(AMOUNT_WORDS)):
            self._take(column, "entity", {}, f"{distinct} different values; by its name another party", optional)
        elif column.kind == "number" or (column.kind == "integer" and not self._is_category(column)):
            options, why = _number(column)
            self._take(column, "number", options, why, optional)
        elif self._is_category(column):
            buckets = min(65536, max(8, 1 << (2 * distinct - 1).bit_length()))
            why = f"{distinct} different values; room for twice as many"
            self._take(column, "category", {"buckets": buckets}, why, optional)
        elif words & ID_WORDS and distinct < NEARLY_UNIQUE * self.sample.rows:
            self._take(column, "entity", {}, f"{distinct} different values; by its name an identifier", optional)
        else:
            self._skip(column, f"{distinct} different texts in {self.sample.rows} rows: too many for a category")

    def _is_category(self, column: Column) -> bool:
        few = column.distinct <= min(MAX_CATEGORIES, max(8, self.sample.rows // 4))
        return few and (column.kind == "text" or _has(column, CATEGORY_WORDS))

    def _profiles(self) -> None:
        numbers = [g for g in self.out.fields if g.type == "number"]
        ranked = [(min(AMOUNT_WORDS.index(w) for w in named), i) for i, g in enumerate(numbers)
                  if (named := [w for w in _words(g.source or "") if w in AMOUNT_WORDS])]  # fmt: skip
        self.out.amount = numbers[min(ranked)[1]] if ranked else None
        others = [g for g in self.out.fields if g.type == "entity" and g is not self.out.roles["entity"]]
        for other in others[:MAX_PROFILES]:
            self.out.profiles[other.name.removesuffix("_id")] = other

    def _role(self, role: str, column: Column, kind: str, options: dict[str, object], why: str) -> None:
        self.out.roles[role] = self._take(column, kind, options, why, optional=False)

    def _take(self, column: Column, kind: str, options: dict[str, object], why: str, optional: bool) -> Guess:
        del self.left[column.name]
        why += f"; missing in {column.missing} rows" if optional else ""
        return self._add(column.name, kind, options, column.name, why=why, required=not optional)

    def _add(
        self, text: str, kind: str, options: dict[str, object], source: str | None, *, why: str, required: bool
    ) -> Guess:
        made = Guess(field_name(text, self.taken), kind, options, source, why, required)
        self.taken.add(made.name)
        self.out.fields.append(made)
        return made

    def _skip(self, column: Column, why: str) -> None:
        del self.left[column.name]
        self.out.skipped.append(f"{column.name}: {why}")

    def _no_role(self, role: str, expected: str) -> None:
        doubts = [f"{c.name} ({c.why})" for c in self.sample.columns if c.why]
        hint = f"; not usable: {', '.join(doubts)}" if doubts else ""
        raise PipelineError(str(self.sample.path), role, list(self.left), expected + hint)


def _readings(column: Column) -> list[tuple[str, list[int | None]]]:
    """The units in which a column could be a time, with its values in milliseconds."""
    if column.kind == "iso8601" and column.times_ms is not None:
        return [("iso8601", column.times_ms)]
    if column.kind == "integer":
        return [("s", [None if v is None else v * 1000 for v in column.values]), ("ms", column.values)]
    if column.kind == "number":
        return [("s", [None if v is None else round(v * 1000) for v in column.values])]
    return []


def _within(column: Column, limit: float) -> bool:
    return column.kind in ("integer", "number") and all(abs(v) <= limit for v in column.present)


def _number(column: Column) -> tuple[dict[str, object], str]:
    """A transform that tames long tails; limits only where the transform needs one."""
    values = column.present
    low, high = min(values), max(values)
    middle = median(abs(v) for v in values)
    long_tail = high - low > 20 * max(middle, 1e-9)
    span = f"{low:g} to {high:g}"
    if _has(column, set(AMOUNT_WORDS)) or long_tail:
        if low >= 0:
            return {"min": 0, "transform": "log1p"}, f"{span}, never negative; values below min will be refused"
        return {"transform": "asinh"}, f"{span}, of both signs"
    return {}, span


def _horizons(entity: Column, times: list[int | None]) -> list[str]:
    """Up to five horizons around a typical pause between an entity's events: two no longer than it, to catch bursts."""
    last: dict[object, int] = {}
    gaps = []
    pairs = [(t, e) for t, e in zip(times, entity.values, strict=True) if t is not None and e is not None]
    for time, who in sorted(pairs, key=lambda pair: pair[0]):
        if who in last:
            gaps.append(time - last[who])
        last[who] = time
    if not gaps:
        return ["1h", "1d", "7d", "30d"]
    pause = median(gaps)
    first = next((i for i, ms in enumerate(HORIZONS.values()) if ms > pause), len(HORIZONS) - 1)
    return list(HORIZONS)[max(0, first - 2) : first + 3]
