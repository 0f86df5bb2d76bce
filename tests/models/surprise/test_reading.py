"""The detector for surprise: what it may know, what it remembers, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from models.surprise.forecast import RIDGE, refit
from models.surprise.memory import places_of
from models.surprise.reading import CARRIED, FIRST, KNOWN, ONSET, OUT, RANK, SCORE, advance_readings

ROWS, LEARNT, FAULT = 3000, 1500, 2400

Fault = Callable[[NDArray[np.float64]], None]


class Found(NamedTuple):
    out_MO: NDArray[np.float32]
    carried_MC: NDArray[np.float32]
    expected_MC: NDArray[np.float32]
    state_W: NDArray[np.float32]


def judge(reading_MC: NDArray[np.float64], learnt: int = LEARNT, state_W: NDArray[np.float32] | None = None) -> Found:
    rows, channels = reading_MC.shape
    places = places_of(channels)
    state_W = np.zeros(places.words, np.float32) if state_W is None else state_W.copy()
    out_MO = np.empty((rows, len(OUT)), np.float32)
    carried_MC, expected_MC = (np.empty((rows, channels), np.float32) for _ in range(2))
    hour_M, learning_M = np.arange(rows) // 60 % 24, np.arange(rows) < learnt
    advance_readings(places, state_W, reading_MC.copy(), hour_M, learning_M, out_MO, carried_MC, expected_MC)
    return Found(out_MO, carried_MC, expected_MC, state_W)


def machine(seed: int = 0, channels: int = 4, rows: int = ROWS) -> NDArray[np.float64]:
    """Channels that follow one load, each with a unit, an inertia and noise of its own."""
    random = np.random.default_rng(seed)
    load_M = np.zeros(rows)
    for m in range(1, rows):
        load_M[m] = 0.95 * load_M[m - 1] + random.normal()
    gain_C, offset_C = random.uniform(1, 5, channels), random.uniform(-50, 50, channels)
    return load_M[:, None] * gain_C + offset_C + random.normal(0, 0.5, (rows, channels))


@pytest.mark.parametrize("channels", [1, 4])
def test_the_future_does_not_matter(channels: int) -> None:
    """Rows from 2,000 on are others, also in size: what is said of those before is the same to the bit."""
    reading_MC = machine(1, channels)
    other_MC = reading_MC.copy()
    other_MC[2000:] = 1e6 * np.random.default_rng(2).normal(size=other_MC[2000:].shape)
    first, second = judge(reading_MC), judge(other_MC)
    assert np.array_equal(first.out_MO[:2000], second.out_MO[:2000])
    assert np.array_equal(first.carried_MC[:2000], second.carried_MC[:2000])
    assert not np.array_equal(first.out_MO[2000:], second.out_MO[2000:])


def test_readings_one_by_one_are_as_all_at_once() -> None:
    """The state is all that one call hands to the next."""
    reading_MC = machine(3, 2, 700)
    whole = judge(reading_MC, 0)
    state_W = np.zeros(places_of(2).words, np.float32)
    hour_M, learning_M = np.arange(700) // 60 % 24, np.zeros(700, np.bool_)
    for m in range(700):
        out_MO, now = np.empty((1, len(OUT)), np.float32), slice(m, m + 1)
        each = np.empty((2, 1, 2), np.float32)
        advance_readings(places_of(2), state_W, reading_MC[now], hour_M[now], learning_M[now], out_MO, *each)
        assert np.array_equal(out_MO[0], whole.out_MO[m])
    assert np.array_equal(state_W, whole.state_W)


def test_nothing_is_said_before_enough_was_seen() -> None:
    """Scores are 0 while normal operation is learnt, 256 readings at least, and KNOWN says how far that is."""
    found = judge(machine(4), learnt=0).out_MO
    first = int(FIRST)
    assert found[:first, SCORE].max() == 0.0
    assert found[first:, SCORE].max() > 0.0
    assert found[first // 2, KNOWN] == 0.5
    assert (found[first:, KNOWN] == 1.0).all()


def spike(reading_MC: NDArray[np.float64]) -> None:
    reading_MC[FAULT : FAULT + 3, 1] += 12 * reading_MC[:LEARNT, 1].std()


def drift(reading_MC: NDArray[np.float64]) -> None:
    reading_MC[FAULT:, 1] += np.linspace(0, 12, ROWS - FAULT) * reading_MC[:LEARNT, 1].std()


def stuck(reading_MC: NDArray[np.float64]) -> None:
    reading_MC[FAULT:, 1] = reading_MC[FAULT, 1]


def oscillation(reading_MC: NDArray[np.float64]) -> None:
    reading_MC[FAULT:, 1] += 1.5 * reading_MC[:LEARNT, 1].std() * np.sin(np.arange(ROWS - FAULT))


def correlation_break(reading_MC: NDArray[np.float64]) -> None:
    """The channel goes on as another machine's: its own values are what they always are."""
    mean, std = reading_MC[:LEARNT, 1].mean(), reading_MC[:LEARNT, 1].std()
    other_M = machine(99)[FAULT:, 1]
    reading_MC[FAULT:, 1] = mean + std * (other_M - other_M.mean()) / other_M.std()


@pytest.mark.parametrize("fault", [spike, drift, stuck, oscillation, correlation_break])
@pytest.mark.parametrize("seed", [5, 6])
def test_faults_are_found(fault: Fault, seed: int) -> None:
    """The highest score after the fault began is above all before it."""
    reading_MC = machine(seed)
    fault(reading_MC)
    score_M = judge(reading_MC).out_MO[:, SCORE]
    assert score_M[FAULT:].max() > score_M[LEARNT:FAULT].max()


@pytest.mark.parametrize("fault", [spike, drift, oscillation])
@pytest.mark.parametrize("seed", [5, 6])
def test_the_faulty_channel_carries_the_most(fault: Fault, seed: int) -> None:
    """Not so of one that is stuck or follows another machine: it misleads the forecasts of those that belong to it."""
    reading_MC = machine(seed)
    fault(reading_MC)
    found = judge(reading_MC)
    assert found.carried_MC[FAULT + int(found.out_MO[FAULT:, SCORE].argmax())].argmax() == 1


def test_an_onset_is_said_once() -> None:
    """A jump of the level out of the range is an onset; what goes on there is not another one."""
    reading_MC = machine(7)
    reading_MC[FAULT:] += 15 * reading_MC[:LEARNT].std(axis=0)
    onset_M = judge(reading_MC).out_MO[:, ONSET]
    strong = np.flatnonzero(onset_M > 0.5 * onset_M.max())
    assert len(strong) > 0
    assert strong.min() >= FAULT
    assert strong.max() < FAULT + 10


def test_units_do_not_matter() -> None:
    """Other units of the same machine score alike, so one threshold means the same for both."""
    reading_MC = machine(8)
    spike(reading_MC)
    score_M = judge(reading_MC).out_MO[:, SCORE]
    other_M = judge(1000.0 * reading_MC - 7.0).out_MO[:, SCORE]
    assert np.abs(score_M - other_M).max() < 0.02
    assert score_M.max() > 0.5


def test_missing_channels_are_left_out() -> None:
    """A channel that stops, and readings without any: every score is a number, and the others are judged on."""
    reading_MC = machine(9)
    reading_MC[1800:, 3] = np.nan
    reading_MC[2000:2010] = np.nan
    spike(reading_MC)
    found = judge(reading_MC)
    for array in (found.out_MO, found.carried_MC, found.state_W):
        assert np.isfinite(array).all()
    assert found.out_MO[FAULT : FAULT + 10, SCORE].max() > found.out_MO[LEARNT:FAULT, SCORE].max()


def test_absurd_values_stay_finite() -> None:
    reading_MC = machine(10, 2)
    reading_MC[2000:2005] = 1e15
    reading_MC[2100:2105] = -1e15
    found = judge(reading_MC)
    assert np.isfinite(found.out_MO).all()
    assert np.isfinite(found.state_W).all()


def test_what_never_varied_surprises_when_it_does() -> None:
    reading_MC = machine(11)
    reading_MC[:, 2] = 3.0
    reading_MC[FAULT : FAULT + 50, 2] = 4.0
    found = judge(reading_MC)
    assert found.out_MO[FAULT : FAULT + 50, SCORE].max() > found.out_MO[LEARNT:FAULT, SCORE].max()
    assert found.carried_MC[FAULT + 20].argmax() == 2


def test_a_new_normal_is_taken_in() -> None:
    """A level that stays is a surprise at first, and half of one or less some thousand readings later."""
    reading_MC = machine(12, 2, 30_000)
    reading_MC[6000:] += 6 * reading_MC[:LEARNT].std(axis=0)
    score_M = judge(reading_MC).out_MO[:, SCORE]
    assert score_M[6000:6200].max() > 2 * np.median(score_M[-2000:])
    assert np.median(score_M[6100:6400]) > np.median(score_M[-2000:])


def test_weights_are_those_of_a_ridge_regression() -> None:
    random = np.random.default_rng(13)
    places = places_of(2)
    input_ND, target_NC = random.normal(size=(400, places.inputs)), random.normal(size=(400, 2))
    moments_DD, products_DC = input_ND.T @ input_ND / 400, input_ND.T @ target_NC / 400
    state_W = np.zeros(places.words, np.float32)
    state_W[places.moments : places.products] = moments_DD[np.tril_indices(places.inputs)]
    state_W[places.products : places.adaptive] = products_DC.ravel()
    refit(places, state_W, 400.0)
    expected_DC = np.linalg.solve(moments_DD + RIDGE / 400 * np.eye(places.inputs), products_DC)
    assert state_W[places.adaptive : places.reference].reshape(-1, 2) == pytest.approx(expected_DC, abs=1e-5)


def test_a_sensor_fits_into_16_kilobytes() -> None:
    assert 4 * places_of(8).words <= 16 * 1024


def test_a_rank_is_the_share_of_earlier_scores_below() -> None:
    """Under normal operation a score of rank .9 or more is about one in ten; a fault has a rank of nearly 1."""
    quiet = judge(machine(11, rows=20_000)).out_MO[LEARNT:, RANK]
    assert 0.02 < (quiet >= 0.9).mean() < 0.2
    broken_MC = machine(11)
    broken_MC[FAULT:, 0] += 500.0
    assert judge(broken_MC).out_MO[FAULT + 5 : FAULT + 50, RANK].min() > 0.99


def test_what_was_expected_is_in_the_readings_units() -> None:
    """The reference forecast explains most of a quiet machine, and does not follow a spike."""
    reading_MC = machine(12)
    found = judge(reading_MC)
    rest_MC = (reading_MC - found.expected_MC)[LEARNT:]
    assert (rest_MC.var(0) < 0.3 * reading_MC[LEARNT:].var(0)).all()
    spiked_MC = reading_MC.copy()
    spiked_MC[FAULT, 0] += 500.0
    assert np.array_equal(judge(spiked_MC).expected_MC[FAULT], found.expected_MC[FAULT])


def test_what_the_channels_carry_adds_up() -> None:
    found = judge(machine(13))
    assert np.allclose(found.carried_MC.sum(1), found.out_MO[:, CARRIED], rtol=1e-6)


@pytest.mark.parametrize("absurd", [1e9, 1e38, np.inf])
def test_one_absurd_reading_does_not_blind_a_channel(absurd: float) -> None:
    """Long after it an ordinary fault is found as without it, and all that is remembered is finite."""
    reading_MC = machine(14, rows=6000)
    reading_MC[5500:, 1] += 6.0 * reading_MC[:, 1].std()
    plain = judge(reading_MC).out_MO
    hit_MC = reading_MC.copy()
    hit_MC[LEARNT + 500, 1] = absurd
    found = judge(hit_MC)
    assert np.isfinite(found.state_W).all()
    assert np.isfinite(found.out_MO).all()
    assert np.isfinite(found.expected_MC).all()
    assert found.out_MO[LEARNT + 500, SCORE] > 2 * found.out_MO[LEARNT + 400 : LEARNT + 500, SCORE].mean()
    after = slice(5520, 5600)
    assert found.out_MO[after, SCORE].mean() > 0.8 * plain[after, SCORE].mean()
    assert found.out_MO[after, SCORE].min() > found.out_MO[5000:5500, SCORE].max()
