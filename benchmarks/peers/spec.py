"""What `compare` tells a peer, as a file; a peer answers with one."""

from __future__ import annotations

import msgspec

__all__ = ["Result", "Spec"]


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What the parent tells a peer. warm_up: events before the count begins; events: when it ends."""

    pipeline: str
    bundle: str
    redis_port: int
    brokers: str
    prefix: str
    events_topic: str
    scores_topic: str
    alerts_topic: str
    warm_up: int
    events: int
    result: str


class Result(msgspec.Struct, frozen=True):
    """What the counted events cost a peer: CPU of its whole process, and seconds by the clock."""

    events: int
    cpu_s: float
    clock_s: float
