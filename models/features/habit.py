"""What an entity is used to: its usual amount, pace, place and partners, and how far an event is from them.

The window forgets after L events, and a mean is drawn towards whatever fills it: of a card of which a third of the
events have been fraud for weeks, the mean says that fraud is usual. A habit is a running robust location and spread
instead (Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics, 1964), by stochastic
approximation (Robbins and Monro, 1951): each value moves the location by its own deviation, cut off at REACH spreads,
times 1/(n+1) until SETTLED values have been learnt, and 1/SETTLED from then on. So a value however far off counts as
one at the cut, and what has changed for good is followed within a few hundred events.

The spread is the running mean of the absolute deviation, cut off too: a few outliers hardly raise it, while a third of
all events far away, for long, slowly do. Of an entity's first value the location is that value, right or wrong; the
next ones correct it at once, for at first the steps are great.

What is stored is rounded to float32 after each event, so that the events of a batch give the bits they give alone.

Legend: R rows of a section, F columns of an event, L events in a window, C columns of context; W words of a state: of
its habits of 4 bytes, of what it remembers of 8.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.features.facts import Facts
from models.features.numerics import arcsin, cos_turns, log1p, sin_turns
from models.features.windows import EARTH_KM, Section

__all__ = ["HABIT", "NOVELTY", "PLACE", "advance_habits", "habit_columns", "habit_words", "show_surprise"]

SETTLED = 128.0  # values: longer than an episode of fraud, shorter than a change of life
REACH = 1.5  # spreads; Huber's k is 1.5 deviations, and an absolute deviation is 0.8 of one: a little more robust
WIDEN = 2.0  # a deviation counts as 3 spreads at most: in 32 such events in a row a settled spread grows by 1.64
# In transformed units: a factor of 1.6 under log1p. For a linear number, whose unit nobody knows, it is a guess: while
# deviations are much greater the spread doubles, and then grows with the square of the number of values.
FIRST_SPREAD = 0.5
LEAST_SPREAD = 0.02  # 2 % under log1p: who always pays the same does not surprise by paying a cent more
GREATEST_SPREAD = 1e37  # thousands of absurd values must not make it infinite, and the scores then no numbers
SCORE_LIMIT = 10.0  # spreads; what is further off is no stranger

# Values of an entity field are in two Bloom filters (Bloom, "Space/time trade-offs in hash coding with allowable
# errors", 1970) of 64 bits, 2 bits a value; when the younger has taken in this many, it becomes the older one. So at
# least the last 12 values are known, at most 23; a new one is then taken for one of them in 10 to 18 % of cases.
GENERATION = 12.0
BITS = np.uint64(63)
SECOND = np.uint64(6)  # its bit's number is in the next six bits of the hash
ONE, NONE = np.uint64(1), np.uint64(0)

HALF_TURN = 180.0  # degrees

HABIT = np.dtype([("usual", "<f4"), ("spread", "<f4"), ("known", "<f4")])
NOVELTY = np.dtype([("share", "<f4"), ("known", "<f4"), ("taken", "<f4")])  # taken: values in the younger filter
# In degrees: where, and the spread about it; then the log1p km from there: usual and spread
PLACE = np.dtype([(n, "<f4") for n in ("latitude", "longitude", "reach", "usual", "spread", "known")])
HABIT_WORDS, NOVELTY_WORDS, PLACE_WORDS = (kind.itemsize // 4 for kind in (HABIT, NOVELTY, PLACE))


@inlined
def habit_words(facts: Facts) -> int:
    """Words of 4 bytes of a state's habits, behind what it remembers."""
    entities = facts.hashes - len(facts.buckets_K)
    return (facts.numbers + 1) * HABIT_WORDS + entities * NOVELTY_WORDS + len(facts.optional_G) * PLACE_WORDS


def habit_columns(numbers: int, entities: int, places: int) -> int:
    """Columns of context that `advance_habits` writes."""
    return 3 * (numbers + 1) + 2 * entities + 2 * places


@inlined
def show_surprise(facts: Facts, habit_W: NDArray[np.float32], padding: int, x_LF: NDArray[np.float32]) -> None:
    """Make of the last columns of a copied window, numbers and the gap or NaN, what they are above the usual.

    The usual as it was before the current event, for all rows; 0 where a value or the usual is unknown.
    """
    many = facts.numbers + 1
    for v in range(many):
        usual, known = habit_W[v * HABIT_WORDS], habit_W[v * HABIT_WORDS + 2] > 0.0
        for at in range((padding + 1) * facts.columns - many + v, len(x_LF), facts.columns):
            above = x_LF[np.uint64(at)] - usual
            x_LF[np.uint64(at)] = above if known and not np.isnan(above) else np.float32(0.0)


@compiled
def advance_habits(
    facts: Facts,
    section: Section,
    row: int,
    remembered_W: NDArray[np.int64],
    habit_W: NDArray[np.float32],
    out_C: NDArray[np.float32],
) -> None:
    """The last of the entity's own context columns, from its habits before the event in this row; then learn from it.

    Of each number and the gap: usual, spread, and score, how many spreads above the usual the event is. Of each entity
    field: novel, 1 if its value is not remembered, and novelty, by how much that is more than usual. Of each position:
    away, log1p of the km from the usual place, and away_score, how many spreads that is more than usual.
    """
    many, categories = facts.numbers + 1, len(facts.buckets_K)
    entities, places = facts.hashes - categories, len(facts.optional_G)
    c = facts.context - 3 * many - 2 * entities - 2 * places
    at = 0
    for v in range(many):
        _number(habit_W[at:], np.float64(section.x_FR[facts.columns - many + v, row]), out_C[c:])
        at, c = at + HABIT_WORDS, c + 3
    for e in range(entities):
        _partner(habit_W[at:], remembered_W[2 * e :], section.hashes_KR[categories + e, row], out_C[c:])
        at, c = at + NOVELTY_WORDS, c + 2
    for g in range(places):
        latitude = np.float64(section.values_VR[len(facts.how_P) + 2 * g, row])
        longitude = np.float64(section.values_VR[len(facts.how_P) + 2 * g + 1, row])
        _place(habit_W[at:], latitude, longitude, out_C[c:])
        at, c = at + PLACE_WORDS, c + 2


@inlined
def _number(habit_W: NDArray[np.float32], x: float, out_C: NDArray[np.float32]) -> None:
    known = np.float64(habit_W[2])
    out_C[0] = habit_W[0]
    out_C[1] = habit_W[1]
    out_C[2] = 0.0
    if np.isnan(x):
        return
    out_C[2] = _score(habit_W, x, known)
    _learn(habit_W, x, known)
    habit_W[2] = known + 1.0


@inlined
def _partner(
    novelty_W: NDArray[np.float32], remembered_W: NDArray[np.int64], found: np.uint32, out_C: NDArray[np.float32]
) -> None:
    out_C[0] = out_C[1] = 0.0
    if found == 0:
        return
    value = np.uint64(found)
    bits = (ONE << (value & BITS)) | (ONE << ((value >> SECOND) & BITS))
    young, old = np.uint64(remembered_W[0]), np.uint64(remembered_W[1])
    in_young = (young & bits) == bits
    novel = 0.0 if in_young or (old & bits) == bits else 1.0
    share, known = np.float64(novelty_W[0]), np.float64(novelty_W[1])
    out_C[0] = novel
    out_C[1] = novel - share if known > 0.0 else 0.0
    novelty_W[0] = share + _rate(known) * (novel - share)
    novelty_W[1] = known + 1.0
    if in_young:
        return
    young, taken = young | bits, novelty_W[2] + 1.0  # also of one that the old one has: it is to outlive that
    if taken >= GENERATION:
        young, old, taken = NONE, young, 0.0
    remembered_W[0], remembered_W[1] = np.int64(young), np.int64(old)
    novelty_W[2] = taken


@inlined
def _place(place_W: NDArray[np.float32], latitude: float, longitude: float, out_C: NDArray[np.float32]) -> None:
    """The usual place moves by a cut-off step in degrees, a cautious one near a pole, where a degree east is short."""
    out_C[0] = out_C[1] = 0.0
    if np.isnan(latitude) or np.isnan(longitude):
        return
    known = np.float64(place_W[5])
    place_W[5] = known + 1.0
    if known == 0.0:
        place_W[0], place_W[1], place_W[2] = latitude, longitude, FIRST_SPREAD
        return
    usual_latitude, usual_longitude, reach = np.float64(place_W[0]), np.float64(place_W[1]), np.float64(place_W[2])
    north, east = latitude - usual_latitude, _turned(longitude - usual_longitude)
    away = np.float64(np.float32(log1p(_kilometres(usual_latitude, latitude, east))))
    away_W = place_W[3:]
    out_C[0] = away
    out_C[1] = _score(away_W, away, known - 1.0)
    _learn(away_W, away, known - 1.0)
    rate, far = _rate(known), math.sqrt(north * north + east * east)
    step = rate * (REACH * reach / far if far > REACH * reach else 1.0)
    place_W[0] = usual_latitude + step * north
    place_W[1] = _turned(usual_longitude + step * east)
    place_W[2] = _next_spread(reach, far, rate)


@inlined
def _score(habit_W: NDArray[np.float32], x: float, known: float) -> float:
    """Spreads above the usual, 0 while nothing is usual."""
    above = (x - np.float64(habit_W[0])) / np.float64(habit_W[1])
    return min(max(above, -SCORE_LIMIT), SCORE_LIMIT) if known > 0.0 else 0.0


@inlined
def _learn(habit_W: NDArray[np.float32], x: float, known: float) -> None:
    """Move the usual (first word) and the spread (second) by a value that comes after so many."""
    if known == 0.0:
        habit_W[0], habit_W[1] = x, FIRST_SPREAD
        return
    usual, spread, rate = np.float64(habit_W[0]), np.float64(habit_W[1]), _rate(known)
    above = x - usual
    habit_W[0] = usual + rate * min(max(above, -REACH * spread), REACH * spread)
    habit_W[1] = _next_spread(spread, abs(above), rate)


@inlined
def _rate(known: float) -> float:
    return max(1.0 / (known + 1.0), 1.0 / SETTLED)


@inlined
def _next_spread(spread: float, deviation: float, rate: float) -> float:
    spread += rate * min(deviation - spread, WIDEN * spread)
    return min(max(spread, LEAST_SPREAD), GREATEST_SPREAD)


@inlined
def _turned(degrees: float) -> float:
    """A longitude, or a difference of two, as -180 to 180 degrees."""
    more = degrees + 2.0 * HALF_TURN if degrees < -HALF_TURN else degrees
    return more - 2.0 * HALF_TURN if more > HALF_TURN else more


@inlined
def _kilometres(a: float, b: float, east: float) -> float:
    """Great-circle distance between two latitudes, this difference in longitude apart (haversine formula)."""
    across, along = sin_turns((b - a) * (1 / 720)), sin_turns(east * (1 / 720))
    half = across * across + cos_turns(a * (1 / 360)) * cos_turns(b * (1 / 360)) * (along * along)
    return 2.0 * EARTH_KM * arcsin(math.sqrt(min(half, 1.0)))
