"""The demo's second pipeline: simulated machines whose past has no labels, and five faults in their present.

Beside the payments, in a worker of its own: a bundle is made of the past, the worker catches up on it, and a day of
readings is streamed live. Every fault that begins in it should open an episode.
"""

from __future__ import annotations

import asyncio
import subprocess
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.clock import DAY_MS, HOUR_MS, from_iso, to_iso
from models.errors import LeptonError
from models.messages import Alert, decode_score
from models.samples import write_file
from models.simulate_machines import Fault, Machines, simulate_machines
from stream.demo_stage import Stage, check_alive, command, promote_new, until
from stream.kafka import client_options, ensure_topics
from stream.replay import Pace, publish, wait_stored
from stream.replay_file import Rows

__all__ = ["BUDGET", "MachineShow"]

BUDGET = 1.0  # episodes a day
MACHINES, PAST_DAYS, LIVE_DAYS = 20, 5.0, 1.0
START = "2026-01-01"
PRESENT_MS = from_iso(START) + int(PAST_DAYS * DAY_MS)
EVERY_S = 300.0  # of event time between two readings of a machine
SOON_MS = 2 * HOUR_MS  # after a fault an episode still counts as its own
PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class _Opened:
    """An episode as its first alert told it."""

    machine: str
    at_ms: int
    text: str


class MachineShow:
    """Call `prepare`, then `catch_up` and `live` while a worker runs; `summary` says what came of it."""

    def __init__(self, stage: Stage, seed: int) -> None:
        self.stage, self.seed = stage, seed
        self.machines: Machines | None = None
        self.opened: list[_Opened] = []
        self.scores: list[str] = []  # ids of the live readings that have one
        self._live: frozenset[str] = frozenset()
        self.published = 0

    async def prepare(self) -> dict[str, Any]:
        """Simulate, learn from the past, promote; the figures of the bundle."""
        stage = self.stage
        self.machines = await asyncio.to_thread(
            simulate_machines,
            self.seed,
            MACHINES,
            PAST_DAYS + LIVE_DAYS,
            every_s=EVERY_S,
            faults_from_day=PAST_DAYS,
            start=START,
        )
        events = self.machines.events
        self._live = frozenset(events["reading_id"][events["timestamp"] >= PRESENT_MS].tolist())
        ensure_topics(stage.settings, stage.pipeline)
        await asyncio.to_thread(write_file, self.machines, stage.folder / "machines.parquet")
        history, bundle = stage.folder / "history", stage.folder / "machines"
        await command(stage, "history", "--out", history, "--from-file", stage.folder / "machines.parquet")
        made = await command(
            stage, "finetune", "--history", history, "--out", bundle, "--end", to_iso(PRESENT_MS), "--epochs", 3,
            "--threads", 1,
        )  # fmt: skip
        await promote_new(stage, bundle, "learnt from the past, no labels")
        return made

    async def catch_up(self) -> int:
        """The worker reads the past: every machine gets its normal operation. Returns how many readings that was."""
        stage = self.stage
        done = await publish(stage.settings, stage.pipeline, self._rows.between(None, PRESENT_MS))
        await wait_stored(stage.settings, stage.pipeline, done.next_offsets, PATIENCE_S)
        return done.events

    async def live(self, seconds: float, process: subprocess.Popen[bytes]) -> None:
        """Stream the present in so many seconds, and read what the worker says of it."""
        stage, started = self.stage, asyncio.Event()
        following = asyncio.create_task(self._follow(started))
        try:
            await started.wait()
            rows = self._rows.between(PRESENT_MS, None)
            done = await publish(stage.settings, stage.pipeline, rows, pace=Pace(rate=len(rows) / seconds))
            self.published = done.events
            check_alive(stage, process)
            await wait_stored(stage.settings, stage.pipeline, done.next_offsets, PATIENCE_S)
            await until(lambda: len(self.scores) >= done.events, PATIENCE_S)
        finally:
            following.cancel()

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the demo's table. Raises LeptonError when a reading has no score or more than one."""
        assert self.machines is not None
        scored = len(set(self.scores))
        if scored != self.published or len(self.scores) != scored:
            raise LeptonError(
                f"{self.published} readings, {len(self.scores)} scores of {scored}: expected one for each reading"
            )
        found = [fault for fault in self.machines.faults if any(_belongs(opened, fault) for opened in self.opened)]
        wrong = sum(not any(_belongs(opened, fault) for fault in self.machines.faults) for opened in self.opened)
        missed = ", ".join(fault.kind for fault in self.machines.faults if fault not in found)
        kinds = f"{len(found)} of {len(self.machines.faults)} faults found" + (f" (not: {missed})" if missed else "")
        return [
            ("readings of machines scored live", f"{self.published:,}, each exactly once, no labels"),
            ("their episodes", f"{len(self.opened)} opened, {kinds}, {wrong} without a fault"),
        ]

    @property
    def _rows(self) -> Rows:
        assert self.machines is not None
        return Rows.of_columns(self.machines.events, "timestamp")

    async def _follow(self, started: asyncio.Event) -> None:
        """Read scores and alerts from about the end of the topics on, until cancelled; those of the past are passed
        over."""
        settings, pipeline = self.stage.settings, self.stage.pipeline
        consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, fetch_max_wait_ms=10)
        await consumer.start()
        try:
            topics = [pipeline.topic("scores"), pipeline.topic("alerts")]
            partitions = [TopicPartition(topic, p) for topic in topics for p in range(settings.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            await asyncio.gather(*(consumer.position(tp) for tp in partitions))
            started.set()
            while True:
                for tp, records in (await consumer.getmany(timeout_ms=100)).items():
                    if tp.topic == topics[0]:
                        ids = [decode_score(record.value).event_id for record in records]
                        self.scores += [event_id for event_id in ids if event_id in self._live]
                    else:
                        for record in records:
                            self._alert(msgspec.json.decode(record.value, type=Alert))
        finally:
            await consumer.stop()

    def _alert(self, alert: Alert) -> None:
        if alert.episode and alert.episode.state == "open" and alert.event_id in self._live:
            self.opened.append(_Opened(alert.entity, from_iso(alert.event_time), _told(alert)))
            self.stage.console.print(f"  machine {self.opened[-1].text}", highlight=False)


def _belongs(opened: _Opened, fault: Fault) -> bool:
    return opened.machine == fault.machine and fault.start_ms <= opened.at_ms < fault.end_ms + SOON_MS


def _told(alert: Alert) -> str:
    """An episode in a line: which machine, when, and what was read instead of what."""
    reason = alert.reasons[0]
    value, expected = reason.value, reason.expected
    read = f"{value:g}" if isinstance(value, float | int) else "missing"
    instead = f", {expected:.4g} expected" if isinstance(expected, float) else ""
    return f"{alert.entity} at {alert.event_time[5:16].replace('T', ' ')}: {reason.feature} {read}{instead}"
