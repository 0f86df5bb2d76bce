"""What every peer does with its events: decode, read states and profiles, score with torch, write back, answer.

Uses the project's own codec, features and weights, and redis-py by hand; a peer calls `one` for each event, or `many`
where its framework hands over several at once. No `stream`: a peer has no fence, no outbox and no position. What it
leaves out of the product's promises makes it faster, not slower.

Imported in the peers' own environments, too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from redis import Redis

from benchmarks.peers.spec import Spec
from models.bundle import load_bundle
from models.clock import to_iso
from models.codec import Codec
from models.detectors.base import tensors
from models.engines.torch_engine import detector_of
from models.features.layout import SLOT
from models.features.profiles import accumulate
from models.features.step import Loaded, increments_of, step
from models.pipeline import load_pipeline

__all__ = ["Answer", "Job"]

END_S = 1.5  # for what is still on its way out


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one event: its key, its score message, and its alert message if it is one."""

    key: bytes
    score: bytes
    alert: bytes | None


class Job:
    """The job, and the count of what it cost. Ends the process some time after the last counted event."""

    def __init__(self, spec: Spec) -> None:
        torch.set_num_threads(1)
        self.spec = spec
        pipeline = load_pipeline(spec.pipeline)
        self._codec = Codec(pipeline)
        bundle = load_bundle(Path(spec.bundle), pipeline)
        self._threshold = bundle.threshold
        self._detector = detector_of(bundle)
        self._redis: Any = Redis(port=spec.redis_port)
        self._done, self._began = 0, (0.0, 0.0, 0)

    @staticmethod
    def from_command_line() -> Job:
        """The job whose spec is the file named on the command line."""
        return Job(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Spec))

    def one(self, key: bytes, value: bytes, append_ms: int) -> Answer:
        """Process one event."""
        return self.many([key], [value], [append_ms])[0]

    def many(self, keys: list[bytes], values: list[bytes], append_ms: list[int]) -> list[Answer]:
        """Process events in order, two round trips for all of them."""
        layout = self._codec.layout
        batch = self._codec.decode(values, np.array(append_ms, dtype=np.int64), keys).batch
        entities, owner_M = _distinct(batch.entity)
        named = {name: _distinct(column) for name, column in batch.profile_keys.items()}
        stored = iter(self._read(entities, {name: names for name, (names, _) in named.items()}))
        states_N = layout.empty_states(len(entities))
        for n in range(len(entities)):
            if (held := next(stored)) is not None:
                states_N[n] = np.frombuffer(held, layout.state_dtype)[0]
        rings = {}
        for name, (names, _) in named.items():
            rings[name] = layout.empty_profiles(layout.pipeline.profiles[name], len(names))
            for p in range(len(names)):
                if (held := next(stored)) is not None:
                    rings[name][p] = np.frombuffer(held, SLOT).reshape(rings[name].shape[1:])
        loaded = Loaded(states_N, owner_M, rings, {name: owner for name, (_, owner) in named.items()})
        clock_M = np.maximum.accumulate(batch.time_M)
        done = step(layout, batch, clock_M, loaded)
        for name, added in increments_of(layout, batch, clock_M, loaded.ring_owner).items():
            accumulate(layout.pipeline.profiles[name], rings[name], added)
        with torch.inference_mode():
            score_M = self._detector(*tensors(done.encoded)).sigmoid().tolist()
        self._write(entities, done.states_N, {name: names for name, (names, _) in named.items()}, rings)
        answers = [self._answer(key, *row) for key, *row in zip(
            keys, values, batch.event_id, batch.entity, batch.time_M.tolist(), score_M, strict=True
        )]  # fmt: skip
        self._count(len(answers))
        return answers

    def _read(self, entities: list[str], profiles: dict[str, list[str]]) -> list[bytes | None]:
        names = [f"{self.spec.prefix}s:{entity}" for entity in entities]
        names += [f"{self.spec.prefix}p:{profile}:{key}" for profile, keys in profiles.items() for key in keys]
        found: list[bytes | None] = self._redis.mget(names)
        return found

    def _write(self, entities: list[str], states_N: Any, profiles: dict[str, list[str]], rings: dict[str, Any]) -> None:
        values = {f"{self.spec.prefix}s:{e}": states_N[n].tobytes() for n, e in enumerate(entities)}
        for profile, keys in profiles.items():
            values |= {f"{self.spec.prefix}p:{profile}:{k}": rings[profile][p].tobytes() for p, k in enumerate(keys)}
        self._redis.mset(values)

    def _answer(self, key: bytes, value: bytes, event_id: str, entity: str, time_ms: int, score: float) -> Answer:
        alert = score >= self._threshold
        message: dict[str, Any] = {
            "event_id": event_id,
            "entity": entity,
            "event_time": to_iso(time_ms),
            "score": score,
            "alert": alert,
        }
        raised = msgspec.json.encode(message | {"event": msgspec.Raw(value)}) if alert else None
        return Answer(key, msgspec.json.encode(message), raised)

    def _count(self, events: int) -> None:
        before, self._done = self._done, self._done + events
        if before <= self.spec.warm_up < self._done:
            self._began = (time.process_time(), time.monotonic(), self._done)
        if before < self.spec.events <= self._done:
            cpu_s, clock_s, first = self._began
            counted = self._done - first
            facts = {"events": counted, "cpu_s": time.process_time() - cpu_s, "clock_s": time.monotonic() - clock_s}
            Path(self.spec.result).write_text(json.dumps(facts), encoding="utf-8")
            threading.Timer(END_S, os.kill, (os.getpid(), signal.SIGTERM)).start()


def _distinct(values: list[Any]) -> tuple[list[str], Any]:
    """Distinct values in order of appearance, and each value's place among them; -1 for None."""
    index: dict[str, int] = {}
    places = [-1 if value is None else index.setdefault(value, len(index)) for value in values]
    return list(index), np.array(places, dtype=np.int64)
