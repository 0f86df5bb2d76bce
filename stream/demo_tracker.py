"""Reads what the demo's worker publishes, as any downstream system would, and keeps the figures.

Latency is from the event's append time to the moment this process has read its score: fetching included.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.codec import Codec
from models.messages import Alert, Score, decode_score
from models.simulate import PATTERNS, Simulated
from stream.kafka import client_options
from stream.settings import Settings

__all__ = ["Recent", "SeenAlert", "Tracker"]

RECENT_S = 5.0
POLL_MS = 50


@dataclass(frozen=True, slots=True)
class SeenAlert:
    """An alert and the truth about it."""

    time: str
    card: str  # masked
    amount: float
    score: float
    reasons: list[str]
    fraud: bool
    pattern: str


@dataclass(frozen=True, slots=True)
class Recent:
    """Of the last RECENT_S seconds; latencies are NaN when nothing was scored."""

    rate: float
    p50_ms: float
    p99_ms: float


class Tracker:
    """Scores and alerts of the live events; the truth about them comes from the simulator."""

    def __init__(self, settings: Settings, codec: Codec, simulated: Simulated, start_ms: int) -> None:
        self._settings, self._codec = settings, codec
        live = simulated.events["timestamp"] >= start_ms
        ids = simulated.events["transaction_id"][live].tolist()
        self._pattern = dict(zip(ids, simulated.pattern_N[live].tolist(), strict=True))
        self._appended: dict[str, int] = {}
        self._read: dict[str, float] = {}
        self._window: deque[tuple[float, float]] = deque()  # (read at, latency in ms)
        self.latencies: list[tuple[float, float]] = []
        self.scores: dict[str, list[Score]] = {}
        self.alerts: list[SeenAlert] = []
        self.scored = 0
        self.model = "?"
        self.first_by_model: dict[str, float] = {}
        self._event_id = codec.pipeline.json_key(codec.pipeline.pipeline.event_id)

    async def run(self, started: asyncio.Event) -> None:
        """Read from about the end of the topics on, until cancelled; what is not of the live events is passed over."""
        consumer = AIOKafkaConsumer(**client_options(self._settings), group_id=None, fetch_max_wait_ms=10)
        await consumer.start()
        try:
            topics = {self._codec.pipeline.topic(kind): kind for kind in ("events", "scores", "alerts")}
            partitions = [TopicPartition(t, p) for t in topics for p in range(self._settings.partitions)]
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            await asyncio.gather(*(consumer.position(tp) for tp in partitions))
            started.set()
            while True:
                batches = await consumer.getmany(timeout_ms=POLL_MS)
                now = time.time()
                for tp, records in batches.items():
                    for record in records:
                        self._take(topics[tp.topic], record, now)
        finally:
            await consumer.stop()

    def recent(self) -> Recent:
        """The figures of now."""
        now = time.time()
        while self._window and self._window[0][0] < now - RECENT_S:
            self._window.popleft()
        return Recent(len(self._window) / RECENT_S, *_percentiles([ms for _, ms in self._window]))

    def p99_in_second(self, start: float) -> float:
        """p99 latency in ms of the scores read in the second that begins here (epoch seconds)."""
        return _percentiles([ms for at, ms in self.latencies if start <= at < start + 1])[1]

    def truth(self) -> tuple[list[str], list[bool]]:
        """Ids of all events scored so far, and whether they were fraud."""
        ids = list(self.scores)
        return ids, [self._pattern[i] > 0 for i in ids]

    def _take(self, kind: str, record: Any, now: float) -> None:
        if kind == "events":
            event_id = str(self._codec.decode_one(record.value)[self._event_id])
            if event_id in self._pattern:
                self._appended[event_id] = record.timestamp
                self._match(event_id)
        elif kind == "scores":
            score = decode_score(record.value)
            if score.event_id not in self._pattern:
                return
            self.scores.setdefault(score.event_id, []).append(score)
            self.scored += 1
            self.model = score.model
            self.first_by_model.setdefault(score.model, now)
            self._read[score.event_id] = now
            self._match(score.event_id)
        else:
            self._alert(msgspec.json.decode(record.value, type=Alert))

    def _match(self, event_id: str) -> None:
        if event_id in self._appended and event_id in self._read:
            read = self._read.pop(event_id)
            latency = (read * 1000) - self._appended.pop(event_id)
            self._window.append((read, latency))
            self.latencies.append((read, latency))

    def _alert(self, alert: Alert) -> None:
        pattern = self._pattern.get(alert.event_id)
        if pattern is None:
            return
        self.alerts.append(SeenAlert(
            time=alert.event_time, card="…" + alert.entity[-4:], amount=float(alert.event.get("amount", 0.0)),
            score=alert.score, reasons=[r.feature for r in alert.reasons], fraud=pattern > 0,
            pattern=PATTERNS[pattern],
        ))  # fmt: skip


def _percentiles(latencies_ms: list[float]) -> tuple[float, float]:
    """p50 and p99; NaN of nothing."""
    if not latencies_ms:
        return float("nan"), float("nan")
    p50, p99 = np.percentile(latencies_ms, [50, 99])
    return float(p50), float(p99)
