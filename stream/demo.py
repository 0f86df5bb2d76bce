"""`make demo`: the whole house on one machine, with a real broker, a real store and a real training run.

Simulated payments with known fraud are cut in two: a past, on which a first model is trained in seconds and which
the worker then catches up on, and a present, which is streamed live. Meanwhile a better model is trained, and
swapped in while the stream runs. At the end every live event must have exactly one score, or the demo fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.clock import DAY_MS, to_iso
from models.codec import Codec
from models.errors import LeptonError
from models.pipeline import Pipeline, load_pipeline
from models.samples import write_file
from models.simulate import Simulated, simulate
from stream.demo_tracker import Tracker
from stream.demo_view import View, summary_table
from stream.kafka import ensure_topics
from stream.local import LocalServices, free_port
from stream.replay import Pace, Published, publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings, load_settings

__all__ = ["run_demo"]

PAST_DAYS = 45
CUSTOMERS, MERCHANTS = 1200, 240
ALERTS_A_DAY = 20
LIVE_RATE = 400  # events a second
EVENTS_A_DAY = 1.7 * CUSTOMERS
SWAP_AT = 0.4  # of the live time, or when the better model is ready
LAST_S = 15  # of the live payments wait for the promotion, so that both models score some, however slow the machine
TRAINING_PATIENCE_S = 150
WORKER_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class _Stage:
    """Where everything of one demo is."""

    folder: Path
    settings: Settings
    pipeline: Pipeline
    console: Console

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes that this one starts."""
        names = (
            "kafka_brokers", "redis_port", "pipeline", "registry", "http_port", "session_timeout_s", "log_level",
            "kafka_linger_ms", "latency_objective_ms",
        )  # fmt: skip
        ours = {f"LEPTON_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}


def run_demo(seconds: float = 60, seed: int = 7) -> None:
    """Run it; raises LeptonError when something did not happen as it must."""
    console = Console()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lepton-demo-") as folder, LocalServices(folder) as services:
        settings = load_settings(
            kafka_brokers=services.kafka_brokers, redis_port=services.redis_port,
            pipeline=str(_pipeline_file(Path(folder))), registry=Path(folder) / "registry", http_port=free_port(),
            session_timeout_s=2, log_level="WARNING",
            kafka_linger_ms=20, latency_objective_ms=250,  # the local broker slows down with every batch it is sent
        )  # fmt: skip
        stage = _Stage(Path(folder), settings, load_pipeline(settings.pipeline), console)
        asyncio.run(_demo(stage, seconds, seed))
    console.print(f"Finished in {time.monotonic() - began:.0f} s; broker, store and worker have ended.")


def _pipeline_file(folder: Path) -> Path:
    """The shipped pipeline with an alert budget for a bank of this size: a few more alerts than there are frauds."""
    text = (resources.files("models") / "pipelines" / "payments.toml").read_text(encoding="utf-8")
    path = folder / "payments.toml"
    path.write_text(text.replace("alerts_per_day = 100", f"alerts_per_day = {ALERTS_A_DAY}"), encoding="utf-8")
    return path


async def _demo(stage: _Stage, seconds: float, seed: int) -> None:
    console = stage.console
    days = PAST_DAYS + int(seconds * LIVE_RATE / EVENTS_A_DAY) + 2
    with console.status("Simulating payments …"):
        simulated = await asyncio.to_thread(simulate, seed, CUSTOMERS, MERCHANTS, days)
        start_ms = int(simulated.events["timestamp"][0]) // DAY_MS * DAY_MS + PAST_DAYS * DAY_MS
        await asyncio.to_thread(write_file, simulated, stage.folder / "payments.parquet")
    console.print(
        f"1 simulated {len(simulated):,} payments of {CUSTOMERS:,} cards, {simulated.fraud_N.mean():.2%} fraud"
    )
    ensure_topics(stage.settings, stage.pipeline)
    with console.status("Training a first model on the past …"):
        await _import_history(stage)
        first = await _train(stage, "first", start_ms, ["--epochs", "1", "--max-legit", "6000", "--days", "14"])
    console.print(
        f"2 trained a first model in {first['seconds']:.0f} s: average precision {_ap(first)} on held-back days"
    )
    better = asyncio.create_task(
        _train(stage, "better", start_ms, ["--epochs", "4", "--max-legit", "20000", "--threads", "1"], promote=False)
    )
    try:
        with _worker(stage) as worker:
            await _catch_up(stage, simulated, start_ms, worker)
            await _live(stage, simulated, start_ms, seconds, worker, first, better)
    finally:
        better.cancel()


async def _catch_up(stage: _Stage, simulated: Simulated, start_ms: int, worker: subprocess.Popen[bytes]) -> None:
    """The worker reads the past: every card, merchant and device gets its history."""
    began = time.monotonic()
    with stage.console.status("The worker catches up on the past …"):
        past = _rows(simulated, None, start_ms)
        done = await publish(stage.settings, stage.pipeline, *past)
        await wait_stored(stage.settings, stage.pipeline, done.next_offsets, WORKER_PATIENCE_S)
    _check_alive(stage, worker)
    seconds = time.monotonic() - began
    stage.console.print(
        f"3 the worker caught up on {done.events:,} payments and {done.labels:,} labels in {seconds:.0f} s"
    )


async def _live(
    stage: _Stage,
    simulated: Simulated,
    start_ms: int,
    seconds: float,
    worker: subprocess.Popen[bytes],
    first: dict[str, Any],
    better: asyncio.Task[dict[str, Any]],
) -> None:
    pipeline = stage.pipeline
    codec = Codec(pipeline)
    tracker = Tracker(stage.settings, codec, simulated, start_ms)
    started = asyncio.Event()
    following = asyncio.create_task(tracker.run(started))
    await asyncio.wait([asyncio.create_task(started.wait()), following], return_when=asyncio.FIRST_COMPLETED)
    events, labels = _rows(simulated, start_ms, None)
    count = min(len(events), int(seconds * LIVE_RATE))
    end_ms = int(events.time_ms[count - 1]) + 1
    middle_ms = int(events.time_ms[max(count - LAST_S * LIVE_RATE, 1) - 1]) + 1
    stage.console.print(f"4 streaming {count:,} payments live at {LIVE_RATE} a second")
    promoted = asyncio.Event()

    async def stream() -> Published:
        pace, done = Pace(rate=LIVE_RATE), Published()
        for low, high in ((start_ms, middle_ms), (middle_ms, end_ms)):
            part = await publish(
                stage.settings, pipeline, events.between(low, high), labels.between(low, high), pace=pace
            )
            done.events, done.next_offsets = done.events + part.events, done.next_offsets | part.next_offsets
            await promoted.wait()
        return done

    publishing = asyncio.create_task(stream())
    promoted_at: float | None = None
    began = time.monotonic()
    with View(stage.console, tracker, seconds) as view:
        while not publishing.done() or promoted_at is None:
            _check_alive(stage, worker)
            if following.done():
                following.result()
            if promoted_at is None and better.done() and time.monotonic() - began > SWAP_AT * seconds:
                await _command(stage, "promote", better.result()["version"], "--why", "better on held-back days")
                promoted_at = time.time()
                promoted.set()
                view.say(f"5 promoted a better model: average precision {_ap(first)} → {_ap(better.result())}")
            if time.monotonic() - began > seconds + TRAINING_PATIENCE_S:
                raise LeptonError("the better model took too long to train: expected it within the live time")
            view.update(await asyncio.to_thread(_lag, stage))
            await asyncio.sleep(0.1)
        done = await publishing
        await wait_stored(stage.settings, pipeline, done.next_offsets, WORKER_PATIENCE_S)
        await _until(lambda: len(tracker.scores) >= done.events and len(tracker.first_by_model) > 1, WORKER_PATIENCE_S)
    following.cancel()
    _summarise(stage, tracker, done, promoted_at, first, better.result())


def _summarise(
    stage: _Stage, tracker: Tracker, done: Published, promoted_at: float, first: dict[str, Any], better: dict[str, Any]
) -> None:
    """Print the figures. Raises LeptonError when an event has no score or more than one."""
    ids, fraud = tracker.truth()
    repeated = sum(len(tracker.scores[i]) > 1 for i in ids)
    if len(ids) != done.events or repeated:
        raise LeptonError(f"{done.events} events, {len(ids)} with a score, {repeated} with several: expected one each")
    swapped_at = tracker.first_by_model[better["version"]]
    before_ms, during_ms = tracker.p99_in_second(swapped_at - 1), tracker.p99_in_second(swapped_at)
    p50, p99 = np.percentile([ms for _, ms in tracker.latencies], [50, 99])
    right = sum(a.fraud for a in tracker.alerts)
    caught = right / max(sum(fraud), 1)
    rows = [
        ("events scored live", f"{done.events:,}, each exactly once"),
        ("latency, append to score read", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"),
        ("alerts", f"{len(tracker.alerts)}, of which {right} right; {caught:.0%} of the fraud caught"),
        ("model on held-back days", f"average precision {_ap(first)} → {_ap(better)}"),
        ("hot swap", f"{max(swapped_at - promoted_at, 0):.1f} s after promotion; p99 {before_ms:.0f} ms in the "
                     f"second before, {during_ms:.0f} ms in its own"),
    ]  # fmt: skip
    stage.console.print(summary_table(rows))


async def _import_history(stage: _Stage) -> None:
    await _command(
        stage, "history", "--out", stage.folder / "history", "--from-file", stage.folder / "payments.parquet",
        "--labels", "is_fraud", "--label-time", "label_time",
    )  # fmt: skip


async def _train(stage: _Stage, name: str, end_ms: int, options: list[str], promote: bool = True) -> dict[str, Any]:
    """Train on what was known at `end_ms`, publish, and promote if asked; the figures and the version."""
    folder = stage.folder / name
    trained = await _command(
        stage, "finetune", "--history", stage.folder / "history", "--out", folder, "--end", to_iso(end_ms),
        "--gap", "2d", *options,
    )  # fmt: skip
    version = (await _command(stage, "publish", folder))["version"]
    if promote:
        await _command(stage, "promote", version, "--why", "first model")
    return trained | {"version": version}


async def _command(stage: _Stage, *arguments: object) -> dict[str, Any]:
    """A command of the training package, which this package must not import; its JSON answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "training", *map(str, arguments), "--json",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=stage.environment,
    )  # fmt: skip
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise LeptonError(f"python -m training {arguments[0]} failed: {errors.decode(errors='replace')[-800:].strip()}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


@contextmanager
def _worker(stage: _Stage) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ended by SIGTERM, or SIGKILL when that is not enough."""
    with (stage.folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream", "worker"], stdout=log, stderr=log,
            env=stage.environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _check_alive(stage: _Stage, worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        kept = Path(tempfile.gettempdir()) / "lepton-demo-worker.log"
        shutil.copy(stage.folder / "worker.log", kept)
        raise LeptonError(f"the worker ended with code {worker.returncode}: see {kept}")


def _lag(stage: _Stage) -> int | None:
    """Records that wait in all partitions, by the worker's own account."""
    try:
        url = f"http://127.0.0.1:{stage.settings.http_port}/health/ready"
        with urllib.request.urlopen(url, timeout=2) as answer:
            return int(sum(p["lag"] for p in json.load(answer)["partitions"]))
    except OSError:
        return None


def _rows(simulated: Simulated, start_ms: int | None, end_ms: int | None) -> tuple[Rows, Rows]:
    """Events and labels of a stretch of the simulation."""
    return (
        Rows.of_columns(simulated.events, "timestamp").between(start_ms, end_ms),
        Rows.of_columns(simulated.labels, "time").between(start_ms, end_ms),
    )


async def _until(condition: Any, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return  # the summary says what is missing
        await asyncio.sleep(0.05)


def _ap(trained: dict[str, Any]) -> str:
    return f"{trained['average_precision']:.2f}"
