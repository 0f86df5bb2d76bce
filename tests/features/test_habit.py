"""Habits as a detector sees them: what moves them, what does not, and what is said before there is one."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.columns import columns_to_batch
from models.features.encoded import Encoded
from models.features.habit import GENERATION
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.pipeline.load import load_pipeline, parse_pipeline

START_MS, HOUR, DAY = 1_700_000_000_000, 3_600_000, 86_400_000
PAYMENTS = load_pipeline("payments")
INPUTS = Layout(PAYMENTS).inputs


def played(many: int, **columns: list[Any]) -> tuple[Encoded, MemoryStore]:
    """A card's payments, one an hour unless `timestamp` says otherwise, in one batch."""
    store = MemoryStore(PAYMENTS)
    rows: dict[str, list[Any]] = {name: [None] * many for name in PAYMENTS.fields if name != "location"}
    rows |= {
        "transaction_id": [f"t{i}" for i in range(many)], "timestamp": [START_MS + i * HOUR for i in range(many)],
        "card_id": ["c"] * many, "merchant_id": ["m"] * many, "amount": [20.0] * many,
        "location.latitude": [None] * many, "location.longitude": [None] * many,
    }  # fmt: skip
    batch = columns_to_batch(store.layout, rows | columns)
    return store.step(batch, np.maximum.accumulate(batch.time_M)).encoded, store


def context(encoded: Encoded, name: str) -> np.ndarray:
    return encoded.context_BC[:, INPUTS.context.index(name)]


def test_a_long_episode_does_not_become_usual() -> None:
    """After weeks in which every third amount is five times as high, frauds still stand out as on the first day."""
    rng = np.random.default_rng(1)
    usual, many = np.exp(rng.normal(3.5, 0.5, 260)), 60
    amounts = usual * np.where((np.arange(260) >= 200) & (np.arange(260) % 3 == 0), 5.0, 1.0)
    encoded, _ = played(260, amount=amounts.round(2).tolist(), timestamp=[START_MS + i * DAY // 2 for i in range(260)])
    before, after = np.log1p(usual[:200]).mean(), np.log1p(amounts[-32:]).mean()
    assert after - before > 0.4, "a mean over the window is drawn to the frauds"
    location = context(encoded, "amount.usual")
    assert abs(location[200] - before) < 0.1
    assert abs(location[-1] - location[200]) < 0.15
    assert context(encoded, "amount.spread")[-1] < 1.4 * context(encoded, "amount.spread")[200]
    frauds = np.arange(260 - many, 260)[amounts[-many:] != usual[-many:]]
    assert context(encoded, "amount.score")[frauds].mean() > 2.5
    assert context(encoded, "amount.score")[:200].std() < 1.6


def test_what_has_changed_for_good_is_followed() -> None:
    """A card that pays ten times as much from some day on is used to it some hundreds of payments later."""
    rng = np.random.default_rng(2)
    amounts = np.exp(rng.normal(3.0, 0.5, 500)) * np.where(np.arange(500) < 100, 1.0, 10.0)
    encoded, _ = played(500, amount=amounts.round(2).tolist())
    score = context(encoded, "amount.score")
    assert score[100:110].mean() > 4.0, "at first it is very strange"
    assert score[-50:].mean() < 0.5
    assert abs(context(encoded, "amount.usual")[-1] - np.log1p(amounts[100:]).mean()) < 0.2


def test_all_rows_of_a_window_are_compared_with_one_location() -> None:
    """The usual is that before the current event, also for the rows that it has learnt from; padding stays 0."""
    amounts = [10.0, 12.0, 9.0, 400.0, 11.0]
    encoded, _ = played(5, amount=amounts)
    for b in range(1, 5):
        expected = np.log1p(amounts[: b + 1]) - context(encoded, "amount.usual")[b]
        found = encoded.x_BLF[b, :, INPUTS.x.index("amount.surprise")]
        np.testing.assert_allclose(found[-b - 1 :], expected, atol=1e-6)
        assert not found[: -b - 1].any()
    assert np.isfinite(encoded.x_BLF).all()


def test_nothing_is_usual_before_the_first_value() -> None:
    """All columns are 0 at the first event but `novel`; the first gap and a late event's are no values."""
    hours = [0, 5, 2, 3]
    encoded, store = played(4, timestamp=[START_MS + hour * HOUR for hour in hours])
    first = dict(zip(INPUTS.context, encoded.context_BC[0].tolist(), strict=True))
    stats = ("usual", "spread", "score", "novelty", "away", "away_score")
    assert not any(value for name, value in first.items() if name.split(".")[-1] in stats)
    assert first["merchant_id.novel"] == 1.0
    assert context(encoded, "merchant_id.novel").tolist() == [1.0, 0.0, 0.0, 0.0]
    assert store.state("c")["habits"]["known"][0].tolist() == [4.0, 2.0]
    surprise_BL = encoded.x_BLF[:, -4:, INPUTS.x.index("gap.surprise")]
    assert not surprise_BL[:2].any()
    np.testing.assert_allclose(surprise_BL[3], [0, 0, 0, np.log1p(3600) - np.log1p(18000)], atol=1e-6)


def test_the_partners_of_late_are_known_and_those_of_long_ago_are_not() -> None:
    """At least the last dozen merchants are remembered; one that was seen once, long before, is new again."""
    merchants = [f"m{i}" for i in range(60)]
    revisited = [merchants[60 - int(GENERATION) + i] for i in range(int(GENERATION))]
    encoded, _ = played(73, merchant_id=[*merchants, *revisited, "m0"])
    novel = context(encoded, "merchant_id.novel")
    assert novel[:60].mean() > 0.7, "a filter of 64 bits takes some for known"
    assert not novel[60:72].any()
    assert novel[72] == 1.0
    share = context(encoded, "merchant_id.novel")[:59].mean()
    assert np.isclose(context(encoded, "merchant_id.novelty")[59], novel[59] - share, atol=1e-6)


def test_home_is_found_on_either_side_of_the_date_line() -> None:
    """Steps and distances go the short way around; one journey is far away and leaves home where it was."""
    longitudes = [179.9, -179.9] * 30
    latitudes = [-17.0] * 60
    longitudes[50], latitudes[50] = 2.35, 48.86
    encoded, store = played(60, **{"location.latitude": latitudes, "location.longitude": longitudes})
    away = context(encoded, "location.away")
    assert np.expm1(away[50]) > 10_000
    assert context(encoded, "location.away_score")[50] == 10.0
    assert np.expm1(away[[*range(10, 50), *range(51, 60)]]).max() < 30
    home = store.state("c")["places"][0, 0]
    assert abs(abs(float(home["longitude"])) - 180) < 0.2


READINGS = """
[pipeline]
name = "p"
entity = "e"
event_id = "i"
time = "t"

[fields]
i = { type = "id" }
t = { type = "time" }
e = { type = "entity" }
a = { type = "number", TRANSFORM }
"""


def test_absurd_values_never_make_a_score_that_is_no_number() -> None:
    """Thousands of the greatest numbers there are, on the other side of the first, leave a finite habit."""
    store, many = MemoryStore(parse_pipeline(READINGS.replace(", TRANSFORM", ""), "p.toml")), 7000
    columns = {
        "i": list(range(many)), "e": ["e"] * many, "t": [START_MS + i for i in range(many)],
        "a": [3.4e38] + [-3.4e38] * (many - 1),
    }  # fmt: skip
    batch = columns_to_batch(store.layout, columns)
    encoded = store.step(batch, batch.time_M).encoded
    names = store.layout.inputs.context
    habit_BC = encoded.context_BC[:, [names.index(f"a.{stat}") for stat in ("usual", "spread", "score")]]
    assert np.isfinite(habit_BC).all()
    assert habit_BC[:, 1].max() == np.float32(1e37)
    assert not np.isnan(encoded.x_BLF).any()


def test_a_transform_is_part_of_the_layout() -> None:
    """A stored usual amount is a transformed one: with another transform a state is another."""
    how = [READINGS.replace("TRANSFORM", f'min = 0, transform = "{how}"') for how in ("linear", "log1p")]
    assert len({Layout(parse_pipeline(text, "p.toml")).layout_id for text in how}) == 2
