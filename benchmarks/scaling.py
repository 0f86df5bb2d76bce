"""One worker and two of one consumer group, on one Redis and on a cluster; and what joining and leaving costs.

Two workers share two cores with the broker and Redis, so clocks say little: what counts is how many events a second
of each worker's own CPU gets done. Two workers scale by the sum of both against one alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.harness import Report, Worker, expect, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import CORES, Rig
from benchmarks.throughput import OBJECTIVE_MS, TAIL, WARM_UP
from benchmarks.workloads import uniform

__all__ = ["scaling"]

EVENTS, QUICK = 200_000, 30_000
RATE = 2000  # events a second while a worker joins and leaves
PHASE_S, QUICK_PHASE_S = 12, 8  # alone, together, and alone again
MOST_S = 120  # of events; a worker needs some seconds to start
SESSION_TIMEOUT_S = 4.0
POLL_S = 0.05
SETTINGS = {"session_timeout_s": SESSION_TIMEOUT_S}


def scaling(*, options: Options = DEFAULTS) -> None:
    """Per-worker rate with one and two workers, on one Redis and on a cluster of three nodes."""
    report = Report("scaling: one worker and two")
    for cluster in (False, True):
        where = "cluster" if cluster else "one Redis"
        one = _backlog(1, cluster, options, report, where)
        two = _backlog(2, cluster, options, report, where)
        report.add(f"{where}: two workers against one, by CPU", two / one, "times the rate")
    _join_and_leave(options, report)
    report.finish("scaling", options.json)


def _backlog(count: int, cluster: bool, options: Options, report: Report, where: str) -> float:
    """Events a second of worker CPU, added up over the workers."""
    name, events = f"{where}, {count} worker{'s' * (count > 1)}", options.size(EVENTS, QUICK)
    progress(f"{name} …")
    settings = SETTINGS | {"latency_objective_ms": OBJECTIVE_MS}
    with Rig.ready(uniform, pin=options.pin, seed=options.seed, cluster=cluster, settings=settings) as rig:
        with ExitStack() as stack:
            workers = [stack.enter_context(rig.worker(f"worker-{n}", _core(n, options))) for n in range(count)]
            _wait_shared(workers)
            rig.send(events)
            rig.wait_stored(int(events * WARM_UP))
            before = [_scored_and_cpu(worker) for worker in workers]
            began, stored = time.monotonic(), rig.stored()
            rig.wait_stored(int(events * (1 - TAIL)))
            after = [_scored_and_cpu(worker) for worker in workers]
            rate = (rig.stored() - stored) / (time.monotonic() - began)
            rig.wait_stored(events)
        rig.check(report, name)
    rates = [(e1 - e0) / (c1 - c0) for (e0, c0), (e1, c1) in zip(before, after, strict=True) if e1 > e0]
    expect(len(rates) == count, f"{len(rates)} of {count} workers scored anything")
    for n, one in enumerate(rates):
        report.add(f"{name}: worker {n + 1}", 1e6 / one, "µs CPU an event")
    report.add(f"{name}: events a second of worker CPU, added up", sum(rates), "events/s")
    report.add(f"{name}: by the clock, cores shared with everything", rate, "events/s")
    return sum(rates)


def _join_and_leave(options: Options, report: Report) -> None:
    """The longest time without a score, of any partition, when a second worker joins and when it leaves."""
    progress(f"joining and leaving at {RATE:,} events/s …")
    phase_s = options.size(PHASE_S, QUICK_PHASE_S)
    with Rig.ready(uniform, pin=options.pin, seed=options.seed, settings=SETTINGS) as rig:
        events, enough = rig.workload.events(0, RATE * MOST_S), threading.Event()
        send = lambda: asyncio.run(rig.sender.paced(events, RATE, enough.is_set))  # noqa: E731
        with rig.worker("first") as first:
            sending = threading.Thread(target=send)
            sending.start()
            time.sleep(phase_s)
            started_ms = time.time() * 1000
            with rig.worker("second", _core(1, options)) as second:
                _wait_shared([first, second])
                ready_ms = time.time() * 1000
                time.sleep(phase_s)
                left_ms = time.time() * 1000
            time.sleep(phase_s)
            enough.set()
            sending.join()
            rig.wait_stored(rig.sent_events, first)
        rig.sent = [events.take(np.arange(rig.sent_events))]
        records = rig.check(report, "joining and leaving")
    report.add("a worker starts, until it is ready", (ready_ms - started_ms) / 1000, "s")
    for name, from_ms, to_ms in (("joins", started_ms, left_ms), ("leaves", left_ms, float("inf"))):
        gaps = _gaps(records, from_ms, to_ms)
        report.add(f"longest time without a score when a worker {name}, any partition", max(gaps.values()), "s")
        report.add(f"longest time without a score when a worker {name}, all partitions", gaps[-1], "s")


def _gaps(records: list[Any], from_ms: float, to_ms: float) -> dict[int, float]:
    """Seconds of the longest gap between scores by partition; -1: between scores of any partition."""
    times: dict[int, list[int]] = {-1: []}
    for record in records:
        at, partition = record.timestamp, record.partition
        if from_ms <= at <= to_ms:
            times.setdefault(partition, []).append(at)
            times[-1].append(at)
    return {p: float(np.diff(np.sort(at)).max(initial=0)) / 1000 for p, at in times.items()}


def _wait_shared(workers: list[Worker]) -> None:
    """Return when every worker has partitions: a group settles some time after its last member is ready."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if all(("lepton_lag_events", "") in worker.metrics() for worker in workers):
            return
        time.sleep(0.2)
    expect(False, "a worker got no partition within a minute")


def _scored_and_cpu(worker: Worker) -> tuple[float, float]:
    return worker.metrics().get(("lepton_events_total", ""), 0.0), worker.cpu_s()


def _core(n: int, options: Options) -> int | None:
    return CORES[n % len(CORES)] if options.pin and CORES else None
