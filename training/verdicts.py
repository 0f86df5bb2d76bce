"""One verdict an event, from labels of several sources: whose counts, how much, and what is not believed.

1. Of several verdicts on an event that of the source with the greatest weight counts; of equal ones the last to arrive.
2. A source may decide at most its cap of the frauds, and of the legitimate verdicts, that are known. What is above
   it is left out, newest first: such events are neither fraud nor legitimate to a model. A source that is wrong, or has
   been bought, moves a model only so far.
3. An event counts in training with the weight of the source that decided; one without a verdict with 1.

Sources are those of `[learning.sources]`; a label without a source, or of one that is not named there, has weight 1 and
no cap.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from models.pipeline.learning import LabelSource
from training.archive import milliseconds
from training.source import Source

__all__ = ["Verdicts", "resolve"]

Verdict = tuple[float, int, bool, str]  # weight, arrival, fraud, source


class Verdicts:
    """What is known of each judged event.

    left_out: events whose only verdict is beyond a cap. conflicts: events on which sources disagreed.
    """

    def __init__(self, decided: dict[str, Verdict], left_out: set[str], conflicts: int) -> None:
        self.frauds = {i for i, verdict in decided.items() if verdict[2] and i not in left_out}
        self.weights = {i: verdict[0] for i, verdict in decided.items() if verdict[0] != 1.0}
        self.left_out, self.conflicts = left_out, conflicts
        self.by_source = Counter(verdict[3] for i, verdict in decided.items() if i not in left_out)

    def is_fraud(self, event_id: Sequence[str]) -> NDArray[np.bool_]:
        return _is_in(event_id, self.frauds)

    def is_left_out(self, event_id: Sequence[str]) -> NDArray[np.bool_]:
        return _is_in(event_id, self.left_out)

    def weight(self, event_id: Sequence[str]) -> NDArray[np.float32] | None:
        """Of each event, or None where all are 1."""
        if not self.weights:
            return None
        return np.fromiter((self.weights.get(i, 1.0) for i in event_id), dtype=np.float32, count=len(event_id))


def resolve(known: Source, sources: dict[str, LabelSource]) -> Verdicts:
    """The verdicts of all labels of a history, by the module's rules."""
    if not sources:
        return Verdicts(dict.fromkeys(known.frauds(), (1.0, 0, True, "")), set(), 0)
    decided: dict[str, Verdict] = {}
    said: dict[str, set[bool]] = defaultdict(set)
    for event_id, time_ms, fraud, source in _labels(known):
        weight = sources[source].weight if source in sources else 1.0
        said[event_id].add(fraud)
        if event_id not in decided or (weight, time_ms) >= decided[event_id][:2]:
            decided[event_id] = (weight, time_ms, fraud, source)
    left_out = {i for kind in (True, False) for i in _beyond_caps(decided, kind, sources)}
    return Verdicts(decided, left_out, sum(len(verdicts) > 1 for verdicts in said.values()))


def _labels(known: Source) -> Iterator[tuple[str, int, bool, str]]:
    for block in known.blocks("labels", columns=["event_id", "label_time", "fraud", "source"]):
        table = block.table
        columns = (table[name].to_pylist() for name in ("event_id", "fraud", "source"))
        for event_id, fraud, source, time_ms in zip(*columns, milliseconds(table["label_time"]).tolist(), strict=True):
            yield event_id, time_ms, fraud, source or ""


def _beyond_caps(decided: dict[str, Verdict], kind: bool, sources: dict[str, LabelSource]) -> Iterator[str]:
    """Events of one kind whose source has decided more than its share of those that remain."""
    of_kind = sorted((verdict[1], i, verdict[3]) for i, verdict in decided.items() if verdict[2] == kind)
    counts = Counter(source for _, _, source in of_kind)
    allowed = {name: _allowed(counts, name, source.cap) for name, source in sources.items() if source.cap < 1.0}
    taken: Counter[str] = Counter()
    for _, event_id, source in of_kind:  # the oldest are kept: an attack does not push them out
        taken[source] += 1
        if source in allowed and taken[source] > allowed[source]:
            yield event_id


def _allowed(counts: Counter[str], name: str, cap: float) -> int:
    """The greatest number that is at most `cap` of it and all others' together."""
    others = sum(counts.values()) - counts[name]
    return int(cap / (1.0 - cap) * others)


def _is_in(ids: Sequence[str], chosen: set[str]) -> NDArray[np.bool_]:
    return np.fromiter((i in chosen for i in ids), dtype=bool, count=len(ids))
