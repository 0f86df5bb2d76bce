"""From records to columns, and from scores to messages. No Kafka and no Redis.

Everything here is a pure function of the records, what was loaded for them and the model: a batch that is
processed again gives the same messages, and an event's do not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.attribution import Reason
from models.codec import Codec, Decoded
from models.features.encoded import Encoded
from models.features.profiles import Increments
from models.messages import Alert, Explanation, Score, encode, rounded
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

    @property
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
    entities, owner_M = distinct(batch.entity)
    profile_keys, ring_owner = {}, {}
    for name, values in batch.profile_keys.items():
        profile_keys[name], ring_owner[name] = distinct(values)
    start = 0 if held is None else held.clock_ms
    clock_M = np.maximum.accumulate(np.maximum(batch.time_M, start))
    return Part(tag, records, next_offset, held, decoded, entities, owner_M, clock_M, profile_keys, ring_owner)


def render(codec: Codec, part: Part, scorer: Scorer, encoded: Encoded, scores: Scores, detector: str) -> Messages:
    """Scores of all applied events and alerts of those that reach the threshold.

    encoded: the A windows of this part. scores: the scorer's answer for them. detector: its architecture.
    """
    assert part.outcome is not None
    batch, applied = part.decoded.batch, part.outcome.applied_A.tolist()
    pipeline = codec.pipeline
    alert_A = decide(scores.score_B, scorer.threshold)
    out: list[tuple[bytes, bytes]] = []
    # `to_iso` of each, at an eighth of the cost
    stamps_A = batch.time_M[part.outcome.applied_A].astype("datetime64[ms]")
    times: list[str] = np.datetime_as_string(stamps_A, timezone="UTC").tolist()
    rows = zip(applied, times, scores.score_B.tolist(), scores.probability_B.tolist(), alert_A.tolist(), strict=True)
    for m, event_time, score, probability, alert in rows:
        message = Score(
            pipeline=pipeline.name, event_id=batch.event_id[m], entity=batch.entity[m], event_time=event_time,
            score=rounded(score), probability=rounded(probability), alert=alert, model=scorer.version,
        )  # fmt: skip
        out.append((batch.entity[m].encode(), encode(message)))
    raised = np.flatnonzero(alert_A)
    alerts: list[tuple[bytes, bytes]] = []
    if len(raised):
        reasons = scorer.explain(encoded.take(raised), pipeline.policy.reasons)
        for a, why in zip(raised.tolist(), reasons, strict=True):
            m = applied[a]
            event = codec.decode_one(part.records[int(part.decoded.good[m])].value)
            alert_message = Alert(
                alert_id=alert_id(pipeline.name, batch.event_id[m], detector), pipeline=pipeline.name,
                event_id=batch.event_id[m], entity=batch.entity[m], event_time=times[a], detector=detector,
                score=rounded(float(scores.score_B[a])), probability=rounded(float(scores.probability_B[a])),
                threshold=rounded(scorer.threshold), model=scorer.version,
                reasons=[_explanation(codec, event, reason) for reason in why], event=event,
            )  # fmt: skip
            alerts.append((batch.entity[m].encode(), encode(alert_message)))
    return Messages(out, alerts)


def _explanation(codec: Codec, event: dict[str, Any], reason: Reason) -> Explanation:
    """A reason in the event's own terms where it names a field: its value, not what the detector makes of it."""
    value = reason.value
    field = codec.pipeline.fields.get(reason.feature)
    if field is not None and codec.pipeline.json_key(reason.feature) in event:
        value = event[codec.pipeline.json_key(reason.feature)]
    if isinstance(value, float | np.floating):
        value = rounded(float(value))
    return Explanation(feature=reason.feature, value=value, effect=rounded(reason.effect))


def distinct(values: list[Any]) -> tuple[list[str], NDArray[np.int64]]:
    """Distinct values in order of appearance, and each value's place among them; -1 for None."""
    index: dict[str, int] = {}
    places = [-1 if value is None else index.setdefault(value, len(index)) for value in values]
    return list(index), np.array(places, dtype=np.int64)
