"""What an event costs: each step by itself, and the worker as it runs, with a real broker and a real Redis.

Payments are simulated from a seed. First the steps (`benchmarks.stages`), then a worker process: its throughput
and CPU on a backlog, and its latency at a steady rate. Broker, Redis, sender and reader share the machine with the
worker, so its CPU an event says more than its rate.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition
from cyclopts import Parameter

from benchmarks.harness import Report, Worker, environment_of, expect, progress, read_topic
from benchmarks.stages import encoded_records, make_bundle, measure_stages
from models.bundle import load_bundle
from models.codec import Codec
from models.messages import decode_score
from models.pipeline import Pipeline, load_pipeline
from models.registry import Registry
from models.scorer import Scorer
from models.simulate import Simulated, simulate
from stream.kafka import client_options, ensure_topics
from stream.local import LocalServices
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings, load_settings

__all__ = ["hot_path"]

NAME = "bench-payments"
CUSTOMERS, MERCHANTS, DAYS = 2000, 300, 30
STAGE_BATCHES, BATCH = 60, 512
WARM_UP, BACKLOG = 5000, 40_000
RATE, RATE_S = 1000, 15
SETTLED_S = 2.0  # of a steady rate before its latencies count
PATIENCE_S = 120


def hot_path(*, seed: int = 7, as_json: Annotated[bool, Parameter(name="--json")] = False) -> None:
    """CPU an event of every step and of the worker; its throughput and latency.

    Parameters
    ----------
    seed
        Of the simulated payments.
    as_json
        Print JSON.
    """
    report = Report("hot path: simulated payments")
    simulated = simulate(seed=seed, customers=CUSTOMERS, merchants=MERCHANTS, days=DAYS)
    needed = WARM_UP + BACKLOG + RATE * RATE_S
    expect(len(simulated) >= needed, f"{len(simulated)} payments simulated: expected at least {needed}")
    progress(f"{len(simulated):,} payments simulated; a model is made …")
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as name, LocalServices(Path(name) / "local") as local:
        folder = Path(name)
        pipeline = _pipeline(folder)
        settings = load_settings(
            kafka_brokers=local.kafka_brokers, redis_port=local.redis_port, pipeline=str(folder / f"{NAME}.toml"),
            http_port=0, registry=folder / "registry", log_level="WARNING",
        )  # fmt: skip
        bundle = make_bundle(pipeline, simulated, folder / "bundle")
        progress("steps one by one …")
        records = encoded_records(pipeline, simulated)[: STAGE_BATCHES * BATCH]
        measure_stages(pipeline, settings, Scorer(load_bundle(bundle, pipeline)), records, report)
        registry = Registry(settings.registry)
        registry.promote(NAME, registry.publish(bundle), "benchmark")
        asyncio.run(_measure_worker(pipeline, settings, simulated, folder, report))
    report.print(as_json)


def _pipeline(folder: Path) -> Pipeline:
    text = (resources.files("models") / "pipelines" / "payments.toml").read_text(encoding="utf-8")
    path = folder / f"{NAME}.toml"
    path.write_text(text.replace('name = "payments"', f'name = "{NAME}"', 1), encoding="utf-8")
    return load_pipeline(path)


async def _measure_worker(
    pipeline: Pipeline, settings: Settings, simulated: Simulated, folder: Path, report: Report
) -> None:
    ensure_topics(settings, pipeline)
    events = Rows.of_columns(simulated.events, "timestamp")
    first, second, last = WARM_UP, WARM_UP + BACKLOG, WARM_UP + BACKLOG + RATE * RATE_S
    with Worker.running(environment_of(settings), folder / "worker.log") as worker:
        await _publish(settings, pipeline, _cut(events, 0, first))
        progress(f"a backlog of {BACKLOG:,} events …")
        cpu_s, began = worker.cpu_s(), time.monotonic()
        await _publish(settings, pipeline, _cut(events, first, second))
        report.add("backlog", BACKLOG / (time.monotonic() - began), "events/s")
        report.add("worker on a backlog", (worker.cpu_s() - cpu_s) / BACKLOG * 1e6, "µs CPU an event")
        progress(f"{RATE} events/s for {RATE_S} s …")
        reader = _Reader(settings, pipeline)
        reading = asyncio.create_task(reader.run())
        await reader.started.wait()
        cpu_s = worker.cpu_s()
        await _publish(settings, pipeline, _cut(events, second, last), Pace(rate=RATE))
        report.add(f"worker at {RATE} events/s", (worker.cpu_s() - cpu_s) / (last - second) * 1e6, "µs CPU an event")
        while reader.waiting:
            await asyncio.sleep(0.05)
        reading.cancel()
        report.add("memory of the worker", worker.memory_mib(), "MiB")
    for percentile, value in zip((50, 99), reader.percentiles((50, 99)), strict=True):
        report.add(f"latency p{percentile} at {RATE} events/s, append to score read", value, "ms")
    _check(settings, pipeline, simulated, last, report)


def _check(settings: Settings, pipeline: Pipeline, simulated: Simulated, sent: int, report: Report) -> None:
    """Every event that was sent has one score, and nothing else has one."""
    counts = Counter(decode_score(r.value).event_id for r in read_topic(settings, pipeline.topic("scores")))
    expected = set(simulated.events["transaction_id"][:sent].tolist())
    expect(set(counts) == expected, f"{len(counts)} events have scores: expected {len(expected)}")
    expect(counts.total() == sent, f"{counts.total()} scores of {sent} events: expected one each")
    alerts = {json.loads(r.value)["alert_id"] for r in read_topic(settings, pipeline.topic("alerts"))}
    expect(len(alerts) > 0, "no event raised an alert")
    report.add("events with exactly one score", len(counts))
    report.add("alerts, explained", len(alerts))


async def _publish(settings: Settings, pipeline: Pipeline, events: Rows, pace: Pace | None = None) -> None:
    """Publish events and wait until they are stored."""
    done = await publish(settings, pipeline, events, pace=pace)
    await wait_stored(settings, pipeline, done.next_offsets, PATIENCE_S)


def _cut(events: Rows, start: int, stop: int) -> Rows:
    return Rows(events.time_ms[start:stop], lambda a, b: events.read(start + a, min(start + b, stop)))


class _Reader:
    """Reads events and scores as they come; latency ends when this process has the score."""

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        self._settings, self._pipeline = settings, pipeline
        self._event_id = pipeline.json_key(pipeline.pipeline.event_id)
        self._codec = Codec(pipeline)
        self._appended: dict[str, int] = {}
        self._read_ms: dict[str, float] = {}
        self.started = asyncio.Event()

    @property
    def waiting(self) -> bool:
        return len(self._read_ms) < RATE * RATE_S or len(self._appended) < RATE * RATE_S

    async def run(self) -> None:
        topics = {self._pipeline.topic(kind): kind for kind in ("events", "scores")}
        consumer = AIOKafkaConsumer(**client_options(self._settings), group_id=None, fetch_max_wait_ms=5)
        await consumer.start()
        try:
            partitions = [TopicPartition(t, p) for t in topics for p in range(self._settings.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            await asyncio.gather(*(consumer.position(tp) for tp in partitions))
            self.started.set()
            while True:
                fetched = await consumer.getmany(timeout_ms=50)
                now_ms = time.time() * 1000
                for tp, records in fetched.items():
                    self._take(topics[tp.topic], records, now_ms)
        finally:
            await consumer.stop()

    def percentiles(self, wanted: tuple[int, ...]) -> list[float]:
        """Of the latencies in milliseconds, after the rate has settled."""
        start = min(self._appended.values()) + SETTLED_S * 1000
        found = [self._read_ms[i] - at for i, at in self._appended.items() if at >= start]
        return [float(value) for value in np.percentile(found, wanted)]

    def _take(self, kind: str, records: list[Any], now_ms: float) -> None:
        for record in records:
            if kind == "events":
                self._appended[str(self._codec.decode_one(record.value)[self._event_id])] = record.timestamp
            else:
                self._read_ms[decode_score(record.value).event_id] = now_ms
