"""Why an event scored as it did: grouped occlusion, computed for alerts only.

Each group of inputs is replaced by what training saw on average, the event is scored again, and the drop is
the group's effect (Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014,
section 4.2; the grouping keeps correlated inputs, such as one mean over several horizons, from hiding each
other). The effects are those of one change at a time and need not add up to the score.

Groups: a numeric feature of the current event (with its `missing` flag, a position's distance and speed, or
both halves of a cycle), how far it is from the usual (`surprise`), a category of the current event, a context feature
over all its horizons, the views of one habit (`score` with the usual and the spread, `novelty`, `away`), a shared
profile's verdicts, as if none had arrived, and `earlier_events`, which removes the window's past.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.features.encoded import RUN_FEATURES, VERDICT_FEATURES, Encoded, InputSpec
from models.weights import Scaling

__all__ = ["Group", "Reason", "explain", "input_groups"]

# (past_B, last_V, past_V) → logit_V: see models.engines.base
LogitsAfter = Callable[[Encoded, Encoded, NDArray[np.int64]], NDArray[np.float32]]

ROWS_PER_CALL = 2048  # bounds memory: an alert takes as many rows as there are groups
EARLIER_EVENTS = "earlier_events"
PRESENT, FRAUD = VERDICT_FEATURES.index("present"), VERDICT_FEATURES.index("fraud")

DURATION_END = re.compile(r"\.\d+(\.\d+)?(ms|s|m|h|d|w)$")
CYCLE_END = re.compile(r"_(sin|cos)$")
OF_EVENT_END = re.compile(r"\.(missing|distance|speed)$")
# The usual and the spread say nothing alone: they are the two halves of a score.
OF_HABIT_ENDS = {"usual": "score", "spread": "score", "novel": "novelty", "away_score": "away"}
HABIT_END = re.compile(rf"\.({'|'.join(OF_HABIT_ENDS)})$")
OF_LABELS_END = re.compile(r"\.(fraud_rate|frauds|labels)$")  # three views of the same verdicts
CYCLES = {"hour": 24.0, "week": 7.0}  # what a whole turn is counted in: hours, days


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason code of an alert.

    feature: the input of the group that is furthest from its training mean. value: what the detector read
    there: transformed as the pipeline says, a category as its embedding row, `earlier_events` as their number,
    a profile's `verdicts` as the number of frauds among them, cycles in hours of the day or days of the week.
    effect: the score minus the score without the group.
    """

    feature: str
    value: float
    effect: float


@dataclass(frozen=True, slots=True)
class Group:
    """Inputs that are replaced together: columns of x, codes or context, a profile's verdicts; of `history`, none.

    derived: of `verdicts`, the columns of context that are made of the same labels, all 0 where none has arrived.
    """

    name: str
    kind: Literal["x", "code", "context", "verdicts", "history"]
    columns: tuple[int, ...] = ()
    derived: tuple[int, ...] = ()


@lru_cache(maxsize=8)
def input_groups(inputs: InputSpec) -> list[Group]:
    """All groups of a detector's inputs; every column is in exactly one."""
    groups = _grouped(inputs.x, "x")
    groups += [Group(name, "code", (k,)) for k, (name, _) in enumerate(inputs.codes)]
    verdicts = [_verdict_group(inputs, j) for j in range(len(inputs.verdicts))]
    derived = {column for group in verdicts for column in group.derived}
    return [*groups, *_grouped(inputs.context, "context", derived), *verdicts, Group(EARLIER_EVENTS, "history")]


def explain(
    logits_after: LogitsAfter,
    inputs: InputSpec,
    scaling: Scaling,
    encoded: Encoded,
    n: int,
    among: Set[str] | None = None,
) -> list[list[Reason]]:
    """For each window its `n` reasons of greatest effect, greatest first (fewer if there are fewer groups).

    logits_after: an engine's. scaling: what training saw of the inputs. among: names of groups, None for all.
    """
    groups = [group for group in input_groups(inputs) if among is None or group.name in among]
    step = max(1, ROWS_PER_CALL // (len(groups) + 1))
    reasons: list[list[Reason]] = []
    for start in range(0, len(encoded), step):
        part = encoded.take(slice(start, start + step))
        logit_V = logits_after(part, *_variants(scaling, part, groups))
        logit_GB = logit_V.reshape(len(groups) + 1, len(part))
        for b in range(len(part)):
            top = _strongest(logit_GB[:, b].astype(np.float64), n)
            reasons.append([Reason(*_shown(inputs, scaling, part, b, groups[g]), effect) for g, effect in top])
    return reasons


def _event_group(name: str) -> str:
    return CYCLE_END.sub("", OF_EVENT_END.sub("", name))


def _context_group(name: str) -> str:
    name = HABIT_END.sub(lambda end: f".{OF_HABIT_ENDS[end[1]]}", name)
    return OF_LABELS_END.sub(".fraud_rate", DURATION_END.sub("", name))


def _verdict_group(inputs: InputSpec, j: int) -> Group:
    """Verdicts one by one, their counts and rates, and their runs: one would stand in for the others."""
    profile = inputs.verdicts[j]
    of_labels = {*RUN_FEATURES, "fraud_rate", "frauds", "labels"}
    names = [DURATION_END.sub("", name) for name in inputs.context]
    wanted = {f"{profile}.{name}" for name in of_labels}
    derived = [c for c, name in enumerate(names) if name in wanted]
    return Group(f"{profile}.verdicts", "verdicts", (j,), tuple(derived))


def _grouped(names: tuple[str, ...], kind: Literal["x", "context"], without: Set[int] = frozenset()) -> list[Group]:
    columns: dict[str, list[int]] = {}
    group_of = _event_group if kind == "x" else _context_group
    for column, name in enumerate(names):
        if column in without:
            continue
        columns.setdefault(group_of(name), []).append(column)
    return [Group(name, kind, tuple(members)) for name, members in columns.items()]


def _variants(scaling: Scaling, encoded: Encoded, groups: list[Group]) -> tuple[Encoded, NDArray[np.int64]]:
    """Last events, contexts and verdicts as they are, then once without each group, and the pasts of those rows.

    There are (groups + 1) · B of them.
    """
    rows, times = len(encoded), len(groups) + 1
    x_VF, codes_VK = np.tile(encoded.x_BLF[:, -1], (times, 1)), np.tile(encoded.codes_BLK[:, -1], (times, 1))
    context_VC, past_V = np.tile(encoded.context_BC, (times, 1)), np.tile(np.arange(rows), times)
    verdicts_VJSG = np.tile(encoded.verdicts_BJSG, (times, 1, 1, 1))
    for number, group in enumerate(groups, start=1):
        at = slice(number * rows, (number + 1) * rows)
        columns = list(group.columns)
        if group.kind == "x":
            x_VF[at, columns] = scaling.x_mean_F[columns]
        elif group.kind == "code":
            codes_VK[at, columns] = 0  # "missing" is the only category that stands for none
        elif group.kind == "context":
            context_VC[at, columns] = scaling.context_mean_C[columns]
        elif group.kind == "verdicts":
            verdicts_VJSG[at, columns] = 0.0
            context_VC[at, list(group.derived)] = 0.0
        else:
            past_V[at] = -1
    mask_V1 = np.tile(encoded.mask_BL[:, -1:], (times, 1))
    return Encoded(x_VF[:, None], codes_VK[:, None], mask_V1, context_VC, verdicts_VJSG), past_V


def _strongest(logit_G: NDArray[np.float64], n: int) -> list[tuple[int, float]]:
    """(group, effect) of the n greatest drops. logit_G: of the window as it is, then without each group."""
    # Drops of the logit order groups as drops of the score do, and still tell them apart near a score of 1.
    order = np.argsort(logit_G[1:], kind="stable")[:n]
    score_G = 1.0 / (1.0 + np.exp(-logit_G))
    return [(g, float(score_G[0] - score_G[g + 1])) for g in order.tolist()]


def _shown(inputs: InputSpec, scaling: Scaling, encoded: Encoded, b: int, group: Group) -> tuple[str, float]:
    """The name and value by which a group is shown to people."""
    columns = list(group.columns)
    if group.kind == "history":
        return group.name, float(encoded.mask_BL[b].sum() - 1)
    if group.kind == "verdicts":
        verdict_SG = encoded.verdicts_BJSG[b, columns[0]]
        return group.name, float(verdict_SG[verdict_SG[:, PRESENT] > 0, FRAUD].sum())
    if group.kind == "code":
        return group.name, float(encoded.codes_BLK[b, -1, columns[0]])
    if group.kind == "x":
        names, values, mean, std = inputs.x, encoded.x_BLF[b, -1], scaling.x_mean_F, scaling.x_std_F
    else:
        names, values = inputs.context, encoded.context_BC[b]
        mean, std = scaling.context_mean_C, scaling.context_std_C
    if len(columns) == 2 and all(CYCLE_END.search(names[c]) for c in columns):
        by_name = {names[c]: float(values[c]) for c in columns}
        turn = math.atan2(by_name[f"{group.name}_sin"], by_name[f"{group.name}_cos"]) / (2 * math.pi) % 1.0
        return group.name, round(turn * CYCLES.get(group.name, 1.0), 3)
    furthest = max(columns, key=lambda c: abs(values[c] - mean[c]) / std[c])
    return names[furthest], float(values[furthest])
