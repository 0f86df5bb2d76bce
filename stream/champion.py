"""The model in use: follows the pipeline's `.models` topic and the registry, and swaps between two batches.

A new bundle is loaded and verified, and its engine chosen, in a thread while the old one scores; then one reference is
exchanged, which the worker reads at the start of a batch. A bundle that is refused leaves the old one in place.
The topic is a hint to look at once; the registry's pointer is also looked at every few seconds, so a message
that was lost only delays a swap.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from models.errors import BundleError, LeptonError
from models.pipeline import Pipeline
from models.registry import Registry
from models.scorer import Scorer, load_scorer
from models.signing import load_keys
from stream import metrics
from stream.kafka import client_options
from stream.settings import Settings

__all__ = ["Champion"]

log = structlog.get_logger()

LOOK_S = 5.0
TOPIC_POLL_MS = 500
TOPIC_RETRY_S = 5.0


class Champion:
    """`scorer` is the model in use, None until the first one was loaded. The one before it stays loaded: whoever rolls
    back is in a hurry."""

    def __init__(self, settings: Settings, pipeline: Pipeline, blocking: Callable[..., Awaitable[Any]]) -> None:
        self._settings, self._pipeline, self._blocking = settings, pipeline, blocking
        self._trusted = load_keys(settings.trusted_keys)
        self._registry = Registry(settings.registry, trusted=self._trusted)
        self._look = asyncio.Event()
        self._first = asyncio.Event()
        self._refused: str | None = None
        self._asked = False  # for a first model
        self.scorer: Scorer | None = None
        self._before: Scorer | None = None

    async def ready(self) -> None:
        """Wait for the first model."""
        await self._first.wait()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            while True:
                await self._take_champion()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._look.wait(), LOOK_S)
                self._look.clear()

    async def _take_champion(self) -> None:
        """Load what the registry points at, unless it is in use or was refused before."""
        noticed_s = time.monotonic()
        name = self._pipeline.name
        try:
            version = await self._blocking(self._registry.champion, name)
            if version is None and not self._asked:
                self._asked = True
                log.warning("events wait for a model", pipeline=name, registry=str(self._settings.registry),
                            expected="a promoted version: python -m training promote")  # fmt: skip
            if version is None or version == self._refused or (self.scorer and self.scorer.version == version):
                return
            kept = self._before if self._before is not None and self._before.version == version else None
            scorer = kept or await self._blocking(self._load, version)
        except BundleError as error:
            self._refuse(version, error.reason, str(error))
        except (LeptonError, OSError) as error:
            self._refuse(None, "registry", str(error))
        else:
            self._swap(scorer, time.monotonic() - noticed_s)

    def _load(self, version: str) -> Scorer:
        folder = self._registry.path(self._pipeline.name, version)
        return load_scorer(folder, self._pipeline, self._settings.engine, self._settings.threads, self._trusted)

    def _swap(self, scorer: Scorer, seconds: float) -> None:
        name, old = self._pipeline.name, self.scorer
        self._before, self.scorer = old, scorer  # the next batch takes it
        self._first.set()
        if old is not None:
            metrics.MODEL.remove_by_labels({"pipeline": name, "version": old.version})
        metrics.MODEL.labels(name, scorer.version).set(1)
        metrics.SWAP.labels(name).observe(seconds)
        metrics.show_engines(name, scorer)
        engines = {row.engine: row.described() for row in scorer.measured}
        log.info(
            "model in use", pipeline=name, version=scorer.version, seconds=round(seconds, 3), engine=scorer.engine,
            engines=engines,
        )  # fmt: skip

    def _refuse(self, version: str | None, reason: str, detail: str) -> None:
        self._refused = version
        metrics.REFUSED.labels(self._pipeline.name, reason).inc()
        using = self.scorer.version if self.scorer else None
        log.error("model refused", version=version, reason=reason, detail=detail, still_using=using)

    async def _listen(self) -> None:
        """Look at the registry whenever the topic says something; every worker reads the whole topic."""
        while True:
            consumer = AIOKafkaConsumer(
                self._pipeline.topic("models"), **client_options(self._settings), group_id=None,
                auto_offset_reset="latest",
            )  # fmt: skip
            try:
                await consumer.start()
                while True:
                    if await consumer.getmany(timeout_ms=TOPIC_POLL_MS):
                        self._refused = None  # promoted again, perhaps because it was mended
                        self._look.set()
            except (KafkaError, OSError) as error:
                log.warning("models topic is away", error=str(error)[:200])
                await asyncio.sleep(TOPIC_RETRY_S)
            finally:
                await consumer.stop()
