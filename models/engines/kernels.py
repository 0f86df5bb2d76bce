"""Machine-code kernels for small recurrent and dense layers, on one core, without a framework.

Windows stand in rows and stay where they are; LANES neighbouring units of a layer fill a vector. A kernel computes
such a vector for GROUP windows at once: weights are read once for all of them, and enough independent sums are under
way to keep the multipliers busy. Every element is `bias + Σ_k weight·input` in ascending k, one fused multiply-add
after the other, by the same instructions wherever its window stands and whatever stands beside it. So a window's
result never depends, to the bit, on the batch it is in. A group is filled up by repeating its last window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.engines.packing import STATE_SCALE
from models.engines.vectors import (
    GROUP,
    I64,
    LANES,
    Tile,
    Vectors,
    biases,
    loop,
    offset,
    pointers,
    products,
    row_of,
    short_products,
)

__all__ = ["EventInputs", "GruWeights", "context_columns", "gru_states", "last_events"]

BLOCK = 32  # windows whose states stay in the first-level cache, beside the weights of one vector of units
SCALED_AT_ONCE = 8  # numbers of an event; few pipelines have whole vectors of LANES
GATES = 4  # sums of a GRU unit: reset, update, and the new gate's two parts, which are kept apart
SCALED_LIMIT = 10.0  # standard deviations, as in the detectors


class EventInputs(NamedTuple):
    """How an event becomes numbers: (x - mean) · inverse deviation, clamped; then the rows of its codes in a table."""

    mean_F: NDArray[np.float32]
    inverse_F: NDArray[np.float32]
    table_NE: NDArray[np.float32]
    first_row_K: NDArray[np.int64]  # a code field's first row in the table
    rows_K: NDArray[np.int64]  # and how many it has


class GruWeights(NamedTuple):
    """A GRU layer whose state is `width` wide, its weights in `pack_gru`'s order.

    Some code fields are folded: folded_RG holds what each of their codes adds to the three gates of all units.
    fields_N are those fields, first_row_N their first rows. embedded_M are the other code fields, whose embedding
    stands beside the numbers in the event that is multiplied.
    """

    width: int
    packed: NDArray[np.float32]
    short: NDArray[np.int16]  # the state's weights; empty where all arithmetic is float32
    folded_RG: NDArray[np.float32]
    fields_N: NDArray[np.int64]
    first_row_N: NDArray[np.int64]
    embedded_M: NDArray[np.int64]


def _gru_tile(is_short: bool) -> Tile:
    def tile(
        _: Any, weights: Any, start: Any, short: Any, short_start: Any, folded: Any, folded_at: Any, fields: Any,
        event: Any, event_at: Any, inputs: Any, state: Any, short_state: Any, state_at: Any, units: Any, next_at: Any,
        first: Any, unit: Any,
    ) -> Any:  # fmt: skip
        """LANES units of the next states of the GROUP windows that start at place `first` of the `…_at` arrays.

        These hold offsets of the windows' rows; folded_at as many for each window as there are `fields`. `units` may
        be 0 where all states are: zeros would add nothing.
        """
        kinds = (weights, start, short, short_start, folded, folded_at, fields, event, event_at, inputs, state,
                 short_state, state_at, units, next_at, first, unit)  # fmt: skip

        def emit(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
            vectors = Vectors(build)
            (weights, start, short, short_start, folded, folded_at, fields, event, event_at, inputs, state,
             short_state, state_at, units, next_at, first, unit) = pointers(
                 context, build, signature.args, values)  # fmt: skip
            windows = [build.add(first, I64(n)) for n in range(GROUP)]
            event_rows = [row_of(build, event, event_at, window) for window in windows]
            state_rows = [row_of(build, state, state_at, window) for window in windows]
            next_rows = [row_of(build, state, next_at, window) for window in windows]

            def add_folded(field: ir.Value, before: list[ir.Value]) -> list[ir.Value]:
                after = list(before)
                for n, window in enumerate(windows):
                    row = row_of(build, folded, folded_at, build.add(build.mul(window, fields), field))
                    row = offset(build, row, build.mul(unit, I64(3)))
                    for gate in range(3):
                        added = vectors.load(offset(build, row, gate * LANES))
                        after[gate * GROUP + n] = build.fadd(after[gate * GROUP + n], added)
                return after

            packed = offset(build, weights, start)
            sums = loop(build, fields, biases(vectors, packed, GATES), add_folded)
            scales = [vectors.load(offset(build, packed, (GATES + gate) * LANES)) for gate in range(3)]
            packed = offset(build, packed, (GATES + 3) * LANES)
            sums = products(vectors, sums, packed, event_rows, inputs, (0, 1, 2))
            if is_short:
                short_rows = [row_of(build, short_state, state_at, window) for window in windows]
                pairs, packed = build.ashr(units, I64(1)), offset(build, short, short_start)
                sums = short_products(vectors, sums, packed, scales, short_rows, pairs, (0, 1, 3))
            else:
                packed = offset(build, packed, build.mul(inputs, I64(3 * LANES)))
                sums = products(vectors, sums, packed, state_rows, units, (0, 1, 3))
            old = [vectors.load(offset(build, row, unit)) for row in state_rows]
            new = vectors.gru_states([sums[gate * GROUP : (gate + 1) * GROUP] for gate in range(GATES)], old)
            for window, row, value in zip(windows, next_rows, new, strict=True):
                vectors.store(value, offset(build, row, unit))
                if is_short:
                    short_row = offset(build, row_of(build, short_state, next_at, window), unit)
                    vectors.store_short(value, STATE_SCALE, short_row)
            return context.get_dummy_value()

        return types.void(*kinds), emit

    return cast(Tile, intrinsic(tile))


_float_tile, _short_tile = _gru_tile(is_short=False), _gru_tile(is_short=True)


@cast(Callable[[Callable[..., Any]], Tile], intrinsic)
def _scale_tile(_: Any, out: Any, x: Any, mean: Any, inverse: Any, first: Any) -> Any:
    """SCALED_AT_ONCE numbers of four rows, from column `first`."""

    def emit(context: Any, build: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        vectors = Vectors(build, SCALED_AT_ONCE)
        *rows, first = pointers(context, build, signature.args, values)
        out, x, mean, inverse = (offset(build, row, first) for row in rows)
        centred = build.fsub(vectors.load(x), vectors.load(mean))
        vectors.store(vectors.clamp(build.fmul(centred, vectors.load(inverse)), SCALED_LIMIT), out)
        return context.get_dummy_value()

    return types.void(out, x, mean, inverse, first), emit


@inlined
def _scale(
    out_F: NDArray[np.float32], x_F: NDArray[np.float32], mean_F: NDArray[np.float32], inverse_F: NDArray[np.float32]
) -> None:
    """Standard deviations from the mean, clamped; NaN stays NaN."""
    numbers, limit = len(x_F), np.float32(SCALED_LIMIT)
    if numbers >= SCALED_AT_ONCE:
        for first in range(0, numbers, SCALED_AT_ONCE):  # the last vector overlaps the one before it
            _scale_tile(out_F, x_F, mean_F, inverse_F, min(first, numbers - SCALED_AT_ONCE))
        return
    for f in range(numbers):
        scaled = (x_F[f] - mean_F[f]) * inverse_F[f]
        scaled = limit if scaled > limit else scaled
        out_F[f] = -limit if scaled < -limit else scaled


@inlined
def _write_event(
    out: NDArray[np.float32], x_F: NDArray[np.float32], codes_K: NDArray[np.int32], events: EventInputs,
    fields: NDArray[np.int64],
) -> None:  # fmt: skip
    """Scaled numbers, then the embeddings of these code fields."""
    _scale(out, x_F, events.mean_F, events.inverse_F)
    column = len(x_F)
    for k in fields:
        row = events.first_row_K[k] + codes_K[k]
        for e in range(events.table_NE.shape[1]):
            out[column + e] = events.table_NE[row, e]
        column += events.table_NE.shape[1]


@inlined
def _unknown_code(codes_K: NDArray[np.int32], rows_K: NDArray[np.int64]) -> bool:
    unknown = False
    for k in range(len(codes_K)):
        unknown |= codes_K[k] < 0 or codes_K[k] >= rows_K[k]
    return unknown


class _Places(NamedTuple):
    """Where the rows of a block's windows are in flat arrays: `current` by window, the rest by place in the step."""

    current: NDArray[np.int64]
    window: NDArray[np.int64]
    event_at: NDArray[np.int64]
    folded_at: NDArray[np.int64]
    state_at: NDArray[np.int64]
    next_at: NDArray[np.int64]


@inlined
def _gather(
    x_BF: NDArray[np.float32], codes_BK: NDArray[np.int32], mask_B: NDArray[np.bool_], events: EventInputs,
    gru: GruWeights, event_BD: NDArray[np.float32], places: _Places,
) -> int:  # fmt: skip
    """Prepare the events of one step of a block. Returns their number, or -1 - b for an unknown code of window b."""
    active, unknown, window = 0, -1, places.window
    for b in range(len(mask_B)):  # without a branch: masks cannot be foreseen
        window[active] = b
        active += mask_B[b]
    for n in range(active):
        if _unknown_code(codes_BK[window[n]], events.rows_K):
            unknown = window[n]
    if unknown >= 0:
        return -1 - unknown
    for n in range(active):
        _write_event(event_BD[n], x_BF[window[n]], codes_BK[window[n]], events, gru.embedded_M)
    fields, padded = len(gru.fields_N), -(-active // GROUP) * GROUP
    for n in range(active, padded):
        window[n] = window[active - 1]
    for n in range(padded):
        places.event_at[n] = min(n, active - 1) * event_BD.shape[1]
        places.state_at[n] = places.current[window[n]]
        # A state has two places, BLOCK rows apart; the step reads one and writes the other.
        places.next_at[n] = (2 * window[n] + BLOCK) * gru.width - places.state_at[n]
    for field in range(fields):
        first_row, k = gru.first_row_N[field], gru.fields_N[field]
        for n in range(padded):
            places.folded_at[n, field] = (first_row + codes_BK[window[n], k]) * gru.folded_RG.shape[1]
    return active


@inlined
def _start(
    start_BH: NDArray[np.float32], state: NDArray[np.float32], short_state: NDArray[np.int16], width: int
) -> None:
    """Put states where the first step reads them; in int16 they are rounded as a step's own are."""
    scale = np.float64(STATE_SCALE)  # an exact product, so that it is rounded once, as a step does
    for b in range(len(start_BH)):
        for unit in range(width):
            state[b * width + unit] = start_BH[b, unit]
            short_state[b * width + unit] = np.int16(np.rint(np.float64(start_BH[b, unit]) * scale))


@inlined
def _gru_block(
    x_BLF: NDArray[np.float32], codes_BLK: NDArray[np.int32], mask_BL: NDArray[np.bool_], events: EventInputs,
    gru: GruWeights, start_BH: NDArray[np.float32], event_BD: NDArray[np.float32], state: NDArray[np.float32],
    short_state: NDArray[np.int16], places: _Places,
) -> int:  # fmt: skip
    """At most BLOCK windows; the last states are at places.current. Returns 0, or -1 - b as `_gather` does."""
    fields, columns, tile = len(gru.fields_N), event_BD.shape[1], len(gru.packed) // (gru.width // LANES)
    folded, short_tile = gru.folded_RG.ravel(), len(gru.short) // (gru.width // LANES)
    state[: BLOCK * gru.width] = 0.0
    short_state[: BLOCK * gru.width] = 0
    for b in range(len(mask_BL)):
        places.current[b] = b * gru.width
    units = 0  # of the states that may differ from zero: none before the first event
    if len(start_BH) > 0:
        _start(start_BH, state, short_state, gru.width)
        units = gru.width
    for step in range(mask_BL.shape[1]):
        active = _gather(x_BLF[:, step], codes_BLK[:, step], mask_BL[:, step], events, gru, event_BD, places)
        if active < 0:
            return active
        if active == 0:
            continue
        for unit in range(0, gru.width, LANES):
            for first in range(0, active, GROUP):
                if len(gru.short) > 0:
                    _short_tile(
                        gru.packed, unit // LANES * tile, gru.short, unit // LANES * short_tile, folded,
                        places.folded_at, fields, event_BD, places.event_at, columns, state, short_state,
                        places.state_at, units, places.next_at, first, unit,
                    )  # fmt: skip
                else:
                    _float_tile(
                        gru.packed, unit // LANES * tile, gru.short, 0, folded, places.folded_at, fields, event_BD,
                        places.event_at, columns, state, short_state, places.state_at, units, places.next_at, first,
                        unit,
                    )  # fmt: skip
        for n in range(active):
            places.current[places.window[n]] = places.next_at[n]
        units = gru.width
    return 0


@compiled
def gru_states(
    x_BLF: NDArray[np.float32], codes_BLK: NDArray[np.int32], mask_BL: NDArray[np.bool_], events: EventInputs,
    gru: GruWeights, start_BH: NDArray[np.float32], column: int, out_BS: NDArray[np.float32],
) -> int:  # fmt: skip
    """Run a GRU over each window's events; a window's state does not change where it has none.

    start_BH: the states before the first events; without rows they are 0. Writes the last states (H) to out_BS, from
    this column on. Returns -1, or the first window with a code that has no row: what is written from its block on
    is undefined.
    """
    rows = BLOCK
    state = np.empty(2 * BLOCK * gru.width, np.float32)
    short_state = np.empty(2 * BLOCK * gru.width, np.int16)
    event_BD = np.empty((BLOCK, x_BLF.shape[2] + len(gru.embedded_M) * events.table_NE.shape[1]), np.float32)
    folded_at = np.empty((rows, len(gru.fields_N)), np.int64)
    at = np.empty((5, rows), np.int64)
    places = _Places(at[0], at[1], at[2], folded_at, at[3], at[4])
    for begin in range(0, len(mask_BL), BLOCK):
        block = slice(begin, begin + BLOCK)
        failed = _gru_block(
            x_BLF[block], codes_BLK[block], mask_BL[block], events, gru, start_BH[block], event_BD, state, short_state,
            places,
        )  # fmt: skip
        if failed < 0:
            return begin - 1 - failed
        for b in range(begin, min(begin + BLOCK, len(mask_BL))):
            first = places.current[b - begin]
            out_BS[b, column : column + gru.width] = state[first : first + gru.width]
    return -1


@compiled
def last_events(
    x_BLF: NDArray[np.float32], codes_BLK: NDArray[np.int32], events: EventInputs, first: int,
    out_BS: NDArray[np.float32],
) -> int:  # fmt: skip
    """Write each window's last event with all codes embedded (D) from column `first` on. Returns as `gru_states`."""
    every_code = np.arange(codes_BLK.shape[2])
    for b in range(len(x_BLF)):
        if _unknown_code(codes_BLK[b, -1], events.rows_K):
            return b
        _write_event(out_BS[b, first:], x_BLF[b, -1], codes_BLK[b, -1], events, every_code)
    return -1


@compiled
def context_columns(
    context_BC: NDArray[np.float32], mean_C: NDArray[np.float32], inverse_C: NDArray[np.float32],
    seen_BS: NDArray[np.float32],
) -> None:  # fmt: skip
    """Write the scaled context to the last columns of seen_BS."""
    first = seen_BS.shape[1] - context_BC.shape[1]
    for b in range(len(context_BC)):
        _scale(seen_BS[b, first:], context_BC[b], mean_C, inverse_C)
