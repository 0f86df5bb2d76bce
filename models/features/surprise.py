"""How surprising the events of a batch are by their entities' own past (`models.surprise`), as columns of context.

Only number fields are judged, as they came, and in the order in which they came: surprise knows no event times but the
hour of the day. Legend: N entities, M events of the batch, E events of one entity, V values, C columns of context.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled
from models.features.entities import Events, Windows, by_owner
from models.features.layout import Layout
from models.surprise.memory import Places
from models.surprise.reading import FIRST, KNOWN, OUT, advance_readings

__all__ = ["judge"]

HOUR_MS, HOURS = 3_600_000, 24


def judge(layout: Layout, events: Events, next_N: NDArray[np.void], out: Windows) -> int:
    """Write the columns of the applied events, and what is remembered into their entities' next states.

    Returns the first column of context behind them: that of the profiles.
    """
    first, places = layout.facts.context, layout.surprise
    if places is None:
        return first
    remembered_NW = np.ascontiguousarray(next_N["surprise"])
    _judge(places, float(layout.pipeline.surprise.learn), events, out.applied_M, remembered_NW, first, out.context_MC)
    next_N["surprise"] = remembered_NW
    return first + len(OUT) + 2 * places.channels


@compiled
def _judge(
    places: Places,
    learn: float,
    events: Events,
    applied_M: NDArray[np.bool_],
    remembered_NW: NDArray[np.float32],
    first: int,
    context_MC: NDArray[np.float32],
) -> None:
    """Entity by entity: what is said of each event, then for each number what it carries and what was expected."""
    entities, channels = len(remembered_NW), places.channels
    order_M, start_N = by_owner(events.owner_M, entities)
    most = 0
    for n in range(entities):
        most = max(most, start_N[n + 1] - start_N[n])
    reading_EC, hour_E, learning_E = np.empty((most, channels)), np.empty(most, np.int64), np.empty(most, np.bool_)
    out_EO, carried_EC = np.empty((most, len(OUT)), np.float32), np.empty((most, channels), np.float32)
    expected_EC, behind = np.empty((most, channels), np.float32), first + len(OUT)
    for n in range(entities):
        own_E = order_M[start_N[n] : start_N[n + 1]]
        seen, count = remembered_NW[n, places.head], 0
        for m in own_E:
            if applied_M[m]:
                for c in range(channels):
                    reading_EC[count, c] = events.values_MV[m, c]
                hour_E[count] = events.time_M[m] // HOUR_MS % HOURS
                learning_E[count] = seen + count < learn
                count += 1
        advance_readings(
            places, remembered_NW[n], reading_EC[:count], hour_E[:count], learning_E[:count], out_EO[:count],
            carried_EC[:count], expected_EC[:count],
        )  # fmt: skip
        count = 0
        for m in own_E:
            if applied_M[m]:
                out_EO[count, KNOWN] = min(1.0, (seen + count) / max(learn, FIRST))
                context_MC[m, first:behind] = out_EO[count]
                context_MC[m, behind : behind + channels] = carried_EC[count]
                context_MC[m, behind + channels : behind + 2 * channels] = expected_EC[count]
                count += 1
