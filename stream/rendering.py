"""From scores to messages. No Kafka and no Redis.

Everything here is a pure function of the records, what was loaded for them and the model: a batch that is
processed again gives the same messages, and an event's do not depend on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from models.attribution import Reason
from models.clock import to_iso
from models.codec import Codec
from models.episodes import KINDS, NONE, OPEN, Turns, advance_episodes
from models.messages import (
    FLEET_ONLY,
    INSUFFICIENT,
    Alert,
    Episode,
    Explanation,
    encode,
    encode_scores,
    rounded,
    rounded_each,
)  # fmt: skip
from models.pipeline.spec import SURPRISE, without_labels
from models.policy import alert_id, decide
from models.scorer import Scorer, Scores
from stream.scoring import Batch, Messages

__all__ = ["render"]

CARRIED = ".carried"  # the column of context that says how much of the surprise a field has carried
HALF = 64  # bits of an identifier in a column


def render(codec: Codec, batch: Batch, scorer: Scorer, scores: Scores, detector: str) -> Messages:
    """Scores of all applied events, and alerts: of those that reach the threshold, or of the turns of episodes, which
    are noted in the next states. detector: its architecture."""
    assert batch.outcome is not None
    events, applied_A = batch.decoded.batch, batch.outcome.applied_A
    ids, entities = events.event_id, events.entity
    if len(applied_A) < len(events):
        applied = applied_A.tolist()
        ids, entities = [ids[m] for m in applied], [entities[m] for m in applied]
    # `to_iso` of each, at an eighth of the cost
    stamps_A = events.time_M[applied_A].astype("datetime64[ms]")
    times: list[str] = np.datetime_as_string(stamps_A, timezone="UTC").tolist()
    numbers: list[float] = rounded_each(np.concatenate([scores.score_B, scores.probability_B])).tolist()
    count = len(times)
    facts = _Facts(
        ids, entities, times, numbers[:count], numbers[count:], decide(scores.score_B, scorer.threshold)
    )  # fmt: skip
    values = encode_scores(
        codec.pipeline.name, scorer.version, ids, entities, facts.times, facts.scores, facts.probabilities,
        facts.alert_A.tolist(), _statuses(codec, batch, detector),
    )  # fmt: skip
    keys = map(str.encode, entities)
    turns = _turns(codec, batch, scorer, scores, facts, detector)
    return Messages(list(zip(keys, values, strict=True)), _alerts(codec, batch, scorer, facts, detector, turns))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What messages say of the A applied events; numbers are rounded."""

    ids: list[str]
    entities: list[str]
    times: list[str]
    scores: list[float]
    probabilities: list[float]
    alert_A: NDArray[np.bool_]


def _statuses(codec: Codec, batch: Batch, detector: str) -> list[str | UnsetType] | None:
    """Of each applied event, what the score of a detector without labels rests on, if not on its entity's own past;
    None for other detectors."""
    if not without_labels(detector):
        return None
    assert batch.outcome is not None
    windows = batch.outcome.encoded
    known_A = windows.context_BC[:, codec.layout.inputs.context.index("surprise.known")] >= 1.0
    forecast_A = windows.mask_BL[:, -2] & (detector != SURPRISE)  # from one event on there is something to go by
    meaning = (UNSET, FLEET_ONLY, INSUFFICIENT)
    return [meaning[place] for place in np.where(known_A, 0, np.where(forecast_A, 1, 2)).tolist()]


def _turns(codec: Codec, batch: Batch, scorer: Scorer, scores: Scores, facts: _Facts, detector: str) -> Turns | None:
    """What the applied events do to the episodes of their entities, whose next states are changed; None without any."""
    rules, outcome = codec.pipeline.episodes, batch.outcome
    assert outcome is not None
    if not rules.calm:
        return None
    id_A2 = np.zeros((len(facts.ids), 2), np.uint64)
    for a in np.flatnonzero(facts.alert_A).tolist():  # only these may open one
        number = int(alert_id(codec.pipeline.name, facts.ids[a], detector), 16)
        id_A2[a] = number >> HALF, number & (1 << HALF) - 1
    held_N = outcome.states_N["episode"][:, 0]
    time_A, owner_A = batch.decoded.batch.time_M[outcome.applied_A], batch.owner_M[outcome.applied_A]
    return advance_episodes(rules, held_N, owner_A, time_A, scores.score_B, scorer.threshold, id_A2)


def _alerts(
    codec: Codec, batch: Batch, scorer: Scorer, facts: _Facts, detector: str, turns: Turns | None
) -> dict[int, tuple[bytes, bytes]]:
    """The alerts of a batch, by the place of their window, explained in one call."""
    raised = np.flatnonzero(facts.alert_A if turns is None else turns.kind_A != NONE)
    if not len(raised):
        return {}
    assert batch.outcome is not None
    pipeline, windows = codec.pipeline, batch.outcome.encoded.take(raised)
    records_A = batch.decoded.good[batch.outcome.applied_A]
    alerts = {}
    for row, (a, why) in enumerate(zip(raised.tolist(), scorer.explain(windows, pipeline.policy.reasons), strict=True)):
        event = codec.decode_one(batch.records[int(records_A[a])].value)
        alert = Alert(
            alert_id=alert_id(pipeline.name, facts.ids[a], detector), pipeline=pipeline.name, event_id=facts.ids[a],
            entity=facts.entities[a], event_time=facts.times[a], detector=detector, score=facts.scores[a],
            probability=facts.probabilities[a], threshold=rounded(scorer.threshold), model=scorer.version,
            reasons=[_explanation(codec, event, reason, windows.context_BC[row]) for reason in why], event=event,
            episode=UNSET if turns is None else _episode(turns, a),
        )  # fmt: skip
        alerts[a] = (facts.entities[a].encode(), encode(alert))
    return alerts


def _episode(turns: Turns, a: int) -> Episode:
    kind, (high, low) = int(turns.kind_A[a]), turns.id_A2[a].tolist()
    return Episode(
        id=f"{high << HALF | low:032x}", state=KINDS[kind], opened_at=to_iso(int(turns.opened_A[a])),
        events=int(turns.events_A[a]), peak_score=rounded(float(turns.peak_A[a])),
        quiet=int(turns.quiet_A[a]) if kind == OPEN else UNSET,
    )  # fmt: skip


def _explanation(codec: Codec, event: dict[str, Any], reason: Reason, context_C: NDArray[np.float32]) -> Explanation:
    """A reason in the event's own terms where it names a field: its value, not what the detector makes of it, and what
    was expected instead where surprise has judged it."""
    field = reason.feature
    value: float | str | bool | None = reason.value
    expected: float | UnsetType = UNSET
    if codec.layout.surprise is not None and field.endswith(CARRIED):
        field = field.removesuffix(CARRIED)
        expected = rounded(float(context_C[codec.layout.inputs.context.index(f"{field}.expected")]))
        value = None  # unless the event has one
    if field in codec.pipeline.fields and codec.pipeline.json_key(field) in event:
        value = event[codec.pipeline.json_key(field)]
    if isinstance(value, float | np.floating):
        value = rounded(float(value))
    return Explanation(feature=field, value=value, effect=rounded(reason.effect), expected=expected)
