"""The oracle of end-to-end tests: what an uninterrupted run of a topic's records comes to, worked out in memory.

Reads the records that really are on the topics, in each partition's order, and applies them in one process with no
Kafka, no Redis and no batches of a worker: `MemoryStore` instead. It does not judge the feature function itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.codec import Codec
from models.features.layout import Layout
from models.features.memory import MemoryStore
from models.features.profiles import safe_end_ms
from models.messages import decode_score, rounded
from models.pipeline.spec import Pipeline
from models.scorer import Scorer
from stream.redis import connect
from stream.settings import Settings
from stream.store.keys import Position, event_tag, label_tag, position_key, profile_key, state_key
from stream.store.values import ProfileFormat
from tests.support import by_partition

CHUNK = 256


@dataclass
class Uninterrupted:
    """states, profiles: Redis key → state, rings. scores: event id → (score, probability). next_offsets: by tag."""

    states: dict[str, bytes] = field(default_factory=dict)
    profiles: dict[str, bytes] = field(default_factory=dict)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    next_offsets: dict[str, int] = field(default_factory=dict)


def uninterrupted(pipeline: Pipeline, events: list[Any], labels: list[Any], scorer: Scorer) -> Uninterrupted:
    """Apply all good records of `.events` and `.labels` in the order of their partitions' clocks."""
    codec, store, out = Codec(pipeline), MemoryStore(pipeline), Uninterrupted()
    event_part = by_partition(events)
    out.next_offsets = {event_tag(p): part[-1].offset + 1 for p, part in event_part.items()}
    out.next_offsets |= {label_tag(p): part[-1].offset + 1 for p, part in by_partition(labels).items()}
    timeline = _in_clock_order(codec, event_part)
    arrivals = _in_clock_order(codec, by_partition(labels), labels=True)
    entities: dict[str, int] = {}
    profiles: set[tuple[str, str]] = set()
    fed = 0
    for chunk in _chunks(store.layout, timeline):
        due = [a for a in arrivals[fed:] if a[0] < chunk[-1][0]]
        _learn(codec, store, due, profiles)
        fed += len(due)
        batch = codec.decode([r.value for _, r in chunk], _append(chunk)).batch
        step = store.step(batch, _clocks(chunk))
        scores = scorer.score(step.encoded)
        for row, m in enumerate(step.applied_A.tolist()):
            entities[batch.entity[m]] = chunk[m][1].partition
            out.scores[batch.event_id[m]] = (
                rounded(float(scores.score_B[row])), rounded(float(scores.probability_B[row])),
            )  # fmt: skip
            profiles |= {(name, keys[m]) for name, keys in batch.profile_keys.items() if keys[m] is not None}
    _learn(codec, store, arrivals[fed:], profiles)
    name = pipeline.name
    out.states = {state_key(name, event_tag(p), e): store.state(e).tobytes() for e, p in entities.items()}
    out.profiles = {profile_key(name, profile, key): store.profile(profile, key).tobytes() for profile, key in profiles}
    return out


def assert_same_end(settings: Settings, pipeline: Pipeline, expected: Uninterrupted) -> None:
    """Redis holds exactly the expected states, profiles and positions, to the bit."""
    client: Any = connect(settings)
    try:
        tags = [event_tag(p) for p in range(settings.partitions)] + [label_tag(p) for p in range(settings.partitions)]
        packed = {tag: client.get(position_key(pipeline.name, tag)) for tag in tags}
        positions = {tag: Position.unpack(data).next_offset for tag, data in packed.items() if data}
        assert positions == expected.next_offsets
        _assert_equal("state", _values(client, f"{pipeline.name}:{{*}}:s:*"), expected.states)
        found: dict[str, bytes] = {}
        for name, profile in pipeline.profiles.items():
            stored = ProfileFormat(Layout(pipeline), name, profile)  # the order of records is nobody's business
            values = _values(client, f"{pipeline.name}:p:{{p*}}:{name}:*")
            found |= {key: stored.unpack([value])[0].tobytes() for key, value in values.items()}
        _assert_equal("profile", found, expected.profiles)
    finally:
        client.close()


def assert_scored(expected: Uninterrupted, scores: list[Any], same_content: bool) -> int:
    """Every applied event has a score, and none has a stranger's; returns how many scores are repeats.

    same_content: repeats agree to the byte, and all with the oracle.
    """
    decoded = [decode_score(record.value) for record in scores]
    found = {s.event_id for s in decoded}
    missing, extra = sorted(expected.scores.keys() - found), sorted(found - expected.scores.keys())
    assert not missing + extra, f"{len(missing)} events without a score, {len(extra)} unknown: {(missing + extra)[:9]}"
    if same_content:
        assert len({record.value for record in scores}) == len(expected.scores), "repeats differ"
        assert {s.event_id: (s.score, s.probability) for s in decoded} == expected.scores
    return len(scores) - len(expected.scores)


def _in_clock_order(codec: Codec, parts: dict[int, list[Any]], labels: bool = False) -> list[tuple[int, Any]]:
    """(clock, record) of all good records, merged over partitions."""
    merged: list[tuple[int, int, int, Any]] = []
    for partition, records in parts.items():
        values, append = [r.value for r in records], np.array([r.timestamp for r in records], dtype=np.int64)
        decoded = codec.decode_labels(values, append) if labels else codec.decode(values, append, _keys(records))
        clocks = np.maximum.accumulate(decoded.batch.time_M).tolist()
        good = decoded.good.tolist()
        merged += [(c, partition, records[i].offset, records[i]) for c, i in zip(clocks, good, strict=True)]
    return [(clock, record) for clock, _, _, record in sorted(merged, key=lambda m: m[:3])]


def _keys(records: list[Any]) -> list[bytes | None]:
    return [r.key for r in records]


def _chunks(layout: Layout, timeline: list[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    """Labels are applied a chunk at a time, before its events: no longer than shared profiles tolerate."""
    first = 0
    for place, (clock, _) in enumerate(timeline):
        end = safe_end_ms(layout, timeline[first][0])
        if place - first == CHUNK or (end is not None and clock > end):
            yield timeline[first:place]
            first = place
    if timeline:
        yield timeline[first:]


def _append(chunk: list[tuple[int, Any]]) -> Any:
    return np.array([record.timestamp for _, record in chunk], dtype=np.int64)


def _clocks(chunk: list[tuple[int, Any]]) -> Any:
    return np.array([clock for clock, _ in chunk], dtype=np.int64)


def _learn(codec: Codec, store: MemoryStore, due: list[tuple[int, Any]], profiles: set[tuple[str, str]]) -> None:
    if due:
        batch = codec.decode_labels([record.value for _, record in due], _append(due)).batch
        store.learn(batch, _clocks(due))
        profiles |= {(name, k) for name, keys in batch.profile_keys.items() for k in keys if k is not None}


def _values(client: Any, pattern: str) -> dict[str, bytes]:
    return {key.decode(): client.get(key) for key in client.scan_iter(match=pattern, count=2000)}


def _assert_equal(what: str, found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differ = sorted(key for key in expected.keys() & found.keys() if found[key] != expected[key])
    summary = f"{what}: {len(expected)} expected, {len(missing)} missing, {len(extra)} extra, {len(differ)} differ"
    wrong = missing + extra + differ
    assert not wrong, f"{summary}; first: {wrong[:3]}"
