"""Where what is remembered of an entity's readings stands in its state: a row of float32 words.

Legend: C channels (number fields) of a reading; D = 3C + 1 inputs of the forecast of the next one; S stretches of time
over which a channel's records are kept; K kinds of evidence; H horizons over which evidence is averaged.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BINS", "EVIDENCE", "HORIZONS", "LEVEL", "RANKS", "RECORDS", "Places", "places_of"]

BINS = 24  # hours of the day: each has its usual value
RECORDS = 6  # kinds of a channel's records, `models.surprise.records`
EVIDENCE = 3  # reference forecast, adaptive forecast, novelty of range
HORIZONS = 5  # over which evidence is averaged, `models.surprise.level`
LEVEL = 3  # words of an average: itself, and its usual value and spread
RANKS = 64  # ranges of the score that are counted, `models.surprise.level`

HEAD = 6  # see Places
SCALE = 9  # words of a channel: see models.surprise.forecast
CHANNEL = 4 + 2 * RECORDS  # three averages and the movement; greatest and least of each record


class Places(NamedTuple):
    """First words of the parts of a state.

    head: readings seen; learnt, those that the reference rests on; readings since the forecasts were fitted;
    strength and age of the last onset; what onsets have used up of their budget.
    """

    channels: int
    inputs: int
    head: int
    scales: int  # (C, SCALE)
    moments: int  # (D, D + 1) / 2, lower triangle: mean products of inputs
    products: int  # (D, C): mean products of inputs and readings
    adaptive: int  # (D, C): weights of the forecast that follows
    reference: int  # (D, C): weights of the forecast that was learnt from normal operation
    records: int  # (C, CHANNEL)
    seasons: int  # (BINS, C + 1): readings seen, and the usual value of each channel
    levels: int  # (EVIDENCE, HORIZONS, LEVEL)
    ranks: int  # (RANKS,): how many readings had a score in each range
    carried: int  # (C,): how much of the surprise each channel has carried lately
    words: int


def places_of(channels: int) -> Places:
    """Places for readings of so many channels, at least one.

    >>> places_of(8).words * 4
    5856
    """
    inputs = 3 * channels + 1
    sizes = [
        HEAD, channels * SCALE, inputs * (inputs + 1) // 2, *[inputs * channels] * 3, channels * CHANNEL,
        BINS * (channels + 1), EVIDENCE * HORIZONS * LEVEL, RANKS, channels,
    ]  # fmt: skip
    ends = [sum(sizes[: part + 1]) for part in range(len(sizes))]
    return Places._make([channels, inputs, 0, *ends])
