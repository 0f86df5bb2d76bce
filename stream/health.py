"""Health and metrics over HTTP: `/health/live`, `/health/ready`, `/metrics`.

Not live means that a restart would help: a partition has records to process and has processed none of them for
`stall_s`. Not ready means that work cannot start yet: no model, or no partitions. Both answer with what they
know of each partition.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from aiohttp import web
from faust.types import TP

from stream import metrics
from stream.source import Source

__all__ = ["HealthServer", "Progress"]

log = structlog.get_logger()


class Progress:
    """What is known of each source partition.

    highwater: the consumer's, None where it has not fetched yet. waits: a partition that stands still on purpose.
    """

    def __init__(
        self,
        sources: Callable[[], dict[TP, Source]],
        highwater: Callable[[TP], int | None],
        waits: Callable[[TP], bool],
        stall_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._highwater, self._waits = sources, highwater, waits
        self._stall_s, self._clock = stall_s, clock

    def partitions(self) -> list[dict[str, Any]]:
        """One entry a partition: topic, partition, next_offset, lag (records), idle_s, stalled."""
        now, entries = self._clock(), []
        for tp, source in sorted(self._sources().items()):
            end = self._highwater(tp)
            lag = max((end or 0) - source.stored_offset, 0)
            if lag == 0 or self._waits(tp):
                source.progress_s = now  # nothing to do is no stall
            idle_s = now - source.progress_s
            metrics.LAG.labels(tp.topic, str(tp.partition)).set(lag)
            entries.append({
                "topic": tp.topic, "partition": tp.partition, "next_offset": source.stored_offset, "lag": lag,
                "idle_s": round(idle_s, 1), "stalled": idle_s > self._stall_s,
            })  # fmt: skip
        return entries


class HealthServer:
    """Serves until stopped; `port` is the real one, also when the setting was 0."""

    def __init__(self, host: str, port: int, progress: Progress, model: Callable[[], str | None]) -> None:
        self.host, self.port = host, port
        self._progress, self._model = progress, model
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        routes = {"/health/live": self._live, "/health/ready": self._ready, "/metrics": self._metrics}
        for path, handler in routes.items():
            app.router.add_get(path, handler)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        log.info("health and metrics", url=f"http://{self.host}:{self.port}")

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _live(self, _: web.Request) -> web.Response:
        partitions = self._progress.partitions()
        stalled = [p for p in partitions if p["stalled"]]
        return web.json_response({"live": not stalled, "partitions": partitions}, status=503 if stalled else 200)

    async def _ready(self, _: web.Request) -> web.Response:
        partitions, model = self._progress.partitions(), self._model()
        ready = bool(partitions) and model is not None
        body = {"ready": ready, "model": model, "partitions": partitions}
        return web.json_response(body, status=200 if ready else 503)

    async def _metrics(self, _: web.Request) -> web.Response:
        self._progress.partitions()  # brings lag up to date
        return web.Response(body=metrics.exposition(), headers={"Content-Type": "text/plain; version=0.0.4"})
