"""The Faust app: which agents read which topics, and what is started and stopped with them.

Faust owns the consumer group, fetching, back-pressure and process life; the work itself is in the lanes'
processors. Agents only hand chunks to a lane.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faust
import structlog
from faust.types import TP
from mode import Service

from models.codec import Codec
from models.errors import StateError
from models.pipeline import Pipeline, load_pipeline
from models.warm_up import warm_up
from stream.batching import BatchSize
from stream.champion import Champion
from stream.delivery import Delivery
from stream.health import HealthServer, Progress
from stream.kafka import broker_addresses, ensure_topics, faust_credentials
from stream.labelling import LabelProcessor
from stream.lane import Lane
from stream.memory import collect_rarely, keep_freed_memory
from stream.publisher import Publisher
from stream.redis import connect
from stream.rekey import IngestProcessor
from stream.settings import Settings
from stream.source import Source
from stream.store.keys import event_tag, label_tag
from stream.store.redis_store import RedisStore
from stream.transport import ChunkSchema, use_chunks
from stream.worker import EventProcessor

__all__ = ["Scoring", "build_app", "run_worker"]

log = structlog.get_logger()

BUFFERED_CHUNKS = 8  # in Faust's queue, on top of two batches in a lane
COMMIT_INTERVAL_S = 1.0
POLL_RECORDS = 4096
CHUNK_RECORDS = 512  # of one partition at most; a chunk costs Faust as much as a message
THREADS = 8  # a batch loads, one is scored, one stored; labels, models and positions beside them
RETRY_TAKE_OVER_S = 0.5
STUCK_S = 10.0  # a partition that has not moved for so long holds no labels back
END_LOOK_S, END_LOOKS = 3.0, 3  # so often in a row: for a moment a topic may seem to end early (Delivery.ended_early)


def run_worker(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT; returns when the last batch is stored and committed."""
    keep_freed_memory()
    pipeline = load_pipeline(settings.pipeline)
    ensure_topics(settings, pipeline)
    app, _ = build_app(settings, pipeline)
    collect_rarely()
    worker = faust.Worker(app, loglevel=settings.log_level, redirect_stdouts=False, quiet=True, override_logging=False)
    worker.execute_from_commandline()


class App(faust.App):
    """Faust's app, without the folders for tables that it would make where it is started (there are no tables), and
    with health endpoints that answer while it waits for the broker, Redis or its partitions."""

    health: HealthServer | None = None

    def _create_directories(self) -> None:  # private hook
        pass

    async def on_start(self) -> None:
        if self.health is not None:
            await self.health.start()
        await super().on_start()


def build_app(settings: Settings, pipeline: Pipeline) -> tuple[faust.App, Scoring]:
    """The app with its agents, and the service that does the work. Nothing is connected yet."""
    app = App(
        settings.group(pipeline.name),
        broker=[f"kafka://{address}" for address in broker_addresses(settings)],
        broker_credentials=faust_credentials(settings),
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / 4,
        broker_commit_interval=COMMIT_INTERVAL_S,
        broker_max_poll_records=POLL_RECORDS,
        consumer_auto_offset_reset="earliest",
        processing_guarantee="at_least_once",
        stream_buffer_maxsize=BUFFERED_CHUNKS,
        stream_wait_empty=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        store="memory://",
        web_enabled=False,
    )
    scoring = Scoring(app, settings, pipeline)
    app.health = scoring.health
    app.service(scoring)  # type: ignore[arg-type]  # an instance will do
    for topic_name, lane in scoring.lanes.items():
        topic = app.topic(topic_name, schema=ChunkSchema(), value_type=bytes)
        app.agent(topic, name=f"{lane.name}-agent", concurrency=1)(_hand_to(lane))
    use_chunks(
        app,
        frozenset(scoring.lanes),
        chunk_max=CHUNK_RECORDS,
        fetch_max_wait_ms=settings.fetch_max_wait_ms,
        where_to_start=scoring.where_to_start,
        stored=scoring.stored,
        before_stop=scoring.drain,
    )
    return app, scoring


def _hand_to(lane: Lane) -> Callable[[Any], Any]:
    async def agent(chunks: Any) -> None:
        async for chunk in chunks:
            await lane.put(chunk)

    return agent


class Scoring(Service):
    """Everything of one worker that is started once and stopped once. `lanes` is by topic."""

    def __init__(self, app: faust.App, settings: Settings, pipeline: Pipeline, **kwargs: Any) -> None:
        self.app, self.settings, self.pipeline = app, settings, pipeline
        codec = self._codec = Codec(pipeline)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lepton")
        self.client = connect(settings)
        self.store = RedisStore(self.client, codec.layout)
        self.publisher = Publisher(settings)
        self.champion = Champion(settings, pipeline, self._blocking)
        self.events = Delivery(self.store, event_tag, self._blocking, self._seek, self._highwater)
        self.labels = Delivery(self.store, label_tag, self._blocking, self._seek, self._highwater)
        events = EventProcessor(codec, self.store, self.events, self.publisher, self.champion, self._blocking)
        labels = LabelProcessor(codec, self.store, self.labels, self.publisher, self._blocking, self._events_clock)
        self._label_processor = labels
        self.lanes = {
            pipeline.topic("events"): Lane("events", events, self._batch_size(), self._fatal, self.champion.ready),
            pipeline.topic("labels"): Lane("labels", labels, self._batch_size(), self._fatal, self._ready),
        }
        self._warm = asyncio.Event()
        self.ingest: IngestProcessor | None = None
        if not pipeline.pipeline.keyed_by_entity:
            self.ingest = IngestProcessor(codec, self.publisher)
            self.lanes[pipeline.topic("ingest")] = Lane(
                "ingest", self.ingest, self._batch_size(), self._fatal, self._ready
            )
        progress = Progress(self._sources, self._highwater, self._waits, settings.stall_s)
        self.health = HealthServer(settings.http_host, settings.http_port, progress, self._version)
        self._running: list[asyncio.Task[None]] = []
        self._beside: list[asyncio.Task[None]] = []
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        await self.publisher.start()
        self._running = [asyncio.create_task(lane.run()) for lane in self.lanes.values()]
        self._beside = [asyncio.create_task(self._guard(task())) for task in (self._follow_champion, self._watch_ends)]

    async def drain(self) -> None:
        """Finish the batch in hand, store it, and take no more. Awaited before the last commit."""
        for lane in self.lanes.values():
            await lane.stop()
        self._label_processor.stop()
        if self._running:
            # the batch in hand may wait for a server that is away
            done, waiting = await asyncio.wait(self._running, timeout=self.settings.redis_timeout_s * 4)
            for task in waiting:
                task.cancel()
            log.info("drained", lanes=len(done), cut_off=len(waiting))

    async def on_stop(self) -> None:
        await self.drain()
        for task in self._beside:
            task.cancel()
        await self.publisher.stop()
        await self.health.stop()
        self._threads.shutdown(wait=False)
        self.client.close()

    async def where_to_start(self, tp: TP) -> int | None:
        """The offset Redis says; asks for as long as Redis is away. None for topics that keep no position."""
        delivery = self._delivery(tp)
        if delivery is None:
            return None
        while True:
            try:
                offset = await delivery.take_over(tp)
            except StateError as error:  # no later look will find it readable: stop, and say why
                await self._fatal(error)
                signal.raise_signal(signal.SIGTERM)  # Faust does not end after a crash while it is starting
                raise
            except Exception as error:
                if self.should_stop:
                    raise
                log.warning("position cannot be read yet", partition=tp.partition, error=str(error)[:200])
                await asyncio.sleep(RETRY_TAKE_OVER_S)
            else:
                log.info("partition taken over", topic=tp.topic, partition=tp.partition, offset=offset)
                return offset

    def stored(self) -> dict[TP, int]:
        """Next offsets that are safe to commit."""
        self._forget_revoked()
        passed_on = {} if self.ingest is None else self.ingest.stored
        return self.events.stored() | self.labels.stored() | passed_on

    def _forget_revoked(self) -> None:
        assigned = self.app.consumer.assignment()
        for delivery in (self.events, self.labels):
            delivery.drop(set(delivery.sources) - assigned)
        if self.ingest is not None:
            for tp in set(self.ingest.stored) - assigned:
                del self.ingest.stored[tp]

    def _delivery(self, tp: TP) -> Delivery | None:
        by_topic = {self.pipeline.topic("events"): self.events, self.pipeline.topic("labels"): self.labels}
        return by_topic.get(tp.topic)

    def _sources(self) -> dict[TP, Source]:
        return self.events.sources | self.labels.sources

    def _waits(self, tp: TP) -> bool:
        """Whether a partition stands still for a good reason: events without a model, labels ahead of the events."""
        no_model = self.champion.scorer is None
        return no_model or (tp.topic == self.pipeline.topic("labels") and self._events_clock() is not None)

    def _highwater(self, tp: TP) -> int | None:
        try:
            end = self.app.consumer.highwater(tp)
        except Exception:  # not assigned any more, or the consumer is not up
            return None
        return None if end is None else int(end)

    def _events_clock(self) -> int | None:
        """The clock of the event partition that is furthest behind, of those that move and have records waiting."""
        clocks = []
        for tp, source in list(self.events.sources.items()):
            if self.champion.scorer and time.monotonic() - source.progress_s > STUCK_S:
                continue  # what waits may be no more than a transaction's marker: labels must not wait for ever
            end = self._highwater(tp)
            # None: nothing was fetched yet, so nobody knows that nothing waits
            if end is None or end > source.stored_offset:
                clocks.append(source.held.clock_ms if source.held else 0)
        return min(clocks, default=None)

    def _version(self) -> str | None:
        return self.champion.scorer.version if self.champion.scorer else None

    async def _seek(self, tp: TP, offset: int) -> None:
        await self.app.consumer.seek(tp, offset)

    async def _fatal(self, error: BaseException) -> None:
        await self.app.crash(error)

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        """Work beside the lanes must not end in silence."""
        try:
            await work
        except Exception as error:
            log.exception("the worker cannot go on")
            await self._fatal(error)

    async def _watch_ends(self) -> None:
        """Stop the worker when a topic turns out to be another one than Redis knows."""
        seen = 0
        while True:
            await asyncio.sleep(END_LOOK_S)
            wrong = self.events.ended_early() or self.labels.ended_early()
            seen = seen + 1 if wrong else 0
            if wrong and seen >= END_LOOKS:
                raise StateError(wrong)

    async def _ready(self) -> None:
        await self._warm.wait()

    async def _follow_champion(self) -> None:
        """Compile what no first batch should wait for, then load models. Nothing else compiles at the same time: two
        threads could wait for each other, one with numba's lock and one with the lock of an import."""
        await self._blocking(warm_up, self._codec)
        self._warm.set()
        await self.champion.run()

    def _batch_size(self) -> BatchSize:
        return BatchSize(self.settings.latency_objective_ms / 1000)

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)
