"""The fifteen features of the Fraud Detection Handbook (its chapter 3), for any pipeline: what a baseline reads.

The amount; whether it is a weekend and whether it is night; how many events the entity had within 1, 7 and 30 days,
this one included, and their mean amount; and of the shared key (that of the first profile that reads verdicts, else
of the first profile) how many events it had within as many days that ended a label's maturity ago, and the share of
frauds among them.

Causal: time is the partition's clock, and a fraud counts from the arrival of its first verdict on, and no sooner than
the maturity after the event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.clock import DAY_MS, HOUR_MS
from models.pipeline.spec import NumberField, Pipeline
from training.leaks import Seen
from training.replay import History

__all__ = ["rolling_features", "rolling_names", "rolling_seen"]

DAYS = (1, 7, 30)
NIGHT_ENDS = 6 * HOUR_MS + 1  # "until six"
SCALE, LARGEST = 1000, 1e9  # amounts are summed in thousandths
NEVER = np.iinfo(np.int64).max // 4


def rolling_names() -> list[str]:
    """Names of the columns of `rolling_features`."""
    names = ["amount", "weekend", "night"]
    names += [f"entity.{what}.{days}d" for days in DAYS for what in ("count", "mean")]
    return names + [f"key.{what}.{days}d" for days in DAYS for what in ("count", "risk")]


def rolling_features(history: History) -> NDArray[np.float32]:
    """float32 (M, 15), in the order of the history's events; columns of what a pipeline has not are 0."""
    pipeline, time_M = history.pipeline, history.event_time_M
    clock_M, amount_M = history.event_clock_M, _amounts(history)
    since_monday_M = (time_M // DAY_MS + 3) % 7  # 1970-01-01 was a Thursday
    columns = [amount_M, since_monday_M >= 5, time_M % DAY_MS < NIGHT_ENDS]
    entity_M = _places(history.events[pipeline.entity])
    # whole numbers: a sum of floats would depend on what else is summed
    own = _Sums(entity_M, clock_M, np.rint(np.clip(np.nan_to_num(amount_M), -LARGEST, LARGEST) * SCALE))
    for days in DAYS:
        count_M, sum_M = own.within(entity_M, clock_M - days * DAY_MS, clock_M)
        columns += [count_M, sum_M / SCALE / np.maximum(count_M, 1)]
    key = _key(pipeline)
    if key is None:
        columns += [np.zeros(len(time_M))] * (2 * len(DAYS))
    else:
        columns += _risks(_places(history.events[key]), clock_M, _known_as_fraud(history), pipeline.labels.maturity_ms)
    return np.column_stack([np.asarray(column, dtype=np.float32) for column in columns])


def rolling_seen(history: History) -> Seen:
    """A view for `training.leaks.check_no_leaks`."""
    values_MF = rolling_features(history)
    ids = history.events[history.pipeline.pipeline.event_id].to_pylist()
    return Seen(ids, {name: values_MF[:, f] for f, name in enumerate(rolling_names())})


def _risks(
    key_M: NDArray[np.int64], clock_M: NDArray[np.int64], known_M: NDArray[np.int64], delay_ms: int
) -> list[NDArray[Any]]:
    fraud_M = known_M < NEVER
    events = _Sums(key_M, clock_M, np.zeros(len(clock_M)))
    # a fraud lies where its event lies, unless its verdict came later than the delay
    frauds = _Sums(key_M[fraud_M], np.maximum(clock_M, known_M - delay_ms)[fraud_M], np.zeros(int(fraud_M.sum())))
    end_M, columns = clock_M - delay_ms, []
    for days in DAYS:
        count_M, _ = events.within(key_M, end_M - days * DAY_MS, end_M)
        found_M, _ = frauds.within(key_M, end_M - days * DAY_MS, end_M)
        columns += [count_M, found_M / np.maximum(count_M, 1)]
    return columns


class _Sums:
    """Counts and sums of events by key over any stretch of time."""

    def __init__(self, key_N: NDArray[np.int64], time_N: NDArray[np.int64], value_N: NDArray[np.float64]) -> None:
        self.first = int(time_N.min()) if len(time_N) else 0
        self.span = int(time_N.max()) - self.first + 2 if len(time_N) else 2
        position_N = self._positions(key_N, time_N)
        order = np.argsort(position_N, kind="stable")
        self.position_N = position_N[order]
        self.sum_N = np.concatenate([[0], np.cumsum(value_N[order].astype(np.int64))])

    def within(
        self, key_M: NDArray[np.int64], after_M: NDArray[np.int64], until_M: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Number and sum of the key's events with after < time <= until."""
        order = np.lexsort((until_M, key_M))  # a search in order stays in the processor's cache
        low, high = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
        for found, time_M in ((low, after_M), (high, until_M)):
            found[order] = np.searchsorted(self.position_N, self._positions(key_M, time_M)[order], side="right")
        return high - low, self.sum_N[high] - self.sum_N[low]

    def _positions(self, key_M: NDArray[np.int64], time_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """One number that orders by key, then by time; times outside the data lie just before or at its end."""
        return key_M * self.span + np.clip(time_M - self.first + 1, 0, self.span - 1)


def _amounts(history: History) -> NDArray[np.float64]:
    pipeline = history.pipeline
    named = [profile.amount for profile in pipeline.profiles.values() if profile.amount is not None]
    fields = named or pipeline.of_type(NumberField)
    if not fields:
        return np.zeros(len(history.events))
    return np.asarray(history.events[fields[0]].cast(pa.float64()).to_numpy())


def _key(pipeline: Pipeline) -> str | None:
    """The entity field of the profile with verdicts, else of the first one that is not the entity's own."""
    profiles = [profile for profile in pipeline.profiles.values() if profile.key != pipeline.entity]
    return next((p.key for p in profiles if p.verdicts), profiles[0].key if profiles else None)


def _places(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Each text's number; a missing one is a key of its own."""
    encoded = pc.fill_null(column.combine_chunks(), "").dictionary_encode()
    return np.asarray(encoded.indices.to_numpy()).astype(np.int64)


def _known_as_fraud(history: History) -> NDArray[np.int64]:
    """When each event was first said to be a fraud, epoch ms; NEVER for the others."""
    labels = history.labels
    known_M = np.full(len(history.events), NEVER, dtype=np.int64)
    fraud_L = np.asarray(labels["fraud"].to_numpy())
    ids = labels["event_id"].filter(pa.array(fraud_L)).combine_chunks()
    event_id = history.events[history.pipeline.pipeline.event_id].combine_chunks()
    place_L = pc.index_in(ids, event_id)
    found = np.asarray(place_L.is_valid())
    rows = place_L.drop_null().to_numpy()
    np.minimum.at(known_M, rows, history.label_clock_M[fraud_L][found])
    return known_M
