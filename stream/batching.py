"""How large a batch may be: as large as the latency objective allows.

A batch takes what waits. Under light load it lets the chunks of one fetch come together first, 2 ms at an objective of
50, and is small. Under heavy load what waits while the batch before is computed makes it larger, and cheaper an event;
it must not become so large that it holds up the next one for longer than the objective. How long it waits for those
before it, and works beside them, does not count: smaller batches would only make that longer.
"""

from __future__ import annotations

__all__ = ["BatchSize"]

SMALLEST = 256  # below that the fixed cost of a batch is too much of it: smaller ones would lag more, not less
LARGEST = 4096  # bounds memory
FIRST = 512
GATHER, LONGEST_GATHER_S = 0.04, 0.02  # share of the objective that a record may wait for company, and its bound
ENOUGH = 64  # records that need no more company
ROOM = 0.7  # share of the objective that a batch may take; the rest is for waiting
GROW, SHRINK = 1.25, 0.5  # at most, from one batch to the next


class BatchSize:
    """`limit` is the greatest number of records of the next batch. Follows what full batches were seen to take.

    gather_s: how long the first record that waits may wait for company, unless `enough` of them wait.
    """

    enough = ENOUGH

    def __init__(self, objective_s: float, smallest: int = SMALLEST, largest: int = LARGEST) -> None:
        self.gather_s = min(objective_s * GATHER, LONGEST_GATHER_S)
        self._target_s, self._smallest, self._largest = objective_s * ROOM, smallest, largest
        self.limit = min(max(FIRST, smallest), largest)

    def observe(self, records: int, seconds: float) -> None:
        """A batch of so many records held up the one behind it for so long."""
        too_slow = seconds > self._target_s
        if records < self.limit / 2 and not (too_slow and records > self._smallest):
            return  # too small to say how long a full one takes
        change = min(max(self._target_s / max(seconds, 1e-9), SHRINK), GROW)
        base = min(records, self.limit) if too_slow else self.limit
        self.limit = int(min(max(base * change, self._smallest), self._largest))
