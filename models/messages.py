"""What the worker publishes: scores, alerts and dead letters. Versioned; a version's messages only grow.

An alert's identity is a function of pipeline, event and detector, so a repeat after a crash is recognisable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

__all__ = [
    "FLEET_ONLY", "INSUFFICIENT", "SCHEMA_VERSION", "Alert", "Episode", "Explanation", "Score",
    "dead_letter_headers", "decode_score", "encode",
    "encode_scores", "rounded", "rounded_each",
]  # fmt: skip

SCHEMA_VERSION = 1
INSUFFICIENT, FLEET_ONLY = "insufficient history", "judged by its fleet"
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
    # INSUFFICIENT where the score says nothing yet, FLEET_ONLY where the entity's own past has no say in it yet
    status: str | UnsetType = UNSET


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One reason of an alert: without this feature the score would have been lower by `effect`."""

    feature: str
    value: float | str | bool | None  # the event's own where the feature is a field of it
    effect: float
    expected: float | UnsetType = UNSET  # what was forecast for the field, where surprise has judged it


class Episode(msgspec.Struct, frozen=True, kw_only=True):
    """The run of strange events that an alert belongs to, as it stands with this event."""

    id: str  # the alert_id that opened it
    state: str  # open, update, close
    opened_at: str  # ISO-8601, UTC
    events: int  # that reached the threshold
    peak_score: float
    quiet: int | UnsetType = UNSET  # of an opening: events at the threshold since the last end that it stands for


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One event that does not belong, or a turn in an episode of such events."""

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
    episode: Episode | UnsetType = UNSET  # where the pipeline has [episodes]


_encoder = msgspec.json.Encoder()
# a score whose members are given by position, which costs half
_ScoreRow: Any = msgspec.defstruct("_ScoreRow", [(f.name, f.type) for f in msgspec.structs.fields(Score)], gc=False)
_score_decoder = msgspec.json.Decoder(Score)


def encode(message: Score | Alert) -> bytes:
    """The JSON of a message."""
    return _encoder.encode(message)


def encode_scores(
    pipeline: str,
    model: str,
    event_ids: Iterable[str],
    entities: Iterable[str],
    event_times: Iterable[str],
    scores: Sequence[float],
    probabilities: Sequence[float],
    alerts: Iterable[bool],
    statuses: Iterable[str | UnsetType] | None = None,
) -> list[bytes]:
    """The JSON of one `Score` for each event; arguments in the order of the events, numbers rounded by the caller."""
    members = (repeat(SCHEMA_VERSION, len(scores)), repeat(pipeline), event_ids, entities, event_times, scores,
               probabilities, alerts, repeat(model), repeat(UNSET) if statuses is None else statuses)  # fmt: skip
    # no line feed stands in JSON text: what separates the lines is at their ends only
    return _encoder.encode_lines(list(map(_ScoreRow, *members))).split(b"\n")[:-1]


def decode_score(value: bytes) -> Score:
    """Raises msgspec.MsgspecError when it is not a score of a known version."""
    return _score_decoder.decode(value)


def rounded(value: float) -> float:
    """A float32 as the shortest decimal that still tells it from its neighbours."""
    return float(f"{value:.{SCORE_DIGITS}g}")


# 1e-13, …, 0.1, 1: where a number has one digit more before the point, and what brings SCORE_DIGITS before it
_DECADES = np.array([float(f"1e{e}") for e in range(-13, 1)])
_SCALES = np.array([float(f"1e{SCORE_DIGITS - 1 - e}") for e in range(-14, 1)])


def rounded_each(values_N: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """`rounded` of each number, at a tenth of the cost.

    A number times a power of ten, which float64 holds up to 10^22, is off by less than 1e-6 where it has nine digits
    before the point. So it is rounded to the right whole number unless it is that close to a half, and the quotient
    of two exact numbers is the float64 nearest to the decimal. What is not so plain goes the long way.
    """
    x_N = values_N.astype(np.float64)
    place_N = np.searchsorted(_DECADES, x_N, side="right")
    scale_N = _SCALES[place_N]
    scaled_N = x_N * scale_N
    whole_N = np.rint(scaled_N)
    plain_N = (place_N > 0) & (x_N <= 1.0) & (np.abs(np.abs(scaled_N - whole_N) - 0.5) > 1e-6) | (x_N == 0.0)
    out_N: NDArray[np.float64] = whole_N / scale_N
    for i in np.flatnonzero(~plain_N).tolist():
        out_N[i] = rounded(float(x_N[i]))
    return out_N


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
