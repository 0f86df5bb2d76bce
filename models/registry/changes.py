"""One change of a registry, and what it leaves."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Action", "Challenger", "Change", "Pointers", "Stage"]

Action = Literal["promote", "rollback", "challenge", "withdraw"]
Stage = Literal["shadow", "canary"]


class Challenger(msgspec.Struct, frozen=True, kw_only=True):
    """A version that runs beside the champion: as a shadow it decides nothing, as a canary for a share of the
    entities."""

    version: str
    stage: Stage
    share: float = 0.0  # of the entities, by hash
    since: str  # ISO-8601


class Pointers(msgspec.Struct, frozen=True, kw_only=True):
    """What is in use. seq: the number of the change that says so, 0 before the first."""

    seq: int = 0
    champion: str | None = None
    challenger: Challenger | None = None
    since: str = ""  # ISO-8601, of the champion
    why: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """One file of `changes`. `from_` is None for a pipeline's first champion; figures: what the decision rests on."""

    seq: int
    at: str  # ISO-8601
    by: str
    action: Action
    from_: str | None
    to: str | None
    why: str
    figures: dict[str, Any] = {}
    champion: str | None
    challenger: Challenger | None = None
    since: str
