"""Time: integer epoch milliseconds inside, ISO-8601 at the edges, durations written as `10m`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import cache

__all__ = ["DAY_MS", "HOUR_MS", "duration_ms", "format_duration", "from_iso", "now_ms", "to_iso"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
UNIT_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": HOUR_MS, "d": DAY_MS, "w": 7 * DAY_MS}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


@cache  # the same few of a pipeline file, asked for with every batch
def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `250ms`, `30s`, `10m`, `1.5h`, `7d` or `2w`.

    Raises ValueError for anything else.

    >>> duration_ms("1.5h")
    5400000
    """
    match = DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 30s, 10m, 1.5h or 7d")
    return round(float(match[1]) * UNIT_MS[match[2]])


def format_duration(ms: int) -> str:
    """The shortest whole-number duration text.

    >>> format_duration(5400000)
    '90m'
    """
    for unit in ("w", "d", "h", "m", "s"):
        if ms and ms % UNIT_MS[unit] == 0:
            return f"{ms // UNIT_MS[unit]}{unit}"
    return f"{ms}ms"


def now_ms() -> int:
    """Processing time."""
    return time.time_ns() // 1_000_000


def to_iso(ms: int) -> str:
    """ISO-8601 in UTC with milliseconds.

    >>> to_iso(1500)
    '1970-01-01T00:00:01.500Z'
    """
    stamp = datetime.fromtimestamp(ms / 1000, UTC)
    return stamp.strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03d}Z"


def from_iso(text: str) -> int:
    """Epoch milliseconds of an ISO-8601 text; one without an offset is UTC. Raises ValueError.

    >>> from_iso("1970-01-01T00:00:01.500Z")
    1500
    """
    stamp = datetime.fromisoformat(text)
    if stamp.tzinfo is None:
        stamp = stamp.replace(tzinfo=UTC)
    return round(stamp.timestamp() * 1000)
