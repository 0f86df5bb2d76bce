"""The worker's steps one by one, in one thread of this process: CPU µs an event, by the size of the batch.

Every figure is CPU time of this process, the median over batches, after a warm-up: what a busy machine does to the
clock is left out, and so is Redis' own CPU. Entities have full windows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, get_args

import numpy as np

from benchmarks.harness import Report, expect, on_core, progress
from benchmarks.history import History
from benchmarks.model import write_model
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import ALERT_SHARE, CORES, TOLERANCE
from benchmarks.road import Record, Road, records_of
from benchmarks.workloads import Workload, skewed, uniform
from models.engines import EngineName
from models.errors import BundleError
from models.features.encoded import Encoded
from models.scorer import Scorer, load_scorer
from stream.local import LocalServices
from stream.redis import connect
from stream.settings import load_settings
from stream.store.keys import event_tag

__all__ = ["steps"]

SIZES = {8: 150, 64: 80, 512: 30, 2048: 10}  # events of a batch: how many batches
WARM_UP = 4  # batches that are not counted
STEPS = ("decode", "load", "features", "score", "render", "store", "apply")
EXPLAINED = (1, 16)  # alerts at once
ROUNDS = 12  # of explaining, and of every engine
ENGINES_AGREE = 0.01  # of scores; bfloat16 among them


class Stopwatch:
    """CPU time of this process by step, µs an item."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def __call__(self, name: str, items: int, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time_ns()
        result = function(*arguments)
        self.times.setdefault(name, []).append((time.process_time_ns() - began) / items / 1000)
        return result

    def median(self, name: str) -> float:
        return median(self.times[name][WARM_UP:])


def steps(*, options: Options = DEFAULTS) -> None:
    """CPU an event of decode, load, features, score, render, store and apply; of explaining; of each engine."""
    report = Report("steps: CPU µs an event, one thread")
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name:
        folder = Path(name)
        workload = uniform(folder, seed=options.seed)
        history = History(workload)
        bundle = write_model(workload.pipeline, history.windows, history.windows, folder / "bundle", ALERT_SHARE)
        scorer = load_scorer(bundle, workload.pipeline)
        pinned = options.pin and len(CORES) > 1
        with on_core(CORES[1] if pinned else None):
            local = LocalServices(folder / "local")
            local.start()
        try:
            with on_core(CORES[0] if pinned else None):
                _by_size(workload, local, scorer, options, report)
                _hot(folder, local, scorer, options, report)
                _explain(scorer, history.windows, workload.pipeline.policy.reasons, report)
                _engines(workload, history.windows, bundle, report)
        finally:
            local.stop()
    report.finish("steps", options.json)


def _by_size(workload: Workload, local: LocalServices, scorer: Scorer, options: Options, report: Report) -> None:
    for size, batches in SIZES.items():
        progress(f"batches of {size} …")
        watch = _walk(workload, local, scorer, size, options.size(batches, WARM_UP + 3))
        for step in STEPS:
            report.add(f"{step}, batch of {size}", watch.median(step), "µs CPU an event")
        report.add(f"all of these, batch of {size}", sum(map(watch.median, STEPS)), "µs CPU an event")
        fixed = sum(map(watch.median, STEPS)) * size / 1000
        report.add(f"all of these, a batch of {size}", fixed, "ms CPU a batch")


def _hot(folder: Path, local: LocalServices, scorer: Scorer, options: Options, report: Report) -> None:
    """Batches in which many events are of one entity: the skewed workload, and the worst case."""
    size, batches = 512, options.size(SIZES[512], WARM_UP + 3)
    cases = {
        "1 % of the entities have half of the events": skewed(folder, seed=options.seed),
        "all of one entity": uniform(folder, entities=1, seed=options.seed),
    }
    for name, workload in cases.items():
        watch = _walk(workload, local, scorer, size, batches)
        report.add(f"features, batch of {size}, {name}", watch.median("features"), "µs CPU an event")
        report.add(f"all steps, batch of {size}, {name}", sum(map(watch.median, STEPS)), "µs CPU an event")


def _walk(workload: Workload, local: LocalServices, scorer: Scorer, size: int, batches: int) -> Stopwatch:
    """Batches down the road of the worker, on an empty Redis that is filled first; the answers are checked."""
    settings = load_settings(kafka_brokers=local.kafka_brokers, redis_port=local.redis_port)
    client: Any = connect(settings)
    client.flushall()
    history, watch = History(workload), Stopwatch()
    history.fill_past(client)
    history.fill_states(client, partitions=1)
    history.fill_own_profiles(client)
    road = Road(workload.pipeline, client, event_tag(0), watch)
    road.held = road.store.load({road.tag: []}, {}).positions[road.tag]
    events = workload.events(0, size * batches)
    records: list[Record] = records_of(events)
    found: dict[str, float] = {}
    for first in range(0, len(records), size):
        part = road.decode(records[first : first + size])
        encoded = road.features(part)
        scores = road.score(part, encoded, scorer)
        road.keep(part)
        found |= dict(zip(part.decoded.batch.event_id, scores.score_B.tolist(), strict=True))
    client.close()
    expect(len(found) == len(events), f"{len(found)} events scored of {len(events)}")
    expected = history.scores(events, scorer)
    off = max((abs(found[event_id] - score) for event_id, score in expected.items()), default=float("nan"))
    expect(off <= TOLERANCE, f"a score differs from memory's by {off:.2g}: expected at most {TOLERANCE:g}")
    return watch


def _explain(scorer: Scorer, windows: Encoded, reasons: int, report: Report) -> None:
    for alerts in EXPLAINED:
        watch = Stopwatch()
        for first in range(0, alerts * (WARM_UP + ROUNDS), alerts):
            found = watch("explain", alerts, scorer.explain, windows.take(slice(first, first + alerts)), reasons)
            expect([len(each) for each in found] == [reasons] * alerts, "an alert has too few reasons")
        report.add(f"explain, {alerts} at once", watch.median("explain"), "µs CPU an alert")


def _engines(workload: Workload, windows: Encoded, bundle: Path, report: Report) -> None:
    """Every engine that can run this model here, on the same windows."""
    chosen = load_scorer(bundle, workload.pipeline)
    expected = chosen.score(windows).score_B
    for name in get_args(EngineName)[1:]:  # the first is `auto`
        shown = f"engine {name}{', chosen' if name == chosen.engine else ''}"
        try:
            scorer = load_scorer(bundle, workload.pipeline, engine=name)
        except BundleError as error:
            report.add(shown, f"left out: {str(error)[:80]}")
            continue
        for size in SIZES:
            watch = Stopwatch()
            for n in range(WARM_UP + ROUNDS):
                start = n * size % (len(windows) - size + 1)
                watch("score", size, scorer.score, windows.take(slice(start, start + size)))
            report.add(f"{shown}, batch of {size}", watch.median("score"), "µs CPU an event")
        off = float(np.abs(scorer.score(windows).score_B - expected).max())
        expect(off <= ENGINES_AGREE, f"engine {name} differs by {off:.3g}: expected at most {ENGINES_AGREE:g}")
        report.add(f"{shown}, greatest difference of a score", off)
