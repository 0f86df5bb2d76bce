"""One worker on a prepared backlog, for each workload: what an event costs, and where its time goes."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Report, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import TOLERANCE, Rig, Stretch
from benchmarks.workloads import Workload, machines, sensors, skewed, uniform

__all__ = ["throughput"]

EVENTS, QUICK = 80_000, 30_000  # of a stretch whose share of alerts the threshold was set by
INT16_TOLERANCE = 5e-4  # as the golden case allows this engine
OBJECTIVE_MS = 1000  # throughput mode: batches as large as they may get; what they cost in latency, `latency` says
WARM_UP, TAIL = 0.25, 0.05  # of all events: at the start not counted yet, at the end not counted any more


def throughput(*, options: Options = DEFAULTS) -> None:
    """Scored events a second and CPU an event of one worker: uniform, skewed, sensors and machines."""
    report = Report("throughput: one worker on a backlog")
    stretches = {make.__name__: _measure(make, options, report) for make in (uniform, skewed, sensors, machines)}
    _measure(uniform, options, report, engine="native-int16")
    share = stretches["uniform"].cpu_us() / stretches["skewed"].cpu_us()
    report.add("skewed against uniform, rate a core", share, "of the uniform rate")
    report.finish("throughput", options.json)


def _measure(make: Callable[..., Workload], options: Options, report: Report, engine: str = "auto") -> Stretch:
    events, name = options.size(EVENTS, QUICK), make.__name__ + (f" by {engine}" if engine != "auto" else "")
    progress(f"{name}: the past, and a backlog of {events:,} events …")
    settings = {"latency_objective_ms": OBJECTIVE_MS, "engine": engine}
    with Rig.ready(make, pin=options.pin, seed=options.seed, settings=settings) as rig:
        rig.send(events)
        with rig.worker() as worker:
            stretch = rig.stretch(worker, int(events * WARM_UP), int(events * (1 - TAIL)))
            rig.wait_stored(events, worker)
            report.add(f"{name}: memory of the worker", worker.memory_mib(), "MiB")
        stretch.report(report, name)
        rig.check(report, name, INT16_TOLERANCE if engine != "auto" else TOLERANCE)
    return stretch
