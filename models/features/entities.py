"""One loop over the events of a batch: windows, own context and next states, entity by entity.

An event is applied unless its entity's window already holds its id: that window is what one-at-a-time processing
would see, the last L events applied, those of this batch included. A repeat that comes after L other events of
its entity is not recognised.

A state is read and written where `Layout.state_dtype` puts it: 6 bytes, then words. Copied to 2 bytes behind the
start of a buffer, its words are aligned.

Legend: N entities, M events of the batch, L events in a window, R rows of one entity, W words of a state.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.features.aggregates import Scratch, advance_decayed, empty_scratch, write_context
from models.features.facts import Facts
from models.features.habit import advance_habits, habit_words, show_surprise
from models.features.windows import Section, copy_window, empty_section, encode_rows

__all__ = ["Events", "Windows", "advance", "by_owner"]

SHIFT = 2  # bytes in front of a state in its buffer
COUNT, CLOCK, DECAYED = 1, 2, 3  # words of eight bytes
TIME_HIGH, ID, ID_HIGH = np.uint64(1), np.uint64(2), np.uint64(3)  # half-words of a row: time, id,
ROW_HEAD = 4  # and then values and hashes


class Events(NamedTuple):
    """The columns of a batch, as in `EventBatch`, and the row of each event's state."""

    owner_M: NDArray[np.int64]
    time_M: NDArray[np.int64]
    id_M: NDArray[np.uint64]
    values_MV: NDArray[np.float32]
    hashes_MK: NDArray[np.uint32]


class Windows(NamedTuple):
    """What is written of each event, as in `Encoded`; not for those whose `applied_M` is False."""

    x_MLF: NDArray[np.float32]  # (M, L * F)
    codes_MLK: NDArray[np.int32]  # (M, L * K)
    mask_ML: NDArray[np.bool_]
    context_MC: NDArray[np.float32]
    late_M: NDArray[np.bool_]
    applied_M: NDArray[np.bool_]


class _State(NamedTuple):
    """One state in its buffer, with room for more rows behind it; the same memory under five types."""

    bytes_W: NDArray[np.uint8]
    long_W: NDArray[np.int64]
    double_W: NDArray[np.float64]
    half_W: NDArray[np.uint32]
    real_W: NDArray[np.float32]


@compiled
def advance(
    facts: Facts, states_NB: NDArray[np.uint8], events: Events, next_NB: NDArray[np.uint8], out: Windows
) -> None:
    """Apply all events: fills `next_NB` (states as bytes) and `out`, but for the context of profiles."""
    states, size = states_NB.shape
    order_M, start_N = by_owner(events.owner_M, states)
    most = 0
    for n in range(states):
        most = max(most, start_N[n + 1] - start_N[n])
    section = empty_section(facts, facts.length + most)
    scratch = empty_scratch(facts)
    row_size = 4 * (ROW_HEAD + facts.values + facts.hashes)
    long_W = np.empty((SHIFT + size + most * row_size) // 8 + 1, np.int64)
    state = _State(
        long_W.view(np.uint8), long_W, long_W.view(np.float64), long_W.view(np.uint32), long_W.view(np.float32)
    )
    for n in range(states):
        _copy_bytes(states_NB[n], state.bytes_W[SHIFT:], size)
        added = 0
        if start_N[n + 1] > start_N[n]:
            added = _advance_entity(facts, state, section, scratch, events, order_M[start_N[n] : start_N[n + 1]], out)
        rows = 4 * _first_row(facts, scratch) - SHIFT
        _copy_bytes(state.bytes_W[SHIFT:], next_NB[n], rows)
        _copy_bytes(state.bytes_W[SHIFT + added * row_size + rows :], next_NB[n, rows:], size - rows)


@inlined
def _advance_entity(
    facts: Facts,
    state: _State,
    section: Section,
    scratch: Scratch,
    events: Events,
    order_E: NDArray[np.int64],
    out: Windows,
) -> int:
    """Apply the events at these positions to the state in its buffer, new rows behind the old; how many it took."""
    count, clock = state.long_W[COUNT], state.long_W[CLOCK]
    sums_HS = state.double_W[DECAYED:]
    remembered = DECAYED + len(scratch.before_HS)
    half = _first_row(facts, scratch)
    habits = half - facts.beside - habit_words(facts)
    remembered_W, habit_W = state.long_W[remembered:], state.real_W[habits : half - facts.beside]
    width = ROW_HEAD + facts.values + facts.hashes
    kept = _read_rows(facts, state, section, half)
    stop = kept
    for m in order_E:
        applied = not _repeated(section, facts.length, stop, events.id_M[m])
        out.applied_M[m] = applied
        if applied:
            _append(facts, state, half + (facts.length + stop - kept) * width, section, stop, events, m)
            stop += 1
    encode_rows(facts, section, stop)
    row = kept
    for m in order_E:
        if not out.applied_M[m]:
            continue
        now = max(clock, events.time_M[m])
        out.late_M[m] = events.time_M[m] < now
        advance_decayed(
            facts, section, row, float(now - clock), float(now - events.time_M[m]), sums_HS, scratch.before_HS
        )
        clock = now
        write_context(facts, section, scratch, row, float(clock), count + row - kept, out.context_MC[m])
        padding = copy_window(section, row, out.x_MLF[m], out.codes_MLK[m], out.mask_ML[m])
        show_surprise(facts, habit_W, padding, out.x_MLF[m])
        advance_habits(facts, section, row, remembered_W, habit_W, out.context_MC[m])
        row += 1
    state.long_W[COUNT] = count + stop - kept
    state.long_W[CLOCK] = clock
    return stop - kept


@inlined
def _first_row(facts: Facts, scratch: Scratch) -> int:
    """The half-word of a buffer at which the rows begin: behind the sums, what is remembered, habits and the rest."""
    remembered = 2 * (facts.hashes - len(facts.buckets_K))
    return 2 * (DECAYED + len(scratch.before_HS) + remembered) + habit_words(facts) + facts.beside


@inlined
def _copy_bytes(source_B: NDArray[np.uint8], out_B: NDArray[np.uint8], size: int) -> None:
    for b in range(size):
        out_B[b] = source_B[b]


@inlined
def by_owner(owner_M: NDArray[np.int64], owners: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the events sorted by owner, in order of arrival; where each owner's begin: (M,), (N + 1,)."""
    start_N = np.zeros(owners + 1, np.int64)
    for owner in owner_M:
        start_N[owner + 1] += 1
    for n in range(owners):
        start_N[n + 1] += start_N[n]
    taken_N = np.zeros(owners, np.int64)
    order_M = np.empty(len(owner_M), np.int64)
    for m in range(len(owner_M)):
        order_M[start_N[owner_M[m]] + taken_N[owner_M[m]]] = m
        taken_N[owner_M[m]] += 1
    return order_M, start_N


@inlined
def _read_rows(facts: Facts, state: _State, section: Section, half: int) -> int:
    """The rows of the ring that are not empty, into the section; how many. half: the first row's half-word."""
    width = ROW_HEAD + facts.values + facts.hashes
    kept = 0
    for place in range(facts.length):
        at = np.uint64(half + place * width)  # unsigned: no test for a negative index
        found = np.uint64(state.half_W[at + ID]) | (np.uint64(state.half_W[at + ID_HIGH]) << np.uint64(32))
        if found == 0:
            continue
        section.id_R[kept] = found
        time = np.uint64(state.half_W[at]) | (np.uint64(state.half_W[at + TIME_HIGH]) << np.uint64(32))
        section.time_R[kept] = np.float64(np.int64(time))
        for v in range(facts.values):
            section.values_VR[v, kept] = state.real_W[at + np.uint64(ROW_HEAD + v)]
        for k in range(facts.hashes):
            section.hashes_KR[k, kept] = state.half_W[at + np.uint64(ROW_HEAD + facts.values + k)]
        kept += 1
    return kept


@inlined
def _repeated(section: Section, length: int, stop: int, wanted: np.uint64) -> bool:
    found = False
    for known in section.id_R[max(stop - length, 0) : stop]:
        found |= known == wanted
    return found


@inlined
def _append(facts: Facts, state: _State, half: int, section: Section, row: int, events: Events, m: int) -> None:
    """Event m as the next row of the section and, from this half-word on, of the ring."""
    time, wanted = np.uint64(events.time_M[m]), events.id_M[m]
    state.half_W[half] = np.uint32(time)
    state.half_W[half + 1] = np.uint32(time >> np.uint64(32))
    state.half_W[half + 2] = np.uint32(wanted)
    state.half_W[half + 3] = np.uint32(wanted >> np.uint64(32))
    section.time_R[row] = np.float64(events.time_M[m])
    section.id_R[row] = wanted
    for v in range(facts.values):
        section.values_VR[v, row] = state.real_W[half + ROW_HEAD + v] = events.values_MV[m, v]
    for k in range(facts.hashes):
        section.hashes_KR[k, row] = state.half_W[half + ROW_HEAD + facts.values + k] = events.hashes_MK[m, k]
