"""Does anything an event is judged by change when only the future changes? It must not, not by a bit.

The history, or a part of it, is looked at as it is. Then it is cut at a few moments, and everything from there on is
made different: left out; or the verdicts turned round, and the later events given one another's values. What was seen
before the cut has to be the same each time. A column that reads a verdict before it has arrived, a later event, or
the length or range of the file, does not stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models.clock import to_iso
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.hashing import hash_ids
from training.archive import APPEND_TIME, OFFSET, PARTITION
from training.errors import TrainingError
from training.evidence import columns_of
from training.replay import History, Replayed, Want, replay

__all__ = ["Make", "Seen", "View", "check_no_leaks", "sampled_history", "windows_seen"]

EVENTS = 20_000  # enough for every column to have been used; more only takes longer
CUTS = 3

# What makes windows of a history: `training.replay.replay`, or something that is tested in its place.
Make = Callable[[History, Want], Iterator[Replayed]]


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of N events, by column: arrays of N rows."""

    event_id: list[str]
    columns: dict[str, NDArray[np.generic]]


View = Callable[[History], Seen]


def check_no_leaks(history: History, views: dict[str, View], *, seed: int = 0, events: int = EVENTS) -> None:
    """Raises TrainingError that names the columns which knew of the future.

    views: by name, what makes columns of a history. events: about how many are looked at.
    """
    part = sampled_history(history, events, seed)
    rng = np.random.default_rng(seed)
    ids = np.array(part.events[part.pipeline.pipeline.event_id].to_pylist(), dtype=object)
    whole = {name: view(part) for name, view in views.items()}
    for cut_ms in _cuts(part, rng):
        before = set(ids[part.event_clock_M < cut_ms].tolist())
        for changed in (part.known_by(cut_ms), _changed(part, cut_ms, rng)):
            for name, view in views.items():
                columns = _different(whole[name], view(changed), before)
                if columns:
                    raise TrainingError(
                        f"{name}: {', '.join(columns)}: of events before {to_iso(cut_ms)} other values when only what "
                        "comes later is changed: expected columns that know nothing of the future"
                    )


def windows_seen(make: Make = replay) -> View:
    """The view of all that a detector reads."""

    def view(history: History) -> Seen:
        parts = list(make(history, lambda batch: np.ones(len(batch), dtype=bool)))
        inputs = Layout(history.pipeline).inputs
        event_id = [i for part in parts for i in part.batch.event_id]
        return Seen(event_id, columns_of(inputs, Encoded.concatenate([part.encoded for part in parts])))

    return view


def sampled_history(history: History, events: int, seed: int) -> History:
    """A part of a history: all events of some keys, of the first profile that reads verdicts, else of any profile,
    else of some entities. What these hold is as dense as it was."""
    if len(history.events) <= events:
        return history
    profiles = sorted(history.pipeline.profiles.values(), key=lambda profile: not profile.verdicts)
    keys = history.events[profiles[0].key if profiles else history.pipeline.entity].combine_chunks()
    keys = pc.fill_null(keys, "").dictionary_encode()
    mixed = hash_ids([f"{seed}:{key}" for key in keys.dictionary.to_pylist()])
    kept = np.argsort(mixed)
    place_M = keys.indices.to_numpy()
    counts = np.bincount(place_M, minlength=len(mixed))[kept]
    few = kept[: max(1, int(np.searchsorted(np.cumsum(counts), events)))]
    event_M = np.isin(place_M, few)
    ids = history.events[history.pipeline.pipeline.event_id].filter(pa.array(event_M))
    label_M = pc.is_in(history.labels["event_id"], ids.combine_chunks()).to_numpy()
    return History(
        history.pipeline, history.events.filter(pa.array(event_M)), history.labels.filter(pa.array(label_M)),
        history.event_clock_M[event_M], history.label_clock_M[label_M],
    )  # fmt: skip


def _cuts(history: History, rng: np.random.Generator) -> list[int]:
    """Moments at which a label arrives, so that it is the first thing not to be known; else an event."""
    first, last = int(history.event_clock_M.min()), int(history.event_clock_M.max())
    inside = history.label_clock_M[(history.label_clock_M > first) & (history.label_clock_M < last)]
    clocks = inside if len(inside) else history.event_clock_M
    return sorted(rng.choice(clocks, size=min(CUTS, len(clocks)), replace=False).tolist())


def _changed(history: History, cut_ms: int, rng: np.random.Generator) -> History:
    """Verdicts that arrive from the cut on turned round, and later events given one another's values."""
    later_M = history.event_clock_M >= cut_ms
    rows = np.arange(len(later_M))
    mixed = rows.copy()
    mixed[later_M] = rng.permutation(rows[later_M])
    kept = {PARTITION, OFFSET, APPEND_TIME, history.pipeline.pipeline.event_id, history.pipeline.pipeline.time}
    other = history.events.take(pa.array(mixed))
    events = pa.table({name: (history.events if name in kept else other)[name] for name in other.column_names})
    fraud_M = np.asarray(history.labels["fraud"].to_numpy()) ^ (history.label_clock_M >= cut_ms)
    place = history.labels.schema.get_field_index("fraud")
    labels = history.labels.set_column(place, "fraud", pa.array(fraud_M, pa.bool_()))
    return replace(history, events=events, labels=labels)


def _different(whole: Seen, other: Seen, before: set[str]) -> list[str]:
    """Columns in which events of `before` are not the same to the bit."""
    place = {event_id: n for n, event_id in enumerate(whole.event_id)}
    pairs = [(n, place[i]) for n, i in enumerate(other.event_id) if i in before and i in place]
    if len(pairs) != sum(i in before for i in whole.event_id):
        return ["the events themselves"]
    if not pairs:
        return []
    here, there = (np.array(index) for index in zip(*pairs, strict=True))
    return [
        name for name, values in whole.columns.items()
        if name not in other.columns or values[there].tobytes() != other.columns[name][here].tobytes()
    ]  # fmt: skip
