"""An entity's state in words, what `python -m stream state show` prints; and what entities cost Redis."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from models.clock import to_iso
from models.errors import StateError, shorten
from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from models.surprise.forecast import LAST, MEAN, REFERENCE, VARIANCE, spread_of
from models.surprise.memory import SCALE
from models.surprise.reading import LEARNT, SEEN
from stream.kafka import partition_for
from stream.redis import connect
from stream.settings import Settings
from stream.store.keys import event_tag, state_key
from stream.store.values import unpack_states

__all__ = ["describe_state", "find_entity", "memory_by_kind", "show_entity"]


def show_entity(settings: Settings, pipeline: Pipeline, entity: str) -> str:
    """The entity's state as JSON text. Raises StateError when Redis has none."""
    client: Any = connect(settings)
    try:
        found = find_entity(client, pipeline, entity, settings.partitions)
    finally:
        client.close()
    if found is None:
        raise StateError(f"entity {shorten(entity)}: no state in Redis under {pipeline.name}: expected a known entity")
    return json.dumps(found, indent=2)


def find_entity(client: Any, pipeline: Pipeline, entity: str, partitions: int) -> dict[str, Any] | None:
    """The state of an entity as plain values, None when Redis has none. partitions: of the events topic.

    Looks where the default partitioner puts the entity, then in the other partitions.
    """
    layout = Layout(pipeline)
    likely = partition_for(entity.encode(), partitions)
    for partition in [likely, *(p for p in range(partitions) if p != likely)]:
        key = state_key(pipeline.name, event_tag(partition), entity)
        value = client.get(key)
        if value is not None:
            where = {"key": key, "partition": partition, "bytes": len(value), "expires_in_ms": client.pttl(key)}
            return where | describe_state(layout, value)
    return None


def describe_state(layout: Layout, value: bytes) -> dict[str, Any]:
    """A packed state as plain values: times in ISO-8601, numbers by field, newest event last."""
    state = unpack_states(layout, [value])[0]
    horizons = layout.pipeline.window.horizons
    decayed = {}
    for h, horizon in enumerate(horizons):
        sums = state["decayed"][h]
        decayed[horizon] = {"events": round(float(sums[0]), 4)} | {
            name: {"sum": round(float(sums[2 + 3 * v]), 4), "sum_of_squares": round(float(sums[3 + 3 * v]), 4)}
            for v, name in enumerate(layout.number_names)
        }
    rows = [_row(layout, row) for row in state["rows"] if row["id"]]
    return {
        "version": int(state["version"]),
        "layout": f"{int(state['layout']):08x}",
        "events": int(state["count"]),
        "clock": to_iso(int(state["clock"])) if state["count"] else None,
        "decayed": decayed,
        "habits": _habits(layout, state),
        **_surprise(layout, state),
        **_episode(layout, state),
        "window": rows,
    }


def memory_by_kind(client: Any, pipeline: Pipeline, sample: int = 1000) -> dict[str, dict[str, float]]:
    """What states ("state") and the shared profiles (by name) cost: keys, mean bytes of a value, mean bytes in Redis.

    Bytes in Redis are what MEMORY USAGE says of the first `sample` keys of each kind: key and value with their heads,
    without the tables that find them. Walks over all keys of one Redis: for measuring, not for a server at work.
    """
    patterns = {"state": f"{pipeline.name}:{{*}}:s:*"}
    patterns |= {name: f"{pipeline.name}:p:{{p*}}:{name}:*" for name in pipeline.profiles}
    found = {}
    for kind, pattern in patterns.items():
        keys = list(client.scan_iter(match=pattern, count=5000))
        some = keys[:sample]
        pipe = client.pipeline(transaction=False)
        for key in some:
            pipe.strlen(key)
            pipe.memory_usage(key, samples=0)
        replies = pipe.execute()
        counted = max(len(some), 1)
        found[kind] = {
            "keys": len(keys),
            "value_bytes": sum(replies[::2]) / counted,
            "memory_bytes": sum(replies[1::2]) / counted,
        }
    return found


def _habits(layout: Layout, state: Any) -> dict[str, Any]:
    """By field, in transformed units; what the filters remember, as bits."""
    names = (*layout.number_names, "gap")
    habits: dict[str, Any] = {name: _rounded(habit) for name, habit in zip(names, state["habits"], strict=True)}
    for e, name in enumerate(layout.other_entities):
        younger, older = (f"{int(bits):016x}" for bits in state["remembered"][e])
        habits[name] = _rounded(state["novelties"][e]) | {"younger": younger, "older": older}
    return habits | {name: _rounded(place) for name, place in zip(layout.geo_names, state["places"], strict=True)}


def _surprise(layout: Layout, state: Any) -> dict[str, Any]:
    """What each number is measured against, and how much it has carried lately; nothing without surprise."""
    places = layout.surprise
    if places is None:
        return {}
    words = state["surprise"]
    numbers = {}
    for c, name in enumerate(layout.number_names):
        scale = words[places.scales + c * SCALE :]
        mean, variance = float(scale[REFERENCE + MEAN]), float(scale[REFERENCE + VARIANCE])
        facts = {"mean": mean, "spread": spread_of(mean, variance), "last": float(scale[LAST])}
        facts["carried"] = float(words[places.carried + c])
        numbers[name] = {fact: round(value, 4) for fact, value in facts.items()}
    return {"surprise": {"seen": int(words[places.head + SEEN]), "learnt": int(words[places.head + LEARNT]), **numbers}}


def _episode(layout: Layout, state: Any) -> dict[str, Any]:
    """The episode that is open, if one is; what is left of the budget; nothing without episodes."""
    if not layout.pipeline.episodes.calm:
        return {}
    held = state["episode"][0]
    opened, said, ended, _ = (to_iso(int(time)) if time else None for time in held["times"])
    events, calm, quiet = (int(count) for count in held["counts"])
    peak, _, left = (round(float(level), 4) for level in held["levels"])
    facts = {"opened_at": opened, "said_at": said, "ended_at": ended, "events": events, "calm": calm, "quiet": quiet}
    return {"episode": facts | {"peak_score": peak, "openings_left": left}}


def _rounded(record: Any) -> dict[str, float]:
    return {name: round(float(record[name]), 4) for name in record.dtype.names}


def _row(layout: Layout, row: Any) -> dict[str, Any]:
    values = {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(layout.values, row["values"], strict=True)}
    hashes = {n: f"{int(h):08x}" if h else None for n, h in zip(layout.hashes, row["hashes"], strict=True)}
    return {"time": to_iso(int(row["time"])), "id": f"{int(row['id']):016x}"} | values | hashes
