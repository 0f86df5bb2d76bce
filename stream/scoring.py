"""From records to columns, and from scores to messages. No Kafka and no Redis.

Everything here is a pure function of the records, what was loaded for them and the model: a batch that is
processed again gives the same messages, and an event's do not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.attribution import Reason
from models.codec import Codec, Decoded
from models.columns import distinct
from models.features.encoded import Encoded
from models.features.profiles import Increments
from models.messages import Alert, Explanation, encode, encode_scores, rounded, rounded_each
from models.policy import alert_id, decide
from models.scorer import Scorer, Scores
from stream.store.keys import Position

__all__ = ["Messages", "Outcome", "Part", "decode_part", "distinct", "render"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the features came to for one part.

    applied_A: positions of the applied events in the part's batch; the rest are duplicates. late_A: as in `Step`.
    windows: where the part's windows are in those of the whole batch. states_N: next states of its entities.
    increments: what it adds to shared profiles, by rows of its `profile_keys`.
    """

    applied_A: NDArray[np.int64]
    late_A: NDArray[np.bool_]
    windows: slice
    states_N: NDArray[np.void]
    increments: dict[str, Increments]


@dataclass
class Part:
    """One partition's share of a batch, as it goes down the road."""

    tag: str
    records: list[Any]
    next_offset: int  # after the last record
    held: Position | None  # where the partition stood
    decoded: Decoded
    entities: list[str]  # distinct, in the order of the states
    owner_M: NDArray[np.int64]  # each event's entity
    clock_M: NDArray[np.int64]
    profile_keys: dict[str, list[str]]  # distinct
    ring_owner: dict[str, NDArray[np.int64]]  # each event's profile, -1 for none
    outcome: Outcome | None = None

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Where each entity's state is."""
        return dict(zip(self.entities, range(len(self.entities)), strict=True))

    @cached_property
    def profile_rows(self) -> dict[str, dict[str, int]]:
        """For each profile, where each key is."""
        return {name: dict(zip(keys, range(len(keys)), strict=True)) for name, keys in self.profile_keys.items()}

    @cached_property
    def position(self) -> Position:
        """Where the partition will stand when this part is stored."""
        held = self.held or Position()
        clock = int(self.clock_M[-1]) if len(self.clock_M) else held.clock_ms
        return Position(self.next_offset, clock, held.outbox_seq + 1)


@dataclass(frozen=True, slots=True)
class Messages:
    """What a part publishes: (key, value) of each score, and of each alert."""

    scores: list[tuple[bytes, bytes]]
    alerts: list[tuple[bytes, bytes]]


def decode_part(codec: Codec, tag: str, records: list[Any], next_offset: int, held: Position | None) -> Part:
    """Decode one partition's records and find out what has to be loaded for them.

    Every record of `.events` has its entity as key, whoever keyed it: the producer or our ingest agent.
    """
    append_ms = np.array([r.timestamp for r in records], dtype=np.int64)
    decoded = codec.decode([r.value for r in records], append_ms, [r.key for r in records])
    batch = decoded.batch
    profile_keys = {name: keys.texts for name, keys in decoded.profile_keys.items()}
    ring_owner = {name: keys.place_M for name, keys in decoded.profile_keys.items()}
    start = 0 if held is None else held.clock_ms
    clock_M = np.maximum.accumulate(np.maximum(batch.time_M, start))
    return Part(
        tag, records, next_offset, held, decoded, decoded.entities.texts, decoded.entities.place_M, clock_M,
        profile_keys, ring_owner,
    )  # fmt: skip


def render(codec: Codec, part: Part, scorer: Scorer, encoded: Encoded, scores: Scores, detector: str) -> Messages:
    """Scores of all applied events and alerts of those that reach the threshold.

    encoded: the A windows of this part. scores: the scorer's answer for them. detector: its architecture.
    """
    assert part.outcome is not None
    batch, applied_A = part.decoded.batch, part.outcome.applied_A
    ids, entities = batch.event_id, batch.entity
    if len(applied_A) < len(batch):
        applied = applied_A.tolist()
        ids, entities = [ids[m] for m in applied], [entities[m] for m in applied]
    # `to_iso` of each, at an eighth of the cost
    stamps_A = batch.time_M[applied_A].astype("datetime64[ms]")
    times: list[str] = np.datetime_as_string(stamps_A, timezone="UTC").tolist()
    numbers: list[float] = rounded_each(np.concatenate([scores.score_B, scores.probability_B])).tolist()
    count = len(times)
    facts = _Facts(
        ids, entities, times, numbers[:count], numbers[count:], decide(scores.score_B, scorer.threshold)
    )  # fmt: skip
    values = encode_scores(
        codec.pipeline.name, scorer.version, ids, entities, facts.times, facts.scores, facts.probabilities,
        facts.alert_A.tolist(),
    )  # fmt: skip
    keys = map(str.encode, entities)
    return Messages(list(zip(keys, values, strict=True)), _alerts(codec, part, scorer, encoded, facts, detector))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What messages say of the A applied events; numbers are rounded."""

    ids: list[str]
    entities: list[str]
    times: list[str]
    scores: list[float]
    probabilities: list[float]
    alert_A: NDArray[np.bool_]


def _alerts(
    codec: Codec, part: Part, scorer: Scorer, encoded: Encoded, facts: _Facts, detector: str
) -> list[tuple[bytes, bytes]]:
    """The alerts of a part, explained in one call."""
    raised = np.flatnonzero(facts.alert_A)
    if not len(raised):
        return []
    assert part.outcome is not None
    pipeline = codec.pipeline
    records_A = part.decoded.good[part.outcome.applied_A]
    alerts = []
    for a, why in zip(raised.tolist(), scorer.explain(encoded.take(raised), pipeline.policy.reasons), strict=True):
        event = codec.decode_one(part.records[int(records_A[a])].value)
        alert = Alert(
            alert_id=alert_id(pipeline.name, facts.ids[a], detector), pipeline=pipeline.name, event_id=facts.ids[a],
            entity=facts.entities[a], event_time=facts.times[a], detector=detector, score=facts.scores[a],
            probability=facts.probabilities[a], threshold=rounded(scorer.threshold), model=scorer.version,
            reasons=[_explanation(codec, event, reason) for reason in why], event=event,
        )  # fmt: skip
        alerts.append((facts.entities[a].encode(), encode(alert)))
    return alerts


def _explanation(codec: Codec, event: dict[str, Any], reason: Reason) -> Explanation:
    """A reason in the event's own terms where it names a field: its value, not what the detector makes of it."""
    value = reason.value
    field = codec.pipeline.fields.get(reason.feature)
    if field is not None and codec.pipeline.json_key(reason.feature) in event:
        value = event[codec.pipeline.json_key(reason.feature)]
    if isinstance(value, float | np.floating):
        value = rounded(float(value))
    return Explanation(feature=reason.feature, value=value, effect=rounded(reason.effect))
