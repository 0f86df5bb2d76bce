"""Surprise as context of events: the same in any batches, with repeats and missing fields, as reading by reading."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.errors import PipelineError
from models.events import EventBatch
from models.features.encoded import SURPRISE
from models.features.memory import MemoryStore
from models.pipeline.load import digest, parse_pipeline
from models.pipeline.spec import Pipeline
from models.surprise.memory import places_of
from models.surprise.reading import KNOWN, OUT, advance_readings

HOUR_MS = 3_600_000
EVENTS, MACHINES, LEARN = 900, 2, 300
COLUMNS = len(SURPRISE) + 4  # two numbers


def pipeline(learn: int = LEARN, fields: str = "") -> Pipeline:
    return parse_pipeline(f"""
        [pipeline]
        name = "machines"
        entity = "machine"
        event_id = "id"
        time = "time"
        [fields]
        id = {{ type = "id" }}
        time = {{ type = "time", unit = "ms" }}
        machine = {{ type = "entity" }}
        {fields or 'speed = {{ type = "number" }}' + chr(10) + 'heat = {{ type = "number", required = false }}'}
        [window]
        length = 4
        horizons = ["1h"]
        [surprise]
        learn = {learn}
        """.replace("{{", "{").replace("}}", "}"), "test")  # fmt: skip


def events(seed: int) -> EventBatch:
    random = np.random.default_rng(seed)
    values_MV = np.cumsum(random.normal(size=(EVENTS, 2)), axis=0).astype(np.float32)
    values_MV[random.random(EVENTS) < 0.1, 1] = np.nan
    number_M = np.arange(EVENTS)
    number_M[10::10] = number_M[9:-1:10]  # every tenth is a repeat of the one before it
    machine_M = number_M % 7 % MACHINES
    return EventBatch(
        event_id=[f"e{n}" for n in number_M], entity=[f"m{n}" for n in machine_M],
        time_M=number_M * HOUR_MS // 5 + 1_700_000_000_000, id_hash_M=(number_M + 1).astype(np.uint64),
        values_MV=values_MV, hashes_MK=np.zeros((EVENTS, 0), np.uint32), profile_keys={},
    )  # fmt: skip


def reading_by_reading(batch: EventBatch) -> NDArray[np.float32]:
    """The columns of the events that are no repeats, each machine with a state of its own."""
    places = places_of(2)
    states = {name: np.zeros(places.words, np.float32) for name in set(batch.entity)}
    seen = dict.fromkeys(states, 0)
    rows = []
    for m in range(EVENTS):
        if m and batch.event_id[m] == batch.event_id[m - 1]:
            continue
        name = batch.entity[m]
        out, carried, expected = (np.empty((1, width), np.float32) for width in (len(OUT), 2, 2))
        hour = batch.time_M[m : m + 1] // HOUR_MS % 24
        learning = np.array([seen[name] < LEARN])
        reading = batch.values_MV[m : m + 1].astype(float)
        advance_readings(places, states[name], reading, hour, learning, out, carried, expected)
        out[0, KNOWN] = min(1.0, seen[name] / LEARN)
        seen[name] += 1
        rows.append(np.concatenate([out[0], carried[0], expected[0]]))
    return np.array(rows)


@pytest.mark.parametrize("size", [1, 13, EVENTS])
def test_batches_do_not_matter(size: int) -> None:
    store, batch, found = MemoryStore(pipeline()), events(1), []
    names = store.layout.inputs.context
    first = names.index("surprise")
    own = ("speed.carried", "heat.carried", "speed.expected", "heat.expected")
    assert names[first : first + COLUMNS] == SURPRISE + own
    for begin in range(0, EVENTS, size):
        part = batch.take(np.arange(begin, min(begin + size, EVENTS)))
        found.append(store.step(part, part.time_M).encoded.context_BC[:, first : first + COLUMNS])
    expected = reading_by_reading(batch)
    assert np.array_equal(np.concatenate(found), expected)
    assert expected[:, 0].max() > 0.0


def test_without_surprise_nothing_is_kept_and_the_digest_stays() -> None:
    """A model of before fits a pipeline that does not ask for surprise, and no other."""
    without, store = pipeline(0), MemoryStore(pipeline(0))
    assert not any("surprise" in name or "carried" in name for name in store.layout.inputs.context)
    assert store.layout.state_dtype["surprise"].itemsize == 0
    assert digest(without) != digest(pipeline(300)) != digest(pipeline(301))
    assert MemoryStore(pipeline()).layout.layout_id != store.layout.layout_id


def test_surprise_needs_a_number() -> None:
    with pytest.raises(PipelineError, match=r"surprise.learn = 300: expected 0, since there is no number field"):
        pipeline(fields='door = { type = "boolean" }')


def test_a_field_does_not_take_the_name_of_the_columns() -> None:
    with pytest.raises(PipelineError, match=r"fields = 'surprise': expected another name"):
        pipeline(fields='surprise = { type = "number" }')
