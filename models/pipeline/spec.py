"""The pipeline file as types: what a user may write, with what each choice trades off.

Reading is in `load.py`, cross-checking in `checks.py`; nothing here touches a file. All durations are kept as the
user wrote them; `*_ms` properties give milliseconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.clock import duration_ms
from models.pipeline.learning import Learning
from models.pipeline.parts import Duration, Part

__all__ = [
    "SURPRISE",
    "BooleanField",
    "CategoryField",
    "Detector",
    "EntityField",
    "Episodes",
    "Field",
    "GeoField",
    "IdField",
    "Labels",
    "NumberField",
    "Pipeline",
    "Policy",
    "Profile",
    "State",
    "Stream",
    "Surprise",
    "TimeField",
    "Window",
    "without_labels",
]  # fmt: skip

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]
PipelineName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]*$", max_length=40)]


SURPRISE = "surprise"  # the architecture without a trunk; `surprise-gru` and so on have one


def without_labels(architecture: str) -> bool:
    """Whether a detector learns from events alone."""
    return architecture.split("-", maxsplit=1)[0] == SURPRISE


class _Field(Part, frozen=True, tag_field="type"):
    source: str | None = None  # the event's JSON key or CSV column; the field's own name when left out
    required: bool = True  # False: may be missing or null; a `missing` feature says so


class IdField(_Field, frozen=True, tag="id"):
    """Text or integer that names one event."""


class TimeField(_Field, frozen=True, tag="time"):
    """When the event happened. `unit` is the text form or the integer's unit."""

    unit: Literal["ms", "s", "iso8601"] = "iso8601"


class EntityField(_Field, frozen=True, tag="entity"):
    """Text or integer that names a card, merchant, device, machine, …"""


class NumberField(_Field, frozen=True, tag="number"):
    """A finite number. `transform` is applied before the detector sees it."""

    unit: str = ""  # for people: reports, alerts, the console
    min: float | None = None
    max: float | None = None
    transform: Literal["linear", "log1p", "asinh"] = "linear"  # log1p needs min >= 0


class CategoryField(_Field, frozen=True, tag="category"):
    """Text, integer or boolean from a set nobody has to list.

    Values are hashed into `buckets` embedding rows: more rows, fewer collisions, a larger model.
    """

    buckets: Annotated[int, Meta(ge=4, le=65536)] = 64


class BooleanField(_Field, frozen=True, tag="boolean"):
    """true or false."""


class GeoField(_Field, frozen=True, tag="geo"):
    """A position in degrees, read from two JSON keys."""

    latitude: str = "latitude"
    longitude: str = "longitude"


Field = IdField | TimeField | EntityField | NumberField | CategoryField | BooleanField | GeoField


class Stream(Part, frozen=True):
    """`[pipeline]`: what an event is and how it reaches the worker."""

    name: PipelineName
    entity: str
    event_id: str
    time: str
    keyed_by_entity: bool = True  # False: records come under any key and are re-keyed by an ingest agent
    max_future: Duration = "5m"  # an event further ahead of the broker's clock is a bad event

    @property
    def max_future_ms(self) -> int:
        return duration_ms(self.max_future)


class Window(Part, frozen=True):
    """`[window]`: how much of an entity's past the detector sees."""

    length: Annotated[int, Meta(ge=2, le=512)] = 32  # events; state size and scoring cost grow with it
    horizons: Annotated[list[Duration], Meta(min_length=1, max_length=8)] = msgspec.field(
        default_factory=lambda: ["1h", "1d", "7d", "30d"]
    )

    @property
    def horizons_ms(self) -> list[int]:
        return [duration_ms(h) for h in self.horizons]


class Profile(Part, frozen=True):
    """`[profiles.<name>]`: what is remembered of a merchant, device, … across all entities."""

    key: str
    amount: str | None = None  # a number field summed beside the count
    half_lives: Annotated[list[Duration], Meta(min_length=1, max_length=4)] = msgspec.field(
        default_factory=lambda: ["1d", "7d", "30d"]
    )
    # An event sees what reached the profile at least this long before it. It hides differences in progress
    # between partitions and labels, so replay and live agree: shorter is fresher, longer tolerates more skew.
    delay: Duration = "1h"
    # So many verdicts, the newest that have arrived, are read one by one by the detector, beside the counts: when each
    # came, whether it was fraud, and how the amount compared. Each costs memory in Redis and time in scoring.
    verdicts: Annotated[int, Meta(ge=0, le=64)] = 0
    compare: Name | None = None  # the profile whose usual amount they are compared with; this one when left out

    @property
    def half_lives_ms(self) -> list[int]:
        return [duration_ms(h) for h in self.half_lives]

    @property
    def delay_ms(self) -> int:
        return duration_ms(self.delay)


class Surprise(Part, frozen=True):
    """`[surprise]`: number fields judged by the entity's own past, without labels (`models.surprise`)."""

    # So many events of each entity are taken for normal operation and learnt from, at least 256; then it is judged. 0
    # for no surprise at all. State grows with the square of the number of fields.
    learn: Annotated[int, Meta(ge=0, le=1_000_000)] = 0


class Labels(Part, frozen=True):
    """`[labels]`: how verdicts arrive on `<pipeline>.labels`."""

    verdict: str = "is_fraud"  # JSON key: true, false, 1 or 0
    time: str = "label_time"  # JSON key: when the label arrived, in the unit of the time field
    source: str = "label_source"  # JSON key: who judges, such as an analyst or a chargeback; may be left out
    maturity: Duration = "7d"  # an event this old without a fraud label counts as legitimate in training

    @property
    def maturity_ms(self) -> int:
        return duration_ms(self.maturity)


class Detector(Part, frozen=True):
    """`[detector]`: the model that reads the window."""

    # Those of surprise learn without labels: by each entity's own past; with a trunk also by what the fleet taught it.
    architecture: Literal[
        "gru", "transformer", "cnn", "surprise", "surprise-gru", "surprise-transformer", "surprise-cnn"
    ] = "gru"
    hidden: Annotated[int, Meta(ge=4, le=1024)] = 64
    embedding: Annotated[int, Meta(ge=1, le=64)] = 8  # numbers a category is turned into


class Policy(Part, frozen=True):
    """`[policy]`: when a score becomes an alert."""

    alerts_per_day: Annotated[float, Meta(gt=0)] = 100.0  # the threshold is set to this budget at training
    reasons: Annotated[int, Meta(ge=1, le=20)] = 3  # reason codes in an alert


class Episodes(Part, frozen=True):
    """`[episodes]`: runs of strange events of an entity as one alert that opens, updates and closes."""

    # So many events in a row below `release` times the threshold end an episode. 0: every event that reaches the
    # threshold is an alert of its own.
    calm: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    release: Annotated[float, Meta(gt=0, le=1)] = 0.8
    update: Duration = "1h"  # an episode that lasts says so once in a while; sooner when the score rises by much
    cooldown: Duration = "30m"  # after an end nothing opens
    per_day: Annotated[float, Meta(gt=0, le=10_000)] = 24.0  # openings of one entity

    @property
    def update_ms(self) -> int:
        return duration_ms(self.update)

    @property
    def cooldown_ms(self) -> int:
        return duration_ms(self.cooldown)


class State(Part, frozen=True):
    """`[state]`: how long Redis keeps an entity nobody hears of."""

    ttl: Duration = "90d"

    @property
    def ttl_ms(self) -> int:
        return duration_ms(self.ttl)


class Pipeline(Part, frozen=True):
    """A whole pipeline file. `fields` keeps the file's order, which fixes every layout derived from it."""

    pipeline: Stream
    fields: dict[Name, Field]
    window: Window = Window()
    profiles: dict[Name, Profile] = msgspec.field(default_factory=dict)
    surprise: Surprise = Surprise()
    labels: Labels = Labels()
    detector: Detector = Detector()
    policy: Policy = Policy()
    episodes: Episodes = Episodes()
    learning: Learning = Learning()
    state: State = State()

    @property
    def name(self) -> str:
        return self.pipeline.name

    @property
    def entity(self) -> str:
        return self.pipeline.entity

    def of_type(self, kind: type[_Field]) -> list[str]:
        """Names of the fields of one type, in file order."""
        return [name for name, field in self.fields.items() if isinstance(field, kind)]

    def json_key(self, name: str) -> str:
        """The key under which an event carries a field (not for geo, which has two)."""
        return self.fields[name].source or name

    @property
    def profile_keys(self) -> list[str]:
        """The entity fields that name shared profiles."""
        return sorted({profile.key for profile in self.profiles.values()})

    @property
    def label_amounts(self) -> list[str]:
        """The number fields by which verdicts are compared: a label may say them."""
        return sorted({p.amount for p in self.profiles.values() if p.verdicts and p.amount is not None})

    def topic(self, kind: str) -> str:
        """`<pipeline>.<kind>`: events, labels, alerts, scores, dead-letter, models, ingest."""
        return f"{self.name}.{kind}"
