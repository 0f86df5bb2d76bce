"""`make demo`: the whole house on one machine, with a real broker, a real store and a real training run.

Simulated payments with known fraud are cut in two: a past, on which a first model is trained in seconds and which
the worker then catches up on, and a present, which is streamed live. Meanwhile a better model is trained, and
swapped in while the stream runs. Beside it machines are watched that have no labels (`demo_machines`). At the end every
live event must have exactly one score, or the demo fails.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from models.clock import DAY_MS, to_iso
from models.codec import Codec
from models.errors import LeptonError
from models.samples import write_file
from models.simulate import Simulated, simulate
from stream import demo_machines
from stream.demo_machines import MachineShow
from stream.demo_stage import Stage, check_alive, command, make_stage, until, worker
from stream.demo_tracker import Tracker
from stream.demo_view import View, summary_table
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.replay import Pace, Published, publish, wait_stored
from stream.replay_file import Rows

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


def run_demo(seconds: float = 60, seed: int = 7) -> None:
    """Run it; raises LeptonError when something did not happen as it must."""
    console = Console()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lepton-demo-") as folder, LocalServices(folder) as services:
        payments, machines = (
            make_stage(Path(folder), services, console, name, budget)
            for name, budget in (("payments", ALERTS_A_DAY), ("sensors", demo_machines.BUDGET))
        )
        asyncio.run(_demo(payments, MachineShow(machines, seed), seconds, seed))
    console.print(f"Finished in {time.monotonic() - began:.0f} s; broker, store and workers have ended.")


async def _demo(stage: Stage, machines: MachineShow, seconds: float, seed: int) -> None:
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
    with console.status("Training a first model on the past, and learning what is normal of machines …"):
        preparing = asyncio.create_task(machines.prepare())
        await _import_history(stage)
        first = await _train(stage, "first", start_ms, ["--epochs", "1", "--max-legit", "6000", "--days", "14"])
        normal = await preparing
    console.print(
        f"2 trained a first model in {first['seconds']:.0f} s: average precision {_ap(first)} on held-back days; "
        f"learnt from {normal['events']:,} readings of {normal['entities']} machines, without a label"
    )
    better = asyncio.create_task(
        _train(stage, "better", start_ms, ["--epochs", "4", "--max-legit", "20000", "--threads", "1"], promote=False)
    )
    try:
        with worker(stage) as own, worker(machines.stage) as other:
            readings = asyncio.create_task(machines.catch_up())
            await _catch_up(stage, simulated, start_ms, own, readings)
            beside = asyncio.create_task(machines.live(seconds, other))
            rows = await _live(stage, simulated, start_ms, seconds, own, first, better)
            await beside
        console.print(summary_table([*rows, *machines.summary()]))
    finally:
        better.cancel()


async def _catch_up(
    stage: Stage, simulated: Simulated, start_ms: int, process: subprocess.Popen[bytes], readings: asyncio.Task[int]
) -> None:
    """The workers read the past: every card, merchant and device gets its history, as every machine does."""
    began = time.monotonic()
    with stage.console.status("The workers catch up on the past …"):
        past = _rows(simulated, None, start_ms)
        done = await publish(stage.settings, stage.pipeline, *past)
        await wait_stored(stage.settings, stage.pipeline, done.next_offsets, WORKER_PATIENCE_S)
        count = await readings
    check_alive(stage, process)
    seconds = time.monotonic() - began
    stage.console.print(
        f"3 the workers caught up on {done.events:,} payments, {done.labels:,} labels and {count:,} readings in "
        f"{seconds:.0f} s"
    )


async def _live(
    stage: Stage,
    simulated: Simulated,
    start_ms: int,
    seconds: float,
    process: subprocess.Popen[bytes],
    first: dict[str, Any],
    better: asyncio.Task[dict[str, Any]],
) -> list[tuple[str, str]]:
    """Stream the present and swap the model; rows of the summary."""
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
            check_alive(stage, process)
            if following.done():
                following.result()
            if promoted_at is None and better.done() and time.monotonic() - began > SWAP_AT * seconds:
                await command(stage, "promote", better.result()["version"], "--why", "better on held-back days")
                promoted_at = time.time()
                promoted.set()
                view.say(f"5 promoted a better model: average precision {_ap(first)} → {_ap(better.result())}")
            if time.monotonic() - began > seconds + TRAINING_PATIENCE_S:
                raise LeptonError("the better model took too long to train: expected it within the live time")
            view.update(await asyncio.to_thread(_lag, stage))
            await asyncio.sleep(0.1)
        done = await publishing
        await wait_stored(stage.settings, pipeline, done.next_offsets, WORKER_PATIENCE_S)
        await until(lambda: len(tracker.scores) >= done.events and len(tracker.first_by_model) > 1, WORKER_PATIENCE_S)
    following.cancel()
    return _summary(tracker, done, promoted_at, first, better.result())


def _summary(
    tracker: Tracker, done: Published, promoted_at: float, first: dict[str, Any], better: dict[str, Any]
) -> list[tuple[str, str]]:
    """The figures. Raises LeptonError when an event has no score or more than one."""
    ids, fraud = tracker.truth()
    repeated = sum(len(tracker.scores[i]) > 1 for i in ids)
    if len(ids) != done.events or repeated:
        raise LeptonError(f"{done.events} events, {len(ids)} with a score, {repeated} with several: expected one each")
    swapped_at = tracker.first_by_model[better["version"]]
    before_ms, during_ms = tracker.p99_in_second(swapped_at - 1), tracker.p99_in_second(swapped_at)
    p50, p99 = np.percentile([ms for _, ms in tracker.latencies], [50, 99])
    right = sum(a.fraud for a in tracker.alerts)
    caught = right / max(sum(fraud), 1)
    return [
        ("events scored live", f"{done.events:,}, each exactly once"),
        ("latency, append to score read", f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"),
        ("alerts", f"{len(tracker.alerts)}, of which {right} right; {caught:.0%} of the fraud caught"),
        ("model on held-back days", f"average precision {_ap(first)} → {_ap(better)}"),
        ("hot swap", f"{max(swapped_at - promoted_at, 0):.1f} s after promotion; p99 {before_ms:.0f} ms in the "
                     f"second before, {during_ms:.0f} ms in its own"),
    ]  # fmt: skip


async def _import_history(stage: Stage) -> None:
    await command(
        stage, "history", "--out", stage.folder / "history", "--from-file", stage.folder / "payments.parquet",
        "--labels", "is_fraud", "--label-time", "label_time",
    )  # fmt: skip


async def _train(stage: Stage, name: str, end_ms: int, options: list[str], promote: bool = True) -> dict[str, Any]:
    """Train on what was known at `end_ms`, publish, and promote if asked; the figures and the version."""
    folder = stage.folder / name
    trained = await command(
        stage, "finetune", "--history", stage.folder / "history", "--out", folder, "--end", to_iso(end_ms),
        "--gap", "2d", *options,
    )  # fmt: skip
    version = (await command(stage, "publish", folder))["version"]
    if promote:
        await command(stage, "promote", version, "--why", "first model")
    return trained | {"version": version}


def _lag(stage: Stage) -> int | None:
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


def _ap(trained: dict[str, Any]) -> str:
    return f"{trained['average_precision']:.2f}"
