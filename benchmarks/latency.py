"""How long an event takes at a steady rate: from its append time to its alert's, on fresh topics.

Append times are those of the records: the producers' clocks when they build a record, which the local broker keeps.
The sender builds records just before they are sent, without a linger; the worker's linger is LINGER_MS. The alert's
own append time leaves out its last leg, so the moment another process has it is reported, too.

What of it the broker is: a bare consumer with the worker's fetch settings, on the same topic at the same rate.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from benchmarks.harness import Report, expect, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.rig import ALERT_SHARE, Rig
from benchmarks.throughput import TAIL, WARM_UP
from benchmarks.topics import consumer_at
from benchmarks.workloads import Events, uniform

__all__ = ["latency"]

RATES = (500, 2000)
SECONDS, QUICK_SECONDS = 12, 6  # the local broker slows down with every record batch that it holds
SETTLED_S = 3.0  # of a steady rate, before its latencies count
BACKLOG, QUICK_BACKLOG = 80_000, 20_000  # to find the greatest rate
LINGER_MS = 2
PARTITIONS = 2  # the local broker slows down with every record batch, and each partition has its own
ALERTS_A_SECOND, MOST_ALERTS = 20, 0.05  # as the threshold is set; in the run several times as many
PATIENCE_S = 30.0
PERCENTILES = (50, 99, 99.9)


class _Named(msgspec.Struct):
    event_id: str


_event_id = msgspec.json.Decoder(_Named)


@dataclass(slots=True)
class _Heard:
    """Records that came, with the time they came at."""

    records: list[tuple[Any, float]] = field(default_factory=list)

    async def listen(self, consumer: Any) -> None:
        while True:
            fetched = await consumer.getmany(timeout_ms=1000)
            now_ms = time.time() * 1000
            for records in fetched.values():
                self.records += [(record, now_ms) for record in records]


def latency(*, options: Options = DEFAULTS) -> None:
    """Append to alert, at 500 and 2,000 events/s and at half of the greatest rate."""
    report = Report("latency: from the event's append to its alert")
    for rate in RATES:
        _measure(rate, options, report)
    _measure(_greatest(options, report) // 2, options, report)
    report.finish("latency", options.json)


def _greatest(options: Options, report: Report) -> int:
    """Events a second by the clock on a backlog, with the settings of this benchmark."""
    events = options.size(BACKLOG, QUICK_BACKLOG)
    progress(f"the greatest rate, on {events:,} events …")
    with _rig(options, ALERT_SHARE) as rig:
        rig.send(events)
        with rig.worker() as worker:
            rate = rig.stretch(worker, int(events * WARM_UP), int(events * (1 - TAIL))).rate
    report.add("greatest rate with these settings", rate, "events/s")
    return int(rate)


def _rig(options: Options, alert_share: float) -> Any:
    return Rig.ready(
        uniform, pin=options.pin, seed=options.seed, alert_share=alert_share,
        settings={"kafka_linger_ms": LINGER_MS, "partitions": PARTITIONS},
    )  # fmt: skip


def _measure(rate: int, options: Options, report: Report) -> None:
    seconds, name = options.size(SECONDS, QUICK_SECONDS), f"{rate:,} events/s"
    progress(f"{name} for {seconds} s …")
    share = min(ALERTS_A_SECOND / rate, MOST_ALERTS)
    with _rig(options, share) as rig:
        warm, counted = rig.workload.events(0, rate), rig.workload.events(rate, rate * seconds)
        with rig.worker() as worker:
            asyncio.run(rig.sender.paced(warm, rate))
            rig.wait_stored(len(warm), worker)
            cpu_s, began = worker.cpu_s(), time.monotonic()
            alerts, late_s = asyncio.run(_listen_and_send(rig, counted, rate))
            rig.wait_stored(len(warm) + len(counted), worker)
            share = (worker.cpu_s() - cpu_s) / (time.monotonic() - began)
        rig.sent = [warm, counted]
        scores = rig.check(report, name)
        report.add(f"{name}: worker's share of its core", share * 100, "%")
        report.add(f"{name}: latest tick of the sender", late_s * 1000, "ms")
        _report(rig, name, alerts, scores, report)
        more = rig.workload.events(len(warm) + len(counted), rate * max(seconds // 3, 3))
        fetched = asyncio.run(_bare(rig, more, rate))
        _percentiles(report, f"{name}: event append to a bare consumer", fetched)


async def _listen_and_send(rig: Rig, events: Events, rate: int) -> tuple[_Heard, float]:
    """Send at the rate while a consumer notes which alert comes when. Scores are read afterwards: fewer readers."""
    alerts = _Heard()
    consumer = await consumer_at(rig.settings, [rig.pipeline.topic("alerts")], end=True)
    listening = asyncio.create_task(alerts.listen(consumer))
    late_s = await rig.sender.paced(events, rate)
    wanted = rig.sent_events
    await _until(lambda: rig.stored() >= wanted)
    await asyncio.sleep(0.5)  # an event is stored after its alert is acknowledged, which may be read still later
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await consumer.stop()
    return alerts, late_s


async def _bare(rig: Rig, events: Events, rate: int) -> list[float]:
    """The same rate with no worker: milliseconds from append until a consumer has the event."""
    heard = _Heard()
    consumer = await consumer_at(rig.settings, [rig.pipeline.topic("events")], end=True)
    listening, began_ms = asyncio.create_task(heard.listen(consumer)), time.time() * 1000
    await rig.sender.paced(events, rate)
    await _until(lambda: len(heard.records) >= len(events))
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)
    await consumer.stop()
    return [at - record.timestamp for record, at in heard.records if record.timestamp >= began_ms]


async def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    expect(done(), f"not everything came within {PATIENCE_S:g} s")


def _report(rig: Rig, name: str, alerts: _Heard, scores: list[Any], report: Report) -> None:
    """Latencies of the counted events, after the rate has settled."""
    appended = rig.sender.appended
    start_ms = appended[rig.sent[1].ids[0]] + SETTLED_S * 1000
    kinds: dict[str, list[tuple[Any, float]]] = {
        "alert": alerts.records, "score": [(record, float("nan")) for record in scores],
    }  # fmt: skip
    for kind, records in kinds.items():
        named = [(appended[_event_id.decode(record.value).event_id], record.timestamp, at) for record, at in records]
        counted = np.array([row for row in named if row[0] >= start_ms], dtype=np.float64)
        expect(len(counted) > 0, f"no {kind} at {name}")
        report.add(f"{name}: {kind}s counted", len(counted))
        _percentiles(report, f"{name}: event append to {kind} append", counted[:, 1] - counted[:, 0])
        if kind == "alert":
            _percentiles(report, f"{name}: event append to {kind} read", counted[:, 2] - counted[:, 0])


def _percentiles(report: Report, name: str, ms: Any) -> None:
    shown = np.percentile(ms, PERCENTILES)
    for percentile, value in zip(PERCENTILES, shown.tolist(), strict=True):
        report.add(f"{name}, p{percentile:g}", float(value), "ms")
