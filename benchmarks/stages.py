"""The steps of the hot path one by one, in one thread of this process, on simulated payments.

Every figure is CPU time of this process an event (an alert, where it says so), the median over batches, after a
warm-up: what a busy machine does to the wall clock is left out. Redis' own CPU is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Report, expect
from models.bundle import write_bundle
from models.calibration import Calibration
from models.codec import Codec, columns_to_batch
from models.detectors import build_detector
from models.detectors.run import run_blocks, scores_of
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.features.step import Loaded, step
from models.pipeline.spec import Pipeline
from models.scorer import Scorer
from models.simulate import Simulated
from stream.redis import connect
from stream.scoring import Part, decode_part, render
from stream.settings import Settings
from stream.stepping import advance, profile_keys_of
from stream.store.keys import Position
from stream.store.outbox import make_outbox
from stream.store.redis_store import RedisStore, Write

__all__ = ["encoded_records", "make_bundle", "measure_stages"]

BATCH = 512
WARM_UP = 4  # batches that are not counted
ALERT_SHARE = 0.002  # of all events, which the threshold of the untrained model is set to
CHUNK = 4096


@dataclass(frozen=True, slots=True)
class _Record:
    """What a step needs of a Kafka record."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


def encoded_records(pipeline: Pipeline, simulated: Simulated) -> list[tuple[bytes, bytes, int]]:
    """(key, value, event time) of every simulated payment."""
    codec = Codec(pipeline)
    return [
        (str(row["card_id"]).encode(), codec.encode_event(row), int(str(row["timestamp"])))
        for row in simulated.event_rows()
    ]


def make_bundle(pipeline: Pipeline, simulated: Simulated, folder: Path) -> Path:
    """An untrained but real model: it costs what a trained one does, and its scores are as deterministic."""
    torch.manual_seed(0)
    windows = list(_windows(pipeline, simulated))
    spec = pipeline.detector
    detector = build_detector(spec.architecture, Layout(pipeline).inputs, spec.hidden, spec.embedding)
    detector.fit_scaler(windows[-1])
    detector.eval()
    scores = np.concatenate([scores_of(run_blocks(detector, part)) for part in windows])
    write_bundle(
        folder, pipeline, detector, calibration=Calibration.identity(),
        threshold=float(np.quantile(scores, 1 - ALERT_SHARE)), metrics={}, training={"seed": 0},
        golden=windows[-1].take(slice(0, 8)),
    )  # fmt: skip
    return folder


def _windows(pipeline: Pipeline, simulated: Simulated) -> Iterator[Encoded]:
    """Windows of all simulated payments, CHUNK at a time."""
    store, layout = MemoryStore(pipeline), Layout(pipeline)
    clock = np.maximum.accumulate(simulated.events["timestamp"])
    for first in range(0, len(simulated), CHUNK):
        part = slice(first, first + CHUNK)
        batch = columns_to_batch(layout, {name: column[part] for name, column in simulated.events.items()})
        yield store.step(batch, clock[part]).encoded


class _Stopwatch:
    """CPU time of the process by step, an item."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def __call__(self, name: str, items: int, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        result = function(*arguments)
        if items:
            self.times.setdefault(name, []).append((time.process_time() - began) / items * 1e6)
        return result

    def median(self, name: str) -> float:
        return median(self.times[name][WARM_UP:])


def measure_stages(
    pipeline: Pipeline, settings: Settings, scorer: Scorer, records: Sequence[tuple[bytes, bytes, int]], report: Report
) -> None:
    """Time the steps and check their answers; a real Redis holds the states."""
    torch.set_num_threads(1)
    batches = [
        [_Record(first + i, at, key, value) for i, (key, value, at) in enumerate(records[first : first + BATCH])]
        for first in range(0, len(records) - BATCH + 1, BATCH)
    ]
    watch = _Stopwatch()
    _road(pipeline, settings, scorer, batches, watch)
    _one_entity(pipeline, batches, watch)
    _explain(scorer, pipeline, batches[: WARM_UP + 8], watch)
    for name in ("decode", "load", "features", "score", "render", "store", "apply"):
        report.add(f"{name}, batch of {BATCH}", watch.median(name), "µs CPU an event")
    report.add("all of these", sum(watch.median(n) for n in watch.times if n not in APART), "µs CPU an event")
    for name in APART:
        report.add(name, watch.median(name), f"µs CPU {'an alert' if name == 'explain' else 'an event'}")


APART = ("features, all of one entity", "explain")


def _road(
    pipeline: Pipeline, settings: Settings, scorer: Scorer, batches: list[list[_Record]], watch: _Stopwatch
) -> None:
    """Steps 2 to 8 of the worker, as one partition; explanations are timed apart."""
    codec = Codec(pipeline)
    client: Any = connect(settings)
    store = RedisStore(client, codec.layout)
    quiet = SimpleNamespace(threshold=float("inf"), version=scorer.version)  # raises no alert
    memory, held, scored = MemoryStore(pipeline), None, 0
    tag = "bench"
    for records in batches:
        n = len(records)
        part: Part = watch("decode", n, decode_part, codec, tag, records, records[-1].offset + 1, held)
        expect(not part.decoded.bad, f"refused: {part.decoded.bad[:1]}")
        stored = watch("load", n, store.load, {tag: part.entities}, part.profile_keys)
        expect(stored.positions[tag] == held, "the position in Redis is another")
        places = profile_keys_of([part], store.formats)
        encoded: Encoded = watch("features", n, advance, codec.layout, [part], stored, places)
        outcome = part.outcome
        assert outcome is not None
        scores = watch("score", n, scorer.score, encoded)
        messages = watch("render", n, render, codec, part, quiet, encoded, scores, "bench")
        scored += len(messages.scores)
        position: Position = part.position
        increments = {name: [added] for name, added in outcome.increments.items()}
        args = (position.outbox_seq, store.formats, part.profile_keys, increments)

        def write(part: Part = part, held: Any = held, args: Any = args, states: Any = outcome.states_N) -> Any:
            outbox = make_outbox(*args)
            expect(store.store([Write(tag, held, part.position, outbox, part.entities, states)])[0], "fenced")
            return outbox

        outbox = watch("store", n, write)
        watch("apply", n, store.apply, [(tag, outbox)])
        held = position
        offline = memory.step(part.decoded.batch, part.clock_M).encoded
        expect(np.array_equal(offline.context_BC, encoded.context_BC), "features from Redis and from memory differ")
    expect(scored == sum(map(len, batches)), f"{scored} scores of {sum(map(len, batches))} events")
    client.close()


def _one_entity(pipeline: Pipeline, batches: list[list[_Record]], watch: _Stopwatch) -> None:
    """The worst batch: all events are of one card, so each depends on the one before it."""
    codec = Codec(pipeline)
    states, clock = codec.layout.empty_states(1), 0
    for records in batches[: WARM_UP + 16]:
        part = decode_part(codec, "one", records, records[-1].offset + 1, Position(clock_ms=clock))
        rings = {name: codec.layout.empty_profiles(pipeline.profiles[name], len(keys)) for name, keys in
                 part.profile_keys.items()}  # fmt: skip
        loaded = Loaded(states, np.zeros(len(records), np.int64), rings, part.ring_owner)
        done = watch(APART[0], len(records), step, codec.layout, part.decoded.batch, part.clock_M, loaded)
        expect(len(done.applied_A) == len(records), f"{len(done.applied_A)} events applied of {len(records)}")
        states, clock = done.states_N, int(part.clock_M[-1])
    expect(int(states["count"][0]) == BATCH * (WARM_UP + 16), f"the card's count is {states['count'][0]}")


def _explain(scorer: Scorer, pipeline: Pipeline, batches: list[list[_Record]], watch: _Stopwatch) -> None:
    """One alert at a time, as they mostly come; windows are full."""
    codec, memory = Codec(pipeline), MemoryStore(pipeline)
    for records in batches:
        part = decode_part(codec, "explain", records, records[-1].offset + 1, None)
        encoded = memory.step(part.decoded.batch, part.clock_M).encoded
        reasons = watch("explain", 1, scorer.explain, encoded.take(slice(0, 1)), pipeline.policy.reasons)
        expect(len(reasons[0]) == pipeline.policy.reasons, f"{len(reasons[0])} reasons")
