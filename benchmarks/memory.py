"""The worker's memory over many events: after the first two million, the line through it should be level.

The local broker keeps everything in memory, so producer and worker compress: some 60 bytes an event and as much a
score. The sender keeps a bounded backlog in front of the worker.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import psutil
from cyclopts import Parameter, validators

from benchmarks.harness import Report, Worker, expect, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import BLOCK, Rig
from benchmarks.workloads import uniform

__all__ = ["memory"]

MILLION = 1_000_000
AHEAD = 100_000  # events that wait in the broker
STOCK_BLOCKS = 10  # of events that come again and again under new ids
SETTLED_SHARE = 0.1  # of all events, whose memory is still growing; two million of twenty
BYTES_AN_EVENT = 400  # of the broker, for an event and its score, with room to spare


@dataclass(frozen=True, slots=True)
class _Sample:
    stored: int
    mib: float
    cpu_s: float
    at_s: float


def memory(
    *, millions: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 20, options: Options = DEFAULTS
) -> None:
    """Growth of the worker's memory over many events.

    Parameters
    ----------
    millions
        Of events; one million with --quick.
    """
    total = int(options.size(round(millions * MILLION), MILLION))
    report = Report(f"memory: one worker over {total:,} events")
    free = psutil.virtual_memory().available
    expect(free > total * BYTES_AN_EVENT, f"{free / 2**30:.1f} GiB of memory are free, too little for {total:,} events")
    with Rig.ready(uniform, pin=options.pin, seed=options.seed, settings={"kafka_compression": "lz4"}) as rig:
        with rig.worker() as worker:
            samples = _stream(rig, worker, total)
            found = worker.metrics()
        scored = found["lepton_events_total", ""]
        expect(scored == total, f"{scored:,.0f} events scored: expected {total:,}")
        repeats = found.get(("lepton_duplicates_skipped_total", ""), 0.0)
        expect(repeats == 0, f"{repeats:,.0f} events taken for repeats: expected none")
        report.add("events scored, each once", total)
        _report_settled([s for s in samples if s.stored >= total * SETTLED_SHARE], report)
        broker = next(p for p in map(psutil.Process, rig.local.pids) if "broker" in p.cmdline())
        report.add("memory of the broker, which keeps all", broker.memory_info().rss / total, "bytes an event")
    report.finish("memory", options.json)


def _stream(rig: Rig, worker: Worker, total: int) -> list[_Sample]:
    """Send all events, never far ahead of the worker; its memory after each block."""
    stock = [rig.workload.events(n * BLOCK, BLOCK) for n in range(STOCK_BLOCKS)]
    samples, said, number = [], time.monotonic(), 0
    while (sent := rig.sent_events) < total:
        block = stock[number % STOCK_BLOCKS].take(np.arange(min(BLOCK, total - sent)))
        rig.publish([rig.workload.again(block, sent)])
        number += 1
        rig.wait_stored(sent - AHEAD, worker)
        samples.append(_sample(rig, worker))
        if time.monotonic() - said > 30:
            said = time.monotonic()
            progress(f"{samples[-1].stored:,} events stored, {samples[-1].mib:.0f} MiB")
    rig.wait_stored(total, worker)
    return [*samples, _sample(rig, worker)]


def _sample(rig: Rig, worker: Worker) -> _Sample:
    return _Sample(rig.stored(), worker.memory_mib(), worker.cpu_s(), time.monotonic())


def _report_settled(settled: list[_Sample], report: Report) -> None:
    """What it cost, and the line of least squares through the memory."""
    first, last = settled[0], settled[-1]
    events = last.stored - first.stored
    report.add("worker", (last.cpu_s - first.cpu_s) / events * 1e6, "µs CPU an event")
    report.add("rate by the clock, sender on the other core", events / (last.at_s - first.at_s), "events/s")
    stored_S = np.array([s.stored for s in settled]) / MILLION
    mib_S = np.array([s.mib for s in settled])
    slope, _ = np.polyfit(stored_S, mib_S, 1)
    report.add(f"growth after {stored_S[0]:.2g} million events", float(slope), "MiB a million events")
    report.add("memory of the worker, then and at the end", f"{first.mib:.0f}, {last.mib:.0f}", "MiB")
    report.add("greatest", float(mib_S.max()), "MiB")
