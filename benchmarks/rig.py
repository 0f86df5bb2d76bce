"""A worker under measurement: fresh services, a workload with its past, a backlog, and what a stretch of it cost.

CPU comes from the operating system, process by process: the worker's own is told apart from the broker's and Redis'.
A stretch begins after a warm-up and ends before the backlog does, at positions that Redis says are stored.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import Report, Worker, environment_of, expect, on_core, progress
from benchmarks.history import History
from benchmarks.model import write_model
from benchmarks.topics import Sender, read_all
from benchmarks.workloads import Events, Workload
from models.errors import LeptonError
from models.messages import decode_score
from models.registry import Registry
from models.scorer import load_scorer
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.redis import connect
from stream.settings import Settings, load_settings
from stream.store.keys import Position, event_tag, position_key

__all__ = ["ALERT_SHARE", "BLOCK", "CORES", "TOLERANCE", "Rig", "Stretch"]

BLOCK = 20_000  # events made and sent at a time
POLL_S = 0.02
STALL_S = 60.0  # without anything stored
ALERT_SHARE = 0.001  # of all events; explaining an alert costs as much as scoring many
TOLERANCE = 1e-6  # of a score, against memory; the engines promise equality on one machine
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@dataclass(frozen=True, slots=True)
class _Moment:
    at_s: float
    stored: int
    worker_s: float
    broker_s: float
    redis_s: float
    metrics: dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """What a counted stretch came to, an event."""

    first: _Moment = field(repr=False)
    last: _Moment = field(repr=False)

    @property
    def events(self) -> int:
        return self.last.stored - self.first.stored

    @property
    def rate(self) -> float:
        """Events a second by the clock."""
        return self.events / (self.last.at_s - self.first.at_s)

    def cpu_us(self, of: str = "worker") -> float:
        """CPU an event of the worker, the broker or redis."""
        spent_s: float = getattr(self.last, f"{of}_s") - getattr(self.first, f"{of}_s")
        return spent_s / self.events * 1e6

    @property
    def busy(self) -> float:
        """The worker's CPU as a share of one core."""
        return (self.last.worker_s - self.first.worker_s) / (self.last.at_s - self.first.at_s)

    def stages(self) -> dict[str, float]:
        """µs by the clock an event spends in each stage of the worker; stages may overlap."""
        name, found = "lepton_stage_seconds_sum", {}
        for (metric, stage), after in self.last.metrics.items():
            if metric == name:
                found[stage] = (after - self.first.metrics.get((name, stage), 0.0)) / self.events * 1e6
        return found

    def batch(self) -> float:
        """Mean events of a batch."""
        return self._gain("lepton_batch_events_sum") / max(self._gain("lepton_batch_events_count"), 1)

    def alerts(self) -> float:
        """Alerts an event."""
        return self._gain("lepton_alerts_total") / self.events

    def _gain(self, metric: str) -> float:
        return self.last.metrics.get((metric, ""), 0.0) - self.first.metrics.get((metric, ""), 0.0)

    def report(self, report: Report, name: str) -> None:
        """The rows every stretch has."""
        report.add(f"{name}: worker", self.cpu_us(), "µs CPU an event")
        report.add(f"{name}: rate a core of worker CPU", 1e6 / self.cpu_us(), "events/s")
        report.add(f"{name}: rate by the clock", self.rate, "events/s")
        report.add(f"{name}: broker", self.cpu_us("broker"), "µs CPU an event")
        report.add(f"{name}: Redis", self.cpu_us("redis"), "µs CPU an event")
        report.add(f"{name}: mean batch", self.batch(), "events")
        report.add(f"{name}: alerts", self.alerts() * 100, "% of the events")
        for stage, us in self.stages().items():
            report.add(f"{name}: in {stage}", us, "µs by the clock an event")


class Rig:
    """Fresh services that hold a workload's past; `with Rig.ready(…)`."""

    def __init__(self, workload: Workload, settings: Settings, local: LocalServices, folder: Path, pin: bool) -> None:
        self.workload, self.settings, self.local, self.folder = workload, settings, local, folder
        self.pipeline = workload.pipeline
        self.core = CORES[0] if pin and len(CORES) > 1 else None
        self.past = History(workload)
        self.client: Any = connect(settings)
        self.sender = Sender(settings, self.pipeline.topic("events"), settings.kafka_compression)
        self.sent: list[Events] = []
        self._reference: dict[str, float] = {}
        ensure_topics(settings, self.pipeline)
        self.past.fill_past(self.client)
        before = self._redis_bytes()
        self.past.fill_states(self.client, settings.partitions)
        self.bytes_of_states = self._redis_bytes() - before
        self.past.fill_own_profiles(self.client)
        self.bytes_of_profiles = self._redis_bytes() - before - self.bytes_of_states
        self._services = [psutil.Process(pid) for pid in local.pids]

    @classmethod
    @contextmanager
    def ready(
        cls, make: Callable[..., Workload], *, alert_share: float = ALERT_SHARE, pin: bool = True,
        cluster: bool = False, settings: dict[str, Any] | None = None, **workload: Any,
    ) -> Iterator[Rig]:  # fmt: skip
        """Services that run, filled, with a promoted model whose threshold `alert_share` of the events reach.

        pin: the worker has one core to itself; broker, Redis and this process share another. settings: of the
        worker, beside its defaults. workload: arguments of `make`.
        """
        with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name, _pinned(pin):
            folder = Path(name)
            made = make(folder, **workload)
            with LocalServices(folder / "local", cluster=cluster) as local:
                options: dict[str, Any] = {
                    "kafka_brokers": local.kafka_brokers, "redis_port": local.redis_port, "redis_cluster": cluster,
                    "pipeline": str(made.path), "registry": folder / "registry", "http_port": 0, "partitions": 4,
                }  # fmt: skip
                rig = cls(made, load_settings(**options | (settings or {})), local, folder, pin)
                rig.promote(alert_share)
                try:
                    yield rig
                finally:
                    rig.client.close()

    def promote(self, alert_share: float) -> None:
        """A model with this share of alerts becomes the champion; `bundle` is where it is."""
        counted = History(self.workload).windows_ahead()
        self.bundle = write_model(self.pipeline, self.past.windows, counted, self.folder / "bundle", alert_share)
        self.scorer = load_scorer(self.bundle, self.pipeline)
        registry = Registry(self.settings.registry)
        registry.promote(self.pipeline.name, registry.publish(self.bundle), "benchmark")

    def send(self, count: int) -> None:
        """The next `count` events of the workload as a backlog."""
        first = self.sent_events
        blocks = [self.workload.events(first + a, min(BLOCK, count - a)) for a in range(0, count, BLOCK)]
        self.sent += blocks
        self.publish(blocks)

    def publish(self, blocks: list[Events]) -> None:
        """Put events on the topic; `check` does not look for them."""
        asyncio.run(self.sender.backlog(blocks))

    def first(self, count: int) -> list[Events]:
        """The first `count` of the events that were sent and kept."""
        found, missing = [], count
        for events in self.sent:
            found.append(events if len(events) <= missing else events.take(np.arange(missing)))
            missing -= len(found[-1])
        return [events for events in found if len(events)]

    @property
    def sent_events(self) -> int:
        return sum(self.sender.next_offsets)

    @contextmanager
    def worker(self, name: str = "worker", core: int | None = None, **more: Any) -> Iterator[Worker]:
        """A worker, by itself on its core when the rig is pinned. more: environment variables of its own."""
        environment = environment_of(self.settings) | more
        with Worker.running(environment, self.folder / f"{name}.log", self.core if core is None else core) as worker:
            yield worker

    def stored(self) -> int:
        """Events whose states and position are in Redis."""
        name = self.pipeline.name
        packed = [self.client.get(position_key(name, event_tag(p))) for p in range(self.settings.partitions)]
        return sum(Position.unpack(position).next_offset for position in packed)

    def wait_stored(self, count: int, worker: Worker | None = None) -> None:
        """Return when so many events are stored. Raises LeptonError when nothing moves for STALL_S."""
        before, deadline = -1, 0.0
        while (now := self.stored()) < count:
            if worker is not None:
                worker.check_alive()
            if now != before:
                before, deadline = now, time.monotonic() + STALL_S
            elif time.monotonic() > deadline:
                raise LeptonError(f"{now} of {count} events stored, and no progress for {STALL_S:g} s")
            time.sleep(POLL_S)

    def stretch(self, worker: Worker, first: int, last: int) -> Stretch:
        """What the worker spends on the events from the `first` stored to the `last`."""
        self.wait_stored(first, worker)
        start = self._moment(worker)
        self.wait_stored(last, worker)
        return Stretch(start, self._moment(worker))

    def check(self, report: Report, name: str, tolerance: float = TOLERANCE) -> list[Any]:
        """Every event that was sent has one score, and those of the templates are what memory says; the records."""
        expected = sum(map(len, self.sent))
        records = asyncio.run(read_all(self.settings, self.pipeline.topic("scores"), expected))
        scores = {s.event_id: s.score for s in (decode_score(r.value) for r in records)}
        expect(len(records) == expected, f"{len(records)} scores of {expected} events: expected one each")
        expect(len(scores) == expected, f"{len(scores)} events have a score: expected {expected}")
        reference = self.reference()
        differences = [abs(float(np.float32(scores[event_id])) - score) for event_id, score in reference.items()]
        off = max(differences, default=float("nan"))
        expect(off <= tolerance, f"a score differs from memory's by {off:.2g}: expected at most {tolerance:g}")
        report.add(f"{name}: events with exactly one score", expected)
        report.add(f"{name}: scores computed again in memory", len(reference))
        report.add(f"{name}: greatest difference", off)
        return records

    def reference(self) -> dict[str, float]:
        """The score of each of the templates' events that was sent and kept, computed in memory."""
        if not self._reference:
            ahead = History(self.workload)  # what `past` holds stays as it is
            for events in self.sent:
                self._reference |= ahead.scores(events, self.scorer)
        return self._reference

    def _redis_bytes(self) -> int:
        return 0 if self.settings.redis_cluster else int(self.client.info("memory")["used_memory"])

    def _moment(self, worker: Worker) -> _Moment:
        metrics = worker.metrics()
        usage = {"broker": 0.0, "redis": 0.0}
        for process in self._services:
            times = process.cpu_times()
            usage["broker" if "broker" in process.cmdline() else "redis"] += times.user + times.system
        return _Moment(time.monotonic(), self.stored(), worker.cpu_s(), usage["broker"], usage["redis"], metrics)


@contextmanager
def _pinned(pin: bool) -> Iterator[None]:
    """This process, and the services it starts, on one core; the worker gets the other."""
    if not pin or len(CORES) < 2:
        progress("nothing is pinned to a core")
        yield
        return
    with on_core(CORES[1]):
        yield
