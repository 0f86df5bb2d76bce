"""Names and positions of everything derived from a pipeline: value columns, state bytes, model inputs.

An entity's state is one fixed-size record (`state_dtype`), little-endian and packed, so that a batch of
states is one numpy view over the bytes Redis returned. Its first two members say which version of this
file and which pipeline wrote it.
"""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.episodes import EPISODE
from models.features.encoded import RUN_FEATURES, SURPRISE, InputSpec
from models.features.facts import Facts
from models.features.habit import HABIT, NOVELTY, PLACE, habit_columns
from models.features.numerics import ASINH, LINEAR, LOG1P
from models.pipeline.spec import (
    BooleanField,
    CategoryField,
    EntityField,
    GeoField,
    NumberField,
    Pipeline,
    Profile,
)  # fmt: skip
from models.surprise.memory import places_of

__all__ = [
    "BUCKETS_PER_HALF_LIFE", "PER_STRETCH", "RING_SLOTS", "SLOT", "STATE_VERSION", "VISIBLE_SLOTS", "Layout",
    "as_bytes", "verdict_rings",
]  # fmt: skip

STATE_VERSION = 2

# A shared profile counts in whole buckets of time, a sixth of a half-life each. A reader sees VISIBLE_SLOTS
# of them (5.3 half-lives, which leaves out 2.5 % of the weight); the rest of the ring lets one partition run
# ahead of another by 8 buckets before what the slower one still needs is overwritten.
BUCKETS_PER_HALF_LIFE = 6
VISIBLE_SLOTS = 32
RING_SLOTS = 40
# Verdicts are kept in rings of their own behind these, in places of the same size; see `models.features.verdicts`.
# Of one stretch of time so many are kept. There is room for three stretches that are not read yet, and for what of a
# fourth may stay empty.
PER_STRETCH = 4
SPARE_VERDICTS = 3 * PER_STRETCH + PER_STRETCH - 1

TRANSFORMS = {"linear": LINEAR, "log1p": LOG1P, "asinh": ASINH}

SLOT = np.dtype([("bucket", "<i4"), ("count", "<u4"), ("labels", "<u4"), ("frauds", "<u4"), ("amount", "<i8")])


class Layout:
    """Derived from a pipeline once; columns keep the order of the pipeline file.

    values: numbers, booleans, then the two degrees of each position. hashes: categories, then entities
    other than the key. number_names: the fields that are aggregated, the first of `values`.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.number_names = tuple(pipeline.of_type(NumberField))
        self.boolean_names = tuple(pipeline.of_type(BooleanField))
        self.geo_names = tuple(pipeline.of_type(GeoField))
        self.category_names = tuple(pipeline.of_type(CategoryField))
        self.other_entities = tuple(n for n in pipeline.of_type(EntityField) if n != pipeline.entity)
        degrees = tuple(f"{name}.{part}" for name in self.geo_names for part in ("latitude", "longitude"))
        self.values = self.number_names + self.boolean_names + degrees
        self.hashes = self.category_names + self.other_entities
        self.optional_values = tuple(n for n in self.values if not pipeline.fields[n.split(".")[0]].required)
        self.length = pipeline.window.length
        # what surprise remembers of an entity, and where; None without it
        self.surprise = places_of(len(self.number_names)) if pipeline.surprise.learn else None
        self.state_dtype = self._state_dtype()
        self.layout_id = self._layout_id()
        judged = {name: p.verdicts for name, p in pipeline.profiles.items() if p.verdicts}
        self.inputs = InputSpec(
            self._x_names(), self._codes(), self._context_names(), self.length,
            tuple(judged), max(judged.values(), default=0),
        )  # fmt: skip
        self.facts = self._facts()

    def empty_states(self, count: int) -> NDArray[np.void]:
        """States of entities never heard of: structured (N,)."""
        states = np.zeros(count, self.state_dtype)
        states["version"], states["layout"] = STATE_VERSION, self.layout_id
        return states

    def transform(self, name: str) -> int:
        """The transform of a number or boolean field, as `models.features.numerics` numbers them."""
        return TRANSFORMS[getattr(self.pipeline.fields[name], "transform", "linear")]

    def profile_id(self, profile: Profile) -> int:
        """32 bits that change when stored rings of this profile could no longer be read."""
        facts: list[object] = [RING_SLOTS, BUCKETS_PER_HALF_LIFE, profile.half_lives_ms, profile.key, profile.amount]
        if profile.verdicts:
            how = None if profile.amount is None else self.transform(profile.amount)
            # the delay has decided which verdicts were kept: by another one they may be more than there is room for
            facts += [verdict_rings(profile), profile.compare, how, profile.delay_ms]
        return zlib.crc32(msgspec.json.encode(facts))

    def empty_profiles(self, profile: Profile, count: int) -> NDArray[np.void]:
        """Profiles never heard of: structured (P, R, RING_SLOTS), all 0: no slot holds anything.

        R: a ring for each half-life, then those of the verdicts, if there are any.
        """
        return np.zeros((count, len(profile.half_lives) + verdict_rings(profile), RING_SLOTS), SLOT)

    def compared(self, name: str) -> str | None:
        """The profile whose usual amount the verdicts of this one are compared with; None without any."""
        profile = self.pipeline.profiles[name]
        return (profile.compare or name) if profile.verdicts and profile.amount is not None else None

    def _state_dtype(self) -> np.dtype:
        row = np.dtype([
            ("time", "<i8"), ("id", "<u8"),
            ("values", "<f4", (len(self.values),)), ("hashes", "<u4", (len(self.hashes),)),
        ])  # fmt: skip
        horizons, numbers = len(self.pipeline.window.horizons), len(self.number_names)
        return np.dtype([
            ("version", "<u2"), ("layout", "<u4"),
            ("count", "<i8"),  # events ever applied
            ("clock", "<i8"),  # the greatest event time applied, epoch ms
            # decayed to `clock`, one time constant a horizon: Σ e^(−age/horizon) of 1 (events), then for each
            # number that is present of 1, x and x²
            ("decayed", "<f8", (horizons, 1 + 3 * numbers)),
            # what `models.features.habit` keeps: of each other entity field, two Bloom filters of its values, the
            # younger first; of each number and, last, the gap; of each other entity field; of each position
            ("remembered", "<u8", (len(self.other_entities), 2)),
            ("habits", HABIT, (numbers + 1,)),
            ("novelties", NOVELTY, (len(self.other_entities),)),
            ("places", PLACE, (len(self.geo_names),)),
            ("surprise", "<f4", (self.surprise.words if self.surprise else 0,)),
            ("episode", EPISODE, (1 if self.pipeline.episodes.calm else 0,)),
            ("rows", row, (self.length,)),  # oldest first; rows at the end are the newest
        ])  # fmt: skip

    def _layout_id(self) -> int:
        transforms = [self.transform(name) for name in self.number_names]  # a usual value is a transformed one
        facts: list[object] = [self.values, self.hashes, self.length, self.pipeline.window.horizons_ms, transforms]
        if self.surprise is not None:
            facts.append(self.surprise)
        if self.pipeline.episodes.calm:
            facts.append(EPISODE.itemsize)
        return zlib.crc32(msgspec.json.encode(facts))

    def _facts(self) -> Facts:
        plain, fields = self.number_names + self.boolean_names, self.pipeline.fields
        numbers, hashes, horizons = len(self.number_names), len(self.hashes), self.pipeline.window.horizons_ms
        habits = habit_columns(numbers, len(self.other_entities), len(self.geo_names))
        return Facts(
            length=self.length,
            numbers=numbers,
            values=len(self.values),
            hashes=hashes,
            columns=len(self.inputs.x),
            context=1 + numbers + hashes + len(horizons) * (1 + 4 * numbers + hashes) + habits,
            beside=sum(self.state_dtype[name].itemsize for name in ("surprise", "episode")) // 4,
            horizon_H=np.array(horizons, dtype=np.float64),
            how_P=np.array([self.transform(name) for name in plain], dtype=np.int64),
            optional_P=np.array([p for p, name in enumerate(plain) if name in self.optional_values], dtype=np.int64),
            optional_G=np.array([not fields[name].required for name in self.geo_names], dtype=np.int64),
            buckets_K=np.array([buckets for _, buckets in self.inputs.codes], dtype=np.int64),
            log_count=np.log1p(np.arange(self.length + 1.0)),
        )

    def _x_names(self) -> tuple[str, ...]:
        names = [*self.number_names, *self.boolean_names]
        names += [f"{n}.missing" for n in names if n in self.optional_values]
        for geo in self.geo_names:
            names += [f"{geo}.distance", f"{geo}.speed"]
            names += [f"{geo}.missing"] if not self.pipeline.fields[geo].required else []
        names += [f"{n}.repeated" for n in self.other_entities]
        names += ["gap", "hour_sin", "hour_cos", "week_sin", "week_cos"]
        return (*names, *(f"{name}.surprise" for name in (*self.number_names, "gap")))

    def _codes(self) -> tuple[tuple[str, int], ...]:
        fields = self.pipeline.fields
        return tuple((n, f.buckets) for n in self.category_names if isinstance(f := fields[n], CategoryField))

    def _context_names(self) -> tuple[str, ...]:
        names = ["history"]
        for number in self.number_names:
            names += [f"{number}.over_median"]
        names += [f"{n}.seen" for n in self.hashes]
        for horizon in self.pipeline.window.horizons:
            names.append(f"count.{horizon}")
            for number in self.number_names:
                names += [f"{number}.{stat}.{horizon}" for stat in ("sum", "mean", "deviation", "zscore")]
            names += [f"{n}.distinct.{horizon}" for n in self.hashes]
        for name in (*self.number_names, "gap"):
            names += [f"{name}.{stat}" for stat in ("usual", "spread", "score")]
        for name in self.other_entities:
            names += [f"{name}.{stat}" for stat in ("novel", "novelty")]
        for geo in self.geo_names:
            names += [f"{geo}.{stat}" for stat in ("away", "away_score")]
        if self.surprise is not None:
            names += SURPRISE
            names += [f"{name}.{stat}" for stat in ("carried", "expected") for name in self.number_names]
        for name, profile in self.pipeline.profiles.items():
            for half_life in profile.half_lives:
                stats = ["count", "fraud_rate", "frauds", "labels"]
                stats += ["amount", "amount_ratio"] if profile.amount else []
                names += [f"{name}.{stat}.{half_life}" for stat in stats]
        for name, profile in self.pipeline.profiles.items():
            names += [f"{name}.{stat}" for stat in RUN_FEATURES] if profile.verdicts else []
        return tuple(names)


def verdict_rings(profile: Profile) -> int:
    """Rings that hold the verdicts a profile keeps, those it shows and the spare; 0 without verdicts."""
    return -(-(profile.verdicts + SPARE_VERDICTS) // RING_SLOTS) if profile.verdicts else 0


def as_bytes(states_N: NDArray[np.void]) -> NDArray[np.uint8]:
    """States as rows of bytes, (N, size), of the same memory: numpy copies these at once, and members one by one."""
    return states_N.view(np.uint8).reshape(len(states_N), states_N.dtype.itemsize)
