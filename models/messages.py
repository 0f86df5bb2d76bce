"""What the worker publishes: scores, alerts and dead letters. Versioned; a version's messages only grow.

An alert's identity is a function of pipeline, event and detector, so a repeat after a crash is recognisable.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["SCHEMA_VERSION", "Alert", "Explanation", "Score", "dead_letter_headers", "decode_score", "encode"]

SCHEMA_VERSION = 1
SCORE_DIGITS = 9  # float32 has no more; the text is shorter and the same on every machine


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """One event's score. `score` is in [0, 1], higher is stranger; `probability` is calibrated."""

    schema: int = SCHEMA_VERSION
    pipeline: str
    event_id: str
    entity: str
    event_time: str  # ISO-8601, UTC
    score: float
    probability: float
    alert: bool
    model: str  # version of the bundle


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One reason of an alert: without this feature the score would have been lower by `effect`."""

    feature: str
    value: float | str | bool | None  # the event's own where the feature is a field of it
    effect: float


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One event that does not belong."""

    schema: int = SCHEMA_VERSION
    alert_id: str
    pipeline: str
    event_id: str
    entity: str
    event_time: str
    detector: str
    score: float
    probability: float
    threshold: float
    reasons: list[Explanation]
    model: str
    event: dict[str, Any]  # the event as it came


_encoder = msgspec.json.Encoder()
_score_decoder = msgspec.json.Decoder(Score)


def encode(message: Score | Alert) -> bytes:
    """The JSON of a message."""
    return _encoder.encode(message)


def decode_score(value: bytes) -> Score:
    """Raises msgspec.MsgspecError when it is not a score of a known version."""
    return _score_decoder.decode(value)


def rounded(value: float) -> float:
    """A float32 as the shortest decimal that still tells it from its neighbours."""
    return float(f"{value:.{SCORE_DIGITS}g}")


def dead_letter_headers(reason: str, detail: str, topic: str, partition: int, offset: int) -> list[tuple[str, bytes]]:
    """Headers of a dead letter: why it is here, and where it came from."""
    facts = {
        "lepton-reason": reason,
        "lepton-detail": detail[:500],
        "lepton-topic": topic,
        "lepton-partition": str(partition),
        "lepton-offset": str(offset),
    }
    return [(name, text.encode()) for name, text in facts.items()]
