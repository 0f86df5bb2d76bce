"""The worker's steps on records in hand, one after the other in this thread: to time them, and to fill a Redis.

Calls what the worker calls, in its order, for one partition. No Kafka: nothing is fetched and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from benchmarks.harness import expect
from benchmarks.workloads import Events
from models.codec import Codec
from models.features.encoded import Encoded
from models.pipeline.spec import Pipeline
from models.scorer import Scorer, Scores
from stream.scoring import Part, decode_part, render
from stream.stepping import advance, profile_keys_of
from stream.store.keys import Position
from stream.store.outbox import Outbox, make_outbox
from stream.store.redis_store import RedisStore, Write

__all__ = ["Record", "Road", "Watch", "records_of"]

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

    def decode(self, records: list[Record]) -> Part:
        part: Part = self._watch(
            "decode", len(records), decode_part, self.codec, self.tag, records, records[-1].offset + 1, self.held
        )
        expect(not part.decoded.bad, f"refused: {part.decoded.bad[:1]}")
        return part

    def features(self, part: Part) -> Encoded:
        """Load what the part needs and apply its events."""
        n = len(part.records)
        stored = self._watch("load", n, self.store.load, {self.tag: part.entities}, part.profile_keys)
        expect(stored.positions[self.tag] == self.held, "the position in Redis is another")
        places = profile_keys_of([part], self.store.formats)
        encoded: Encoded = self._watch("features", n, advance, self.codec.layout, [part], stored, places)
        return encoded

    def score(self, part: Part, encoded: Encoded, scorer: Scorer) -> Scores:
        """Score and render; no event is an alert, since explanations are timed apart. Returns the scores."""
        n, quiet = len(part.records), SimpleNamespace(threshold=float("inf"), version=scorer.version)
        scores: Scores = self._watch("score", n, scorer.score, encoded)
        messages = self._watch("render", n, render, self.codec, part, quiet, encoded, scores, "bench")
        expect(len(messages.scores) == n, f"{len(messages.scores)} scores of {n} events")
        return scores

    def keep(self, part: Part) -> None:
        """Store the part's states and its position, and apply its outbox."""
        n = len(part.records)
        outbox = self._watch("store", n, self._store, part)
        self._watch("apply", n, self.store.apply, [(self.tag, outbox)])
        self.held = part.position

    def learn(self, part: Part, profiles: Iterable[str]) -> None:
        """Apply only what the part adds to these shared profiles; no state, no position."""
        self.store.apply([(self.tag, self._outbox(part, set(profiles)))])

    def _store(self, part: Part) -> Outbox:
        assert part.outcome is not None
        outbox = self._outbox(part, set(self.store.formats))
        write = Write(self.tag, self.held, part.position, outbox, part.entities, part.outcome.states_N)
        expect(self.store.store([write])[0], "fenced")
        return outbox

    def _outbox(self, part: Part, profiles: set[str]) -> Outbox:
        assert part.outcome is not None
        increments = {name: [added] for name, added in part.outcome.increments.items() if name in profiles}
        return make_outbox(part.position.outbox_seq, self.store.formats, part.profile_keys, increments)
