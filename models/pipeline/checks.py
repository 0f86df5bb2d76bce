"""What the types of a pipeline cannot say: references between tables, and rules that take two values."""

from __future__ import annotations

from typing import NoReturn

from models.errors import PipelineError
from models.pipeline.spec import (
    EntityField,
    GeoField,
    IdField,
    NumberField,
    Pipeline,
    Profile,
    TimeField,
    without_labels,
)

__all__ = ["check"]


def check(source: str, pipeline: Pipeline) -> None:
    """Raise PipelineError for the first rule that a pipeline breaks; `source` names its file."""
    _Checks(source, pipeline).run()


class _Checks:
    def __init__(self, source: str, pipeline: Pipeline) -> None:
        self.source, self.p = source, pipeline

    def run(self) -> None:
        self._roles()
        self._json_keys_are_unique()
        for name, field in self.p.fields.items():
            if isinstance(field, NumberField):
                self._number(f"fields.{name}", field)
        for name, profile in self.p.profiles.items():
            self._profile(f"profiles.{name}", profile)
        if self.p.surprise.learn and not self.p.of_type(NumberField):
            self._fail("surprise.learn", self.p.surprise.learn, "0, since there is no number field to be judged")
        if without_labels(self.p.detector.architecture) and not self.p.surprise.learn:
            wanted = "surprise.learn above 0 beside it: events to learn from"
            self._fail("detector.architecture", self.p.detector.architecture, wanted)
        if self.p.surprise.learn and "surprise" in self.p.fields:
            self._fail("fields", "surprise", "another name: columns of context are called so")
        self._label_keys_are_unique()
        self._durations()

    def _roles(self) -> None:
        """`[pipeline]` names one id, one time and one entity; the first two types have no other use."""
        stream = self.p.pipeline
        for key, name, kind in (
            ("entity", stream.entity, EntityField),
            ("event_id", stream.event_id, IdField),
            ("time", stream.time, TimeField),
        ):
            self._reference(f"pipeline.{key}", name, kind)
            if not self.p.fields[name].required:
                self._fail(f"fields.{name}.required", False, f"true, since pipeline.{key} names this field")
            extra = [other for other in self.p.of_type(kind) if other != name]
            if extra and kind is not EntityField:
                only = f"another type; pipeline.{key} names the one field of this type, {name}"
                self._fail(f"fields.{extra[0]}.type", _type_name(kind), only)

    def _json_keys_are_unique(self) -> None:
        seen: dict[str, str] = {}
        for name, field in self.p.fields.items():
            if isinstance(field, GeoField):
                if field.source is not None:
                    self._fail(f"fields.{name}.source", field.source, "latitude and longitude instead, two keys")
                keys = {"latitude": field.latitude, "longitude": field.longitude}
            else:
                keys = {"source": self.p.json_key(name)}
            for part, key in keys.items():
                if key in seen:
                    taken = f"a JSON key of its own; fields.{seen[key]} reads this one"
                    self._fail(f"fields.{name}.{part}", key, taken)
                seen[key] = name

    def _number(self, key: str, field: NumberField) -> None:
        if field.min is not None and field.max is not None and field.min >= field.max:
            self._fail(f"{key}.max", field.max, f"a number above min = {field.min}")
        if field.transform == "log1p" and (field.min is None or field.min < 0):
            self._fail(f"{key}.transform", "log1p", f"min of 0 or more (it is {field.min}); asinh takes any sign")

    def _profile(self, key: str, profile: Profile) -> None:
        self._reference(f"{key}.key", profile.key, EntityField)
        if profile.amount is not None:
            self._reference(f"{key}.amount", profile.amount, NumberField)
        self._increasing(f"{key}.half_lives", profile.half_lives, profile.half_lives_ms)
        if min(profile.half_lives_ms) < 12_000:  # shorter ones have more buckets since 1970 than 31 bits can number
            self._fail(f"{key}.half_lives", profile.half_lives, "durations of 12s or more")
        if 2 * profile.delay_ms > min(profile.half_lives_ms):
            # the rings have room for a reader this far behind, and for partitions that run ahead of it
            longest = f"at most half of the shortest half-life, {profile.half_lives[0]}"
            self._fail(f"{key}.delay", profile.delay, longest)
        if profile.compare is not None:
            self._compare(f"{key}.compare", profile, profile.compare)

    def _compare(self, key: str, profile: Profile, name: str) -> None:
        """A verdict's amount is compared with the mean of the same field."""
        if not profile.verdicts:
            self._fail(key, name, "verdicts above 0 beside it: only verdicts are compared")
        if profile.amount is None:
            self._fail(key, name, "an amount beside it: that is what is compared")
        if name not in self.p.profiles:
            self._fail(key, name, f"the name of a profile ({', '.join(self.p.profiles)})")
        if (other := self.p.profiles[name].amount) != profile.amount:
            has = "none" if other is None else other
            self._fail(key, name, f"a profile with amount = {profile.amount} (profiles.{name} has {has})")

    def _label_keys_are_unique(self) -> None:
        """A label is one JSON object: the event's id, the verdict, the time, the profiles' keys and amounts."""
        fields = [self.p.pipeline.event_id, *self.p.profile_keys, *self.p.label_amounts]
        seen = {self.p.json_key(name): f"fields.{name}" for name in fields}
        for part in ("verdict", "time", "source"):
            key = getattr(self.p.labels, part)
            if key in seen:
                self._fail(f"labels.{part}", key, f"a JSON key of its own; {seen[key]} reads this one")
            seen[key] = f"labels.{part}"

    def _durations(self) -> None:
        self._increasing("window.horizons", self.p.window.horizons, self.p.window.horizons_ms)
        if self.p.pipeline.max_future_ms <= 0:
            self._fail("pipeline.max_future", self.p.pipeline.max_future, "a duration above zero")
        if self.p.state.ttl_ms < max(self.p.window.horizons_ms):
            self._fail("state.ttl", self.p.state.ttl, f"at least the longest horizon, {self.p.window.horizons[-1]}")

    def _reference(self, key: str, name: str, kind: type) -> None:
        if not isinstance(self.p.fields.get(name), kind):
            known = ", ".join(self.p.of_type(kind)) or "none is declared"
            self._fail(key, name, f"the name of a field of type {_type_name(kind)} ({known})")

    def _increasing(self, key: str, texts: list[str], values: list[int]) -> None:
        if any(b <= a for a, b in zip([0, *values], values, strict=False)):
            self._fail(key, texts, "durations above zero in increasing order")

    def _fail(self, key: str, value: object, expected: str) -> NoReturn:
        raise PipelineError(self.source, key, value, expected)


def _type_name(kind: type) -> str:
    return kind.__name__.removesuffix("Field").lower()
