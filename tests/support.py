"""What end-to-end tests share: a quickly made model, worker processes, sending to topics and reading them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from models.bundle_write import write_bundle
from models.calibration import Calibration
from models.codec import columns_to_batch
from models.detectors import build_detector
from models.engines.base import scores_of
from models.engines.torch_engine import TorchEngine
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.simulate import Simulated
from stream.kafka import client_options
from stream.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0


def encode_columns(pipeline: Pipeline, columns: Mapping[str, Any]) -> Encoded:
    """Windows of events given as columns by field name, in event-time order, as one partition."""
    batch = columns_to_batch(Layout(pipeline), columns)
    return MemoryStore(pipeline).step(batch, np.maximum.accumulate(batch.time_M)).encoded


def simulated_windows(pipeline: Pipeline, simulated: Simulated, count: int = 2000) -> Encoded:
    """Windows of the first simulated payments: enough to scale a detector's inputs by."""
    return encode_columns(pipeline, {name: column[:count] for name, column in simulated.events.items()})


def publish_model(
    pipeline: Pipeline, registry: Path, windows: Encoded, *, seed: int = 0, quantile: float = 0.98, folder: Path,
    promote: bool = True,
) -> str:  # fmt: skip
    """An untrained but real model; scores are arbitrary and deterministic. Returns its version.

    quantile: of the scores of `windows`, where the alert threshold is put.
    """
    torch.manual_seed(seed)
    detector = build_detector(pipeline.detector.architecture, Layout(pipeline).inputs, hidden=16, embedding=4)
    detector.fit_scaler(windows)
    detector.eval()
    scores = scores_of(TorchEngine(detector).logits(windows))
    bundle = write_bundle(
        folder, pipeline, detector, calibration=Calibration.identity(),
        threshold=float(np.quantile(scores, quantile)), metrics={}, training={"seed": seed},
        golden=windows.take(slice(0, 8)),
    )  # fmt: skip
    store = Registry(registry)
    version = store.publish(bundle.folder)
    if promote:
        store.promote(pipeline.name, version, "test")
    return version


class Worker:
    """A `python -m stream worker` process; its log is kept for failures. Killed when the context ends."""

    def __init__(self, settings: Settings, log: Path, **overrides: object) -> None:
        self.log = log
        values = settings.model_dump(exclude_defaults=True) | overrides
        environment = {f"LEPTON_{name.upper()}": str(value) for name, value in values.items()}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stream", "worker"], cwd=ROOT, stdout=output, stderr=output,
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: as if the machine were gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the worker does not stop in {timeout_s} s:\n{self.text()[-3000:]}") from None

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    async def logs(self, text: str, times: int = 1, timeout_s: float = START_S) -> None:
        """Wait for a text in the log. Raises TimeoutError, also when the process ends without it."""
        deadline = time.monotonic() + timeout_s
        while self.text().count(text) < times:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"{text!r} not in the worker's log:\n{self.text()[-3000:]}")
            await asyncio.sleep(0.05)

    def get(self, path: str) -> str:
        """The body of one of its HTTP pages; 503 is an answer, too."""
        found = re.search(r"url=(http://\S+)", self.text())
        assert found, f"the worker has no address yet:\n{self.text()[-3000:]}"
        try:
            with urllib.request.urlopen(found[1] + path, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return str(error.read().decode())

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels; 0 when there is none."""
        families = text_string_to_metric_families(self.get("/metrics"))
        samples = (s for family in families for s in family.samples if s.name == name)
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def memory_mib(self) -> float:
        """Resident memory."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


async def send_records(
    settings: Settings, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]
) -> list[Any]:
    """Send (key, value) records, also those no codec would make; returns their metadata in the same order."""
    producer = AIOKafkaProducer(**client_options(settings), acks="all", linger_ms=20, max_request_size=4 << 20)
    await producer.start()
    try:
        pending = [await _send(producer, topic, key, value) for key, value in records]
        return list(await asyncio.gather(*pending))
    finally:
        await producer.stop()


async def _send(producer: AIOKafkaProducer, topic: str, key: bytes | None, value: bytes | None) -> Any:
    if key is not None or value is not None:
        return await producer.send(topic, value, key=key)
    batch = producer.create_batch()  # `send` refuses a record of nothing; others' producers do not
    batch.append(key=None, value=None, timestamp=None)
    batch.close()
    return await producer.send_batch(batch, topic, partition=0)


async def read_topic(settings: Settings, topic: str, until: Callable[[list[Any]], bool], timeout_s: float) -> list[Any]:
    """Records of all partitions from the beginning, until the caller has what it waits for. Raises TimeoutError."""
    count = 1 if topic.endswith(".models") else settings.partitions
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    records: list[Any] = []
    deadline = time.monotonic() + timeout_s
    try:
        consumer.assign([TopicPartition(topic, p) for p in range(count)])
        while not until(records):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{topic}: {len(records)} records after {timeout_s} s")
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                records.extend(batch)
    finally:
        await consumer.stop()
    return records


async def read_settled(settings: Settings, topic: str, quiet_s: float = 1.0, timeout_s: float = 60) -> list[Any]:
    """All records of a topic nobody writes to any more: read until nothing came for `quiet_s`."""
    seen, since = 0, time.monotonic()

    def quiet(records: list[Any]) -> bool:
        nonlocal seen, since
        if len(records) != seen:
            seen, since = len(records), time.monotonic()
        return time.monotonic() - since > quiet_s

    return await read_topic(settings, topic, quiet, timeout_s)


def by_partition(records: Iterable[Any]) -> dict[int, list[Any]]:
    """Records of each partition in the order of their offsets."""
    parts: dict[int, list[Any]] = defaultdict(list)
    for record in records:
        parts[record.partition].append(record)
    return {partition: sorted(part, key=lambda r: r.offset) for partition, part in sorted(parts.items())}
