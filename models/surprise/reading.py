"""One reading of one entity: how surprising it is, and what is remembered of it.

    reading → errors of the reference and of the adaptive forecast, novelty of range → score
              records of values, averages, movement and season                       → onset

A reading is judged by those before it only. Normal operation is learnt from the first readings, for as long as the
caller says so. What is far from normal teaches a tenth of what other readings do: an anomaly does not become normal
while it lasts, and what has changed for good does, in the adaptive forecast after some thousand readings, in the
reference after RENEWAL times as many as it was learnt from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.surprise import forecast as fc
from models.surprise.forecast import BRIEF_MEAN, ERROR, LAST, LIMIT, LONG_MEAN, MEAN, REFERENCE, VARIANCE
from models.surprise.level import advance_rank, advance_score
from models.surprise.memory import EVIDENCE, RECORDS, SCALE, Places
from models.surprise.onset import advance_onset
from models.surprise.records import LEAST, advance_records, learn_season

__all__ = ["CARRIED", "FIRST", "KNOWN", "LEARNT", "ONSET", "OUT", "RANK", "SCORE", "SEEN", "advance_readings"]

OUT = SCORE, ONSET, KNOWN, RANK, CARRIED = 0, 1, 2, 3, 4  # columns of what is said of a reading
FIRST = 256.0  # readings that are learnt from in any case: nobody could say what is normal sooner
MEMORY = 20_000.0  # readings that the adaptive forecast goes back
RENEWAL = 100.0
SHY = 0.1  # what a reading far from normal teaches, compared with others
FAR = 3.0  # of the errors' mean over the channels, in spreads
USUAL = 3.0  # usual values rest more on later readings, when the forecasts were better
GREATEST = 1e15  # what is beyond is taken for it
LATELY = 20.0  # readings that what a channel carries goes back
NOVELTY = 10.0  # spreads that a half range outside counts as where channels are compared
SEEN, LEARNT, SINCE = 0, 1, 2  # words of the head


class _Work(NamedTuple):
    """What a reading is turned into; C channels, D inputs, K kinds of evidence, R records. off_C: adaptive
    errors in spreads. share_C: its surprise. expected_C: in the reading's units."""

    reading_C: NDArray[np.float64]
    input_D: NDArray[np.float64]
    scaled_C: NDArray[np.float64]
    reference_C: NDArray[np.float64]
    adaptive_C: NDArray[np.float64]
    off_C: NDArray[np.float64]
    share_C: NDArray[np.float64]
    expected_C: NDArray[np.float64]
    evidence_K: NDArray[np.float64]
    record_R: NDArray[np.float64]


@compiled
def advance_readings(
    places: Places,
    state_W: NDArray[np.float32],
    reading_MC: NDArray[np.float64],
    hour_M: NDArray[np.int64],
    learning_M: NDArray[np.bool_],
    out_MO: NDArray[np.float32],
    carried_MC: NDArray[np.float32],
    expected_MC: NDArray[np.float32],
) -> None:
    """Readings of one entity, in order; NaN where a channel is missing. Changes the state.

    hour_M: 0 to 23. learning_M: normal operation, to be learnt from; it scores 0. out_MO: of each reading SCORE in
    [0, 1), higher is stranger; ONSET in [0, 1), how strongly something new begins with it, 0 mostly; KNOWN, the share
    seen of what has to be before anything is said, 1 from then on; RANK in [0, 1), the share of the entity's earlier
    readings that scored lower, 0 while it is learnt; CARRIED, the sum of carried_MC. carried_MC: how much of the
    evidence each channel has carried lately, in spreads. expected_MC: what the reference forecast, in units of the
    reading.
    """
    channels = places.channels
    work = _Work(
        np.empty(channels), np.empty(places.inputs), np.empty(channels), np.empty(channels), np.empty(channels),
        np.empty(channels), np.empty(channels), np.empty(channels), np.empty(EVIDENCE), np.empty(RECORDS),
    )  # fmt: skip
    for m in range(len(reading_MC)):
        for c in range(channels):
            value = reading_MC[m, c]  # float32 holds the squares of what is left
            work.reading_C[c] = value if np.isnan(value) else min(GREATEST, max(-GREATEST, value))
        seen = np.float64(state_W[places.head + SEEN])
        if seen == 0.0:
            _begin(places, state_W, work.reading_C)
        learning = bool(learning_M[m] or seen < FIRST)
        far = _forecast_evidence(places, state_W, work)
        news = _range_evidence(places, state_W, work, hour_M[m], seen)
        weight = 1.0 if learning or far < FAR else SHY
        renew = _renewal(places, state_W, learning, weight)
        if seen < LEAST:
            work.evidence_K[:] = 0.0
        score = advance_score(places, state_W, work.evidence_K, seen, min(0.5, USUAL * renew) if seen >= LEAST else 0.0)
        onset = advance_onset(places, state_W, news)
        out_MO[m, SCORE] = 0.0 if learning else score
        out_MO[m, ONSET] = onset / (1.0 + onset)
        out_MO[m, KNOWN] = min(1.0, seen / FIRST)
        rank = advance_rank(places, state_W, score, weight) if seen >= LEAST else 0.0
        out_MO[m, RANK] = 0.0 if learning else rank
        out_MO[m, CARRIED] = _attribute(places, state_W, work.share_C, carried_MC[m])
        for c in range(channels):
            expected_MC[m, c] = work.expected_C[c]
        _learn_forecasts(places, state_W, work, seen, weight, learning, renew)
        _learn_scales(places, state_W, work, seen, weight, renew)
        learn_season(places, state_W, work.reading_C, hour_M[m])
        state_W[places.head + SEEN] = seen + 1.0


@inlined
def _attribute(
    places: Places, state_W: NDArray[np.float32], share_C: NDArray[np.float64], carried_C: NDArray[np.float32]
) -> np.float32:
    """What each channel has carried lately, and the sum."""
    total = np.float32(0.0)
    for c in range(places.channels):
        state_W[places.carried + c] += (share_C[c] - state_W[places.carried + c]) / LATELY
        carried_C[c] = state_W[places.carried + c]
        total += carried_C[c]
    return total


@inlined
def _begin(places: Places, state_W: NDArray[np.float32], reading_C: NDArray[np.float64]) -> None:
    for c in range(places.channels):
        at = places.scales + c * SCALE
        start = 0.0 if np.isnan(reading_C[c]) else reading_C[c]
        state_W[at + MEAN] = state_W[at + REFERENCE + MEAN] = start
        state_W[at + LAST] = state_W[at + BRIEF_MEAN] = state_W[at + LONG_MEAN] = start
        state_W[at + ERROR] = state_W[at + REFERENCE + ERROR] = 1.0


@inlined
def _forecast_evidence(places: Places, state_W: NDArray[np.float32], work: _Work) -> float:
    """Errors of both forecasts, the first two kinds of evidence, and what was expected; the mean of the adaptive ones'
    over the channels."""
    fc.write_inputs(places, state_W, REFERENCE, work.reading_C, work.input_D, work.scaled_C)
    fc.write_forecast(places, state_W[places.reference :], work.input_D, work.expected_C)
    fc.write_errors(work.scaled_C, work.expected_C, work.reference_C)
    fc.write_inputs(places, state_W, 0, work.reading_C, work.input_D, work.scaled_C)
    fc.write_forecast(places, state_W[places.adaptive :], work.input_D, work.adaptive_C)
    fc.write_errors(work.scaled_C, work.adaptive_C, work.adaptive_C)
    for c in range(places.channels):
        at = places.scales + c * SCALE + REFERENCE
        mean, variance = np.float64(state_W[at + MEAN]), np.float64(state_W[at + VARIANCE])
        work.expected_C[c] = mean + work.expected_C[c] * fc.spread_of(mean, variance)
        work.share_C[c] = _in_spreads(work.reference_C[c], state_W[at + ERROR])
    work.evidence_K[0] = _top(work.share_C)
    far = 0.0
    for c in range(places.channels):
        work.off_C[c] = _in_spreads(work.adaptive_C[c], state_W[places.scales + c * SCALE + ERROR])
        far += work.off_C[c] / places.channels
        work.share_C[c] += work.off_C[c]
    work.evidence_K[1] = _top(work.off_C)
    return far


@inlined
def _in_spreads(error: float, square: float) -> float:
    return min(LIMIT, abs(error) / (math.sqrt(square) + fc.LEAST_ERROR))


@compiled
def _top(share_C: NDArray[np.float64]) -> float:
    """Mean of the greatest eighth: a fault shows in few channels of many."""
    many = max(1, len(share_C) // 8)
    return float(np.sort(share_C)[len(share_C) - many :].mean())


@inlined
def _range_evidence(places: Places, state_W: NDArray[np.float32], work: _Work, hour: int, seen: float) -> float:
    """Novelty of range, the third kind of evidence; what all records together come to, a mean over the channels."""
    novelty, news = 0.0, 0.0
    for c in range(places.channels):
        if not np.isnan(work.reading_C[c]):
            own, total = advance_records(places, state_W, c, work.reading_C[c], hour, seen, work.record_R)
            novelty += own / places.channels
            news += total / places.channels
            work.share_C[c] += NOVELTY * own
    work.evidence_K[2] = novelty
    return news


@inlined
def _renewal(places: Places, state_W: NDArray[np.float32], learning: bool, weight: float) -> float:
    """By how much the reference moves towards this reading."""
    learnt = np.float64(state_W[places.head + LEARNT])
    if learning:
        state_W[places.head + LEARNT] = learnt + 1.0
        return 1.0 / (learnt + 1.0)
    return weight / (RENEWAL * learnt)


@inlined
def _learn_forecasts(
    places: Places, state_W: NDArray[np.float32], work: _Work, seen: float, weight: float, learning: bool, renew: float
) -> None:
    if seen < fc.LONG:  # until then scales and averages move too much
        return
    counted = min(seen + 1.0 - fc.LONG, MEMORY)
    fc.learn_moments(places, state_W, work.input_D, work.scaled_C, weight / counted)
    since = np.float64(state_W[places.head + SINCE]) + 1.0
    if fc.fit_due(seen, since):
        fc.refit(places, state_W, counted)
        share = 1.0 if learning else min(1.0, fc.REFIT * renew)
        for w in range(places.inputs * places.channels):
            state_W[places.reference + w] += share * (state_W[places.adaptive + w] - state_W[places.reference + w])
        since = np.float64(0.0)
    state_W[places.head + SINCE] = since


@inlined
def _learn_scales(
    places: Places, state_W: NDArray[np.float32], work: _Work, seen: float, weight: float, renew: float
) -> None:
    """Means, spreads and errors of both forecasts, and the averages that they start from."""
    rate = max(1.0 / (seen + 1.0), weight / MEMORY)
    for c in range(places.channels):
        value = work.reading_C[c]
        if np.isnan(value):
            continue
        at = places.scales + c * SCALE
        if seen >= FIRST:  # one absurd reading must not make all others look small
            value = _near(value, np.float64(state_W[at + MEAN]), np.float64(state_W[at + VARIANCE]))
        _follow(state_W[at:], value, work.adaptive_C[c], rate)
        _follow(state_W[at + REFERENCE :], value, work.reference_C[c], renew)
        state_W[at + BRIEF_MEAN] += (value - state_W[at + BRIEF_MEAN]) / fc.BRIEF
        state_W[at + LONG_MEAN] += (value - state_W[at + LONG_MEAN]) / fc.LONG
        state_W[at + LAST] = value


@inlined
def _near(value: float, mean: float, variance: float) -> float:
    """The value, or where it is further than LIMIT spreads from the mean, what is that far."""
    reach = LIMIT * fc.spread_of(mean, variance)
    return min(mean + reach, max(mean - reach, value))


@inlined
def _follow(scale_W: NDArray[np.float32], value: float, error: float, rate: float) -> None:
    """Move mean, variance and mean square of the error towards this reading's."""
    off = value - scale_W[MEAN]
    scale_W[MEAN] += rate * off
    scale_W[VARIANCE] += rate * ((1.0 - rate) * off * off - scale_W[VARIANCE])
    scale_W[ERROR] += rate * (error * error - scale_W[ERROR])
