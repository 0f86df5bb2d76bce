"""The past of a workload: what memory and Redis hold when the first counted event comes.

The templates' past is played through memory and through a real store. Then every entity gets the state of its
template, under its own key, in the partition its events go to: a million entities take a minute, and each has a full
window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import expect
from benchmarks.road import Road, records_of
from benchmarks.workloads import Events, Workload
from models.codec import Codec
from models.features.encoded import Encoded
from models.features.memory import MemoryStore
from models.scorer import Scorer
from stream.kafka import partition_for
from stream.store.keys import Position, event_tag
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore, Write

__all__ = ["History"]

FULL_ROUNDS = 6  # the newest rounds, whose windows are full
AHEAD_WINDOWS, AHEAD_EVENTS, FEW_WINDOWS = 4000, 100_000, 500
CHUNK = 1024
GROUP = 2000  # entities written at once
PAST = "past"  # the source the templates' past is stored under; no partition has this tag


class History:
    """Plays the past of a workload's templates into memory."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.codec = workload, Codec(workload.pipeline)
        self.memory = MemoryStore(workload.pipeline)
        self.rounds = list(workload.past())
        windows = [self.step(events) for events in self.rounds]
        self.windows = Encoded.concatenate(windows[-FULL_ROUNDS:])
        expect(bool(self.windows.mask_BL.all()), "a window of a template is not full")

    def profile_keys(self) -> dict[str, list[str]]:
        """The keys of each shared profile that occur in the past."""
        found: dict[str, dict[str, None]] = {name: {} for name in self.workload.pipeline.profiles}
        for events in self.rounds:
            batch = self.codec.decode(events.values, events.time_E, events.keys).batch
            for name, keys in batch.profile_keys.items():
                found[name] |= dict.fromkeys(key for key in keys if key is not None)
        return {name: list(keys) for name, keys in found.items()}

    def step(self, events: Events) -> Encoded:
        """Apply events in memory; their windows."""
        decoded = self.codec.decode(events.values, events.time_E, events.keys)
        expect(not decoded.bad, f"refused: {decoded.bad[:1]}")
        return self.memory.step(decoded.batch, np.maximum.accumulate(decoded.batch.time_M)).encoded

    def windows_ahead(self) -> Encoded:
        """Windows of events as they will be counted, to set a threshold by. Memory moves on: keep it for this."""
        wanted = AHEAD_WINDOWS * self.workload.entities // self.workload.templates
        events = self.workload.events(0, min(wanted, AHEAD_EVENTS))
        mine = np.flatnonzero(events.entity_E < self.workload.templates)
        found = [self.step(events.take(mine[a : a + CHUNK])) for a in range(0, len(mine), CHUNK)]
        # of very many entities hardly one comes twice, and its first event is much like the last one before
        return Encoded.concatenate(found) if len(mine) >= FEW_WINDOWS else self.windows

    def scores(self, events: Events, scorer: Scorer) -> dict[str, float]:
        """The score of each of the templates' events, by event id, computed in memory. Once: memory moves on."""
        mine = np.flatnonzero(events.entity_E < self.workload.templates)
        found: dict[str, float] = {}
        for taken in (events.take(mine[a : a + CHUNK]) for a in range(0, len(mine), CHUNK)):
            found |= dict(zip(taken.ids, scorer.score(self.step(taken)).score_B.tolist(), strict=True))
        return found

    def fill_past(self, client: Any) -> None:
        """Play the templates' past through Redis: shared profiles, and states that are copied from."""
        road = Road(self.workload.pipeline, client, PAST)
        for events in self.rounds:
            part = road.decode(records_of(events))
            road.features(part)
            road.keep(part)

    def fill_states(self, client: Any, partitions: int) -> None:
        """Give every entity the state of its template, and every partition a position at offset 0."""
        store = RedisStore(client, self.codec.layout)
        names = self.workload.names(np.arange(self.workload.templates))
        states_T = store.load({PAST: names}, {}).states_N
        every = np.arange(self.workload.entities)
        place_E = np.array([partition_for(name.encode(), partitions) for name in self.workload.names(every)])
        for partition in range(partitions):
            self._fill_partition(store, partition, every[place_E == partition], states_T)

    def _fill_partition(
        self, store: RedisStore, partition: int, entity_E: NDArray[np.int64], states_T: NDArray[np.void]
    ) -> None:
        held, clock_ms = None, int(self.rounds[-1].time_E[-1])
        for group_E in _groups(entity_E) if len(entity_E) else [entity_E]:  # a position even without entities
            position = Position(0, clock_ms, 1 if held is None else held.outbox_seq + 1)
            write = Write(
                event_tag(partition), held, position, Outbox(position.outbox_seq, []), self.workload.names(group_E),
                states_T[group_E % self.workload.templates],
            )  # fmt: skip
            expect(store.store([write])[0], "fenced")
            held = position

    def fill_own_profiles(self, client: Any) -> None:
        """Profiles that only one entity has, such as its device's; the templates' exist already."""
        if not self.workload.own_profiles:
            return
        for number, entity_E in enumerate(_groups(np.arange(self.workload.templates, self.workload.entities))):
            road = Road(self.workload.pipeline, client, f"{PAST}-own-{number}")
            part = road.decode(records_of(self.workload.one_each(entity_E)))
            road.features(part)
            road.learn(part, self.workload.own_profiles)


def _groups(entity_E: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    return (entity_E[a : a + GROUP] for a in range(0, len(entity_E), GROUP))
