"""What end-to-end tests share: a quickly made model, worker processes, and reading topics to their end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.bundle import write_bundle
from models.calibration import Calibration
from models.codec import Codec, columns_to_batch
from models.detectors import build_detector
from models.features.encoded import Encoded
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.pipeline.spec import Pipeline
from models.registry import Registry
from stream.kafka import client_options
from stream.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
START_S = 60.0


def encode_columns(pipeline: Pipeline, columns: dict[str, Any]) -> Encoded:
    """Windows of events given as columns by field name, in event-time order, as one partition."""
    batch = columns_to_batch(Layout(pipeline), columns)
    return MemoryStore(pipeline).step(batch, np.maximum.accumulate(batch.time_M)).encoded


def publish_model(
    pipeline: Pipeline, registry: Path, windows: Encoded, *, seed: int = 0, quantile: float = 0.98, folder: Path
) -> str:
    """An untrained but real model, promoted: scores are arbitrary and deterministic. Returns its version.

    quantile: of the scores of `windows`, where the alert threshold is put.
    """
    torch.manual_seed(seed)
    detector = build_detector(pipeline.detector.architecture, Layout(pipeline).inputs, hidden=16, embedding=4)
    detector.fit_scaler(windows)
    detector.eval()
    golden = windows.take(slice(0, 8))
    from models.detectors.run import run_blocks, scores_of

    scores = scores_of(run_blocks(detector, windows))
    bundle = write_bundle(
        folder, pipeline, detector, calibration=Calibration.identity(),
        threshold=float(np.quantile(scores, quantile)), metrics={}, training={"seed": seed}, golden=golden,
    )  # fmt: skip
    store = Registry(registry)
    version = store.publish(bundle.folder)
    store.promote(pipeline.name, version, "test")
    return version


class Worker:
    """A `python -m stream worker` process; its log is kept for failures."""

    def __init__(self, settings: Settings, log: Path, **overrides: object) -> None:
        self.log = log
        names = (
            "pipeline",
            "kafka_brokers",
            "redis_port",
            "session_timeout_s",
            "registry",
            "partitions",
            "redis_cluster",
        )
        values = {name: getattr(settings, name) for name in names} | {"http_port": settings.http_port} | overrides
        environment = {f"LEPTON_{name.upper()}": str(value) for name, value in values.items()}
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stream", "worker"], cwd=ROOT, stdout=output, stderr=output,
                env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL: as if the machine were gone."""
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


async def read_topic(settings: Settings, topic: str, until: Callable[[list[Any]], bool], timeout_s: float) -> list[Any]:
    """Records of all partitions from the beginning, until the caller has what it waits for. Raises TimeoutError."""
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    await consumer.start()
    records: list[Any] = []
    try:
        partitions = consumer.partitions_for_topic(topic)
        deadline = time.monotonic() + timeout_s
        while not partitions and time.monotonic() < deadline:
            await consumer._client.force_metadata_update()
            await asyncio.sleep(0.1)
            partitions = (
                await consumer._client._get_partitions(topic) if False else consumer.partitions_for_topic(topic)
            )
        consumer.assign([TopicPartition(topic, p) for p in sorted(partitions or ())])
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


def encode_rows(codec: Codec, rows: Iterable[dict[str, Any]]) -> list[bytes]:
    return [codec.encode_event(row) for row in rows]
