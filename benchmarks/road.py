"""The worker's steps on records in hand, one after the other in this thread: to time them, and to fill a Redis.

Calls what the worker calls, in its order, for one partition. No Kafka: nothing is fetched and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from benchmarks.harness import expect
from benchmarks.workloads import Events
from models.codec import Codec
from models.features.encoded import Encoded
from models.pipeline.spec import Pipeline
from models.scorer import Scorer, Scores
from stream.rendering import render
from stream.scoring import Batch, Share, decode_batch
from stream.stepping import advance, writes_of
from stream.store.keys import Position
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore

__all__ = ["Record", "Road", "Watch", "records_of"]

SOURCE = TP("bench", 0)
Watch = Callable[..., Any]  # (step, events, function, *arguments) → what the function returns


@dataclass(frozen=True, slots=True)
class Record:
    """What a step needs of a Kafka record."""

    offset: int
    timestamp: int
    key: bytes
    value: bytes


def records_of(events: Events) -> list[Record]:
    """Records as one partition would have them."""
    rows = zip(events.time_E.tolist(), events.keys, events.values, strict=True)
    return [Record(events.number + i, at, key, value) for i, (at, key, value) in enumerate(rows)]


def _unwatched(_step: str, _events: int, function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class Road:
    """Steps 2 to 8 for the source `tag`; `held` is where it stands."""

    def __init__(self, pipeline: Pipeline, client: Any, tag: str, watch: Watch = _unwatched) -> None:
        self.codec = Codec(pipeline)
        self.store = RedisStore(client, self.codec.layout)
        self.tag, self._watch = tag, watch
        self.held: Position | None = None

    def decode(self, records: list[Record]) -> Batch:
        share = Share(self.tag, records, self.held)
        batch: Batch = self._watch("decode", len(records), decode_batch, self.codec, {SOURCE: share})
        expect(not batch.decoded.bad, f"refused: {batch.decoded.bad[:1]}")
        return batch

    def features(self, batch: Batch) -> Encoded:
        """Load what the batch needs and apply its events."""
        n = len(batch.records)
        stored = self._watch("load", n, self.store.load, {self.tag: batch.entities}, batch.profile_keys)
        expect(stored.positions[self.tag] == self.held, "the position in Redis is another")
        self._watch("features", n, advance, self.codec.layout, batch, stored)
        assert batch.outcome is not None
        return batch.outcome.encoded

    def score(self, batch: Batch, encoded: Encoded, scorer: Scorer) -> Scores:
        """Score and render; no event is an alert, since explanations are timed apart. Returns the scores."""
        n, quiet = len(batch.records), SimpleNamespace(threshold=float("inf"), version=scorer.version)
        scores: Scores = self._watch("score", n, scorer.score, encoded)
        messages = self._watch("render", n, render, self.codec, batch, quiet, scores, "bench")
        expect(len(messages.scores) == n, f"{len(messages.scores)} scores of {n} events")
        return scores

    def keep(self, batch: Batch) -> None:
        """Store the batch's states and its position, and apply its outbox."""
        n = len(batch.records)
        outbox = self._watch("store", n, self._store, batch)
        self._watch("apply", n, self.store.apply, [(self.tag, outbox)])
        self.held = batch.parts[SOURCE].position

    def learn(self, batch: Batch, profiles: Iterable[str]) -> None:
        """Apply only what the batch adds to these shared profiles; no state, no position."""
        (write,) = writes_of(batch, self.store.formats)
        wanted = set(profiles)
        items = [item for item in write.outbox.items if item[0] in wanted]
        self.store.apply([(self.tag, Outbox(write.outbox.number, items))])

    def _store(self, batch: Batch) -> Outbox:
        writes = writes_of(batch, self.store.formats)
        expect(self.store.store(writes)[0], "fenced")
        return writes[0].outbox
