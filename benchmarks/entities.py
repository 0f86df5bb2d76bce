"""Ten thousand entities in Redis against a million: the rate of one worker, and the bytes an entity takes."""

from __future__ import annotations

import psutil

from benchmarks.harness import Report, expect, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import Rig, Stretch
from benchmarks.throughput import OBJECTIVE_MS, TAIL, WARM_UP
from benchmarks.workloads import uniform

__all__ = ["entities"]

FEW, MANY, QUICK_MANY = 10_000, 1_000_000, 40_000
EVENTS, QUICK = 200_000, 20_000
BYTES_EACH = 8192  # of Redis, for a state and the profile of a device


def entities(*, options: Options = DEFAULTS) -> None:
    """The same events over 10,000 and over 1,000,000 entities that Redis knows."""
    report = Report("entities: how much the number of entities matters")
    many = options.size(MANY, QUICK_MANY)
    free = psutil.virtual_memory().available
    expect(free > many * BYTES_EACH, f"{free / 2**30:.1f} GiB of memory are free, too little for {many:,} entities")
    stretches = [_measure(count, options, report) for count in (FEW, many)]
    report.add(f"rate a core, {many:,} against {FEW:,}", stretches[0].cpu_us() / stretches[1].cpu_us(), "of the rate")
    report.finish("entities", options.json)


def _measure(count: int, options: Options, report: Report) -> Stretch:
    name, events = f"{count:,} entities", options.size(EVENTS, QUICK)
    progress(f"{name}: filling Redis …")
    settings = {"latency_objective_ms": OBJECTIVE_MS}
    with Rig.ready(uniform, pin=options.pin, seed=options.seed, entities=count, settings=settings) as rig:
        report.add(f"{name}: state", rig.past.codec.layout.state_dtype.itemsize, "bytes")
        report.add(f"{name}: Redis, state with its key", rig.bytes_of_states / count, "bytes an entity")
        report.add(f"{name}: Redis, own profile with its key", rig.bytes_of_profiles / count, "bytes an entity")
        rig.send(events)
        with rig.worker() as worker:
            stretch = rig.stretch(worker, int(events * WARM_UP), int(events * (1 - TAIL)))
            rig.wait_stored(events, worker)
        stretch.report(report, name)
        rig.check(report, name)
    return stretch
