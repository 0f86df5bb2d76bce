"""What a report is made of, gathered in one replay: every event of the range scored, and bounded samples of windows.

Scores, verdicts and fields are kept of all events, windows only of a few thousand: enough for importance, deletion and
drift, and no more memory for a longer range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.events import EventBatch
from models.features.encoded import Encoded
from models.policy import decide
from models.scorer import Scorer
from training.archive import milliseconds
from training.errors import TrainingError
from training.evaluate import Scored
from training.replay import History, replay

__all__ = ["Gathered", "Windows", "field_values", "gather", "seen_before"]

FRAUDS, LEGIT, SHOWN, DRIFT = 2000, 4000, 300, 8000  # windows kept for importance (two), deletion, drift (twice)


@dataclass(frozen=True, slots=True)
class Windows:
    """Some windows, and which events of the range they belong to: row_B counts from 0, -1 for none of them."""

    encoded: Encoded
    row_B: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row_B)


@dataclass(frozen=True, slots=True)
class Gathered:
    """N events of the range in the order of the clock, and samples of their windows.

    frauds, legit, alerts, now: seeded samples of the frauds, of the legitimate events, of the alerts and of all events
    (their last event only). highest: the events of the greatest scores. reference: of those between the reference's
    borders, the last event only. Each is None when there is no such event.
    """

    scored: Scored
    frauds: Windows | None
    legit: Windows | None
    alerts: Windows | None
    highest: Windows | None
    now: Windows | None
    reference: Windows | None


def gather(
    history: History,
    scorer: Scorer,
    start_ms: int,
    end_ms: int,
    reference: tuple[int, int],
    *,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Gathered:
    """Replay the history once and score the events with start <= event time < end.

    reference: from when to when (end excluded, both epoch ms) the events lie that inputs are compared with. The order
    and the scores are those of `training.evaluate.offline_scores`. Raises TrainingError for a range without events.
    """
    times = history.event_time_M
    inside = (times >= start_ms) & (times < end_ms)
    if not inside.any():
        raise TrainingError("no event of the history lies in the reported range: expected other --start and --end")
    until_ms = int(history.event_clock_M[inside].max()) + 1
    frauds = history.frauds()
    pools = {name: _Pool(size) for name, size in
             (("frauds", FRAUDS), ("legit", LEGIT), ("alerts", SHOWN), ("highest", SHOWN), ("now", DRIFT),
              ("reference", DRIFT))}  # fmt: skip
    parts: list[Scored] = []

    def want(batch: EventBatch) -> NDArray[np.bool_]:
        return _between(batch, (start_ms, end_ms)) | _between(batch, reference)

    for chunk in replay(history, want, until_ms, report):
        key_M = _shuffled(chunk.batch.id_hash_M, seed)
        pools["reference"].offer(_last(chunk.encoded), key_M, -1, _between(chunk.batch, reference))
        index = np.flatnonzero(_between(chunk.batch, (start_ms, end_ms)))
        if len(index) == 0:
            continue
        batch, encoded, key_N = chunk.batch.take(index), chunk.encoded.take(index), key_M[index]
        scores = scorer.score(encoded)
        fraud_N = np.fromiter((i in frauds for i in batch.event_id), dtype=bool, count=len(batch))
        first = sum(len(p) for p in parts)
        parts.append(Scored(batch.event_id, batch.entity, batch.time_M, fraud_N, scores.score_B, scores.probability_B))
        pools["frauds"].offer(encoded, key_N, first, fraud_N)
        pools["legit"].offer(encoded, key_N, first, ~fraud_N)
        pools["alerts"].offer(encoded, key_N, first, decide(scores.score_B, scorer.threshold))
        pools["highest"].offer(encoded, -scores.score_B.astype(np.float64), first, np.ones(len(batch), dtype=bool))
        pools["now"].offer(_last(encoded), key_N, first, np.ones(len(batch), dtype=bool))
    scored = Scored(
        [i for p in parts for i in p.event_id], [e for p in parts for e in p.entity],
        np.concatenate([p.time_N for p in parts]), np.concatenate([p.fraud_N for p in parts]),
        np.concatenate([p.score_N for p in parts]), np.concatenate([p.probability_N for p in parts]),
    )  # fmt: skip
    return Gathered(scored, **{name: pool.windows() for name, pool in pools.items()})


def field_values(history: History, event_ids: list[str], time_N: NDArray[np.int64], name: str) -> list[Any]:
    """A field's values of events, as the history has them: None where missing. A time is no such field."""
    id_name = history.pipeline.pipeline.event_id
    inside = (history.event_time_M >= int(time_N.min())) & (history.event_time_M <= int(time_N.max()))
    table = history.events.select([id_name, name]).filter(pa.array(inside))
    values = dict(zip(table[id_name].to_pylist(), table[name].to_pylist(), strict=True))
    return [values.get(event_id) for event_id in event_ids]


def seen_before(history: History, scored: Scored, start_ms: int) -> NDArray[np.bool_]:
    """Whether each event's entity had an event before the range."""
    stream = history.pipeline.pipeline
    early = history.events.filter(pa.array(milliseconds(history.events[stream.time]) < start_ms))
    known = set(early[stream.entity].unique().to_pylist())
    return np.fromiter((e in known for e in scored.entity), dtype=bool, count=len(scored))


class _Pool:
    """Of all windows offered, the `size` with the least keys; a uniform sample where keys are random.

    Newcomers are gathered until they are as many as the pool, so that each window is copied a few times at most.
    """

    def __init__(self, size: int) -> None:
        self.size, self.limit = size, np.inf
        self.parts: list[tuple[Encoded, NDArray[np.float64], NDArray[np.int64]]] = []

    def offer(self, encoded: Encoded, key_N: NDArray[np.float64], first: int, wanted_N: NDArray[np.bool_]) -> None:
        """first: the row of the first window, -1 for windows that have none."""
        index = np.flatnonzero(wanted_N & (key_N < self.limit))
        if len(index) == 0:
            return
        row_N = first + index if first >= 0 else np.full(len(index), -1)
        self.parts.append((encoded.take(index), key_N[index], row_N))
        if sum(len(key) for _, key, _ in self.parts) >= 2 * self.size:
            self._shrink()

    def windows(self) -> Windows | None:
        if not self.parts:
            return None
        self._shrink()
        encoded, _, row_B = self.parts[0]
        return Windows(encoded, row_B)

    def _shrink(self) -> None:
        key_N = np.concatenate([key for _, key, _ in self.parts])
        row_N = np.concatenate([row for _, _, row in self.parts])
        kept = np.sort(np.argsort(key_N, kind="stable")[: self.size])
        encoded = Encoded.concatenate([e for e, _, _ in self.parts]).take(kept)
        self.parts = [(encoded, key_N[kept], row_N[kept])]
        if len(kept) == self.size:
            self.limit = float(key_N[kept].max())


def _between(batch: EventBatch, borders: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((batch.time_M >= borders[0]) & (batch.time_M < borders[1]))


def _last(encoded: Encoded) -> Encoded:
    return Encoded(
        encoded.x_BLF[:, -1:], encoded.codes_BLK[:, -1:], encoded.mask_BL[:, -1:], encoded.context_BC,
        encoded.verdicts_BJSG,
    )  # fmt: skip


def _shuffled(id_hash_M: NDArray[np.uint64], seed: int) -> NDArray[np.float64]:
    """Keys in [0, 1) that depend on ids and seed alone: splitmix64's finisher (Steele, Lea, Flood 2014)."""
    mixed = id_hash_M ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((mixed >> np.uint64(11)).astype(np.float64) / 2.0**53)
