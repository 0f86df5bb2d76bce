"""Emits arithmetic on vectors of float32 as LLVM instructions, for the kernels in `kernels.py`.

numba cannot keep an array of sums in registers, so the innermost loops are written in LLVM's own terms. LLVM splits
the vectors where a processor has shorter ones. No instruction here may be reassociated or fused by the compiler, so
an element's bits depend on its own inputs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

__all__ = ["GROUP", "I64", "LANES", "Tile", "Vectors", "biases", "loop", "offset", "pointers", "products", "row_of",
           "short_products"]  # fmt: skip

Tile = Callable[..., None]  # callable in compiled code only: arrays, and where in them to begin

LANES = 16  # float32 in a vector
GROUP = 4  # windows computed together: 4 × 4 sums, weights and inputs fit into 32 registers

# 2**t on [-1/2, 1/2] as a polynomial in ascending powers. Least squares with Lawson's reweighting (minimax of the
# relative error, p(0) = 1 held) in float64: 9.1e-8; evaluated in float32: 1.6e-7.
EXP2 = (1.0, 0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)
# erf(x) = x·P(x²)/Q(x²) on [0, ERF_LIMIT], where float32 reaches 1. Iterated weighted least squares of P - erf·Q,
# the same reweighting, absolute error in float64: 1.6e-8; evaluated in float32: 3.3e-7.
ERF_P = (1.128378987312317, 0.1927303522825241, 0.05305662751197815, 0.003867036895826459, 0.0002874778292607516,
         2.0353650143078994e-06)  # fmt: skip
ERF_Q = (1.0, 0.504134476184845, 0.11507123708724976, 0.015169703401625156, 0.0011878524674102664,
         3.807705797953531e-05)  # fmt: skip
ERF_LIMIT = 3.9192059
EXP_LIMIT = 40.0  # e**±40, and the product of two such numbers, are still normal float32
ROUND = 1.5 * 2.0**23  # added to a float32, it leaves the nearest integer in the low bits

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Vectors:
    """Emits arithmetic on vectors of float32. NaN stays NaN."""

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES) -> None:
        self.build, self.lanes = builder, lanes
        self.kind, self.bits = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
        signature = ir.FunctionType(self.kind, [self.kind] * 3)
        insert: Any = cgutils.get_or_insert_function
        self._fma = insert(builder.module, signature, f"llvm.fma.v{lanes}f32")

    def constant(self, value: float) -> ir.Value:
        return ir.Constant(self.kind, [float(np.float32(value))] * self.lanes)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self.build.call(self._fma, [a, b, c])

    def load(self, pointer: ir.Value) -> ir.Value:
        return self.build.load(self.build.bitcast(pointer, self.kind.as_pointer()), align=4)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        self.build.store(value, self.build.bitcast(pointer, self.kind.as_pointer()), align=4)

    def splat(self, pointer: ir.Value) -> ir.Value:
        """The number there in every lane."""
        undefined = ir.Constant(self.kind, ir.Undefined)
        one = self.build.insert_element(undefined, self.build.load(pointer), I32(0))
        return self.build.shuffle_vector(one, undefined, ir.Constant(self.bits, [0] * self.lanes))

    def store_short(self, x: ir.Value, scale: float, pointer: ir.Value) -> None:
        """The nearest integers to scale·x, as int16."""
        kind = ir.VectorType(I16, self.lanes)
        shifted = self.fma(x, self.constant(scale), self.constant(ROUND))
        short = self.build.trunc(self.build.bitcast(shifted, self.bits), kind)
        self.build.store(short, self.build.bitcast(pointer, kind.as_pointer()), align=2)

    def splat_pair(self, pointer: ir.Value) -> ir.Value:
        """The two int16 there, over and over."""
        undefined = ir.Constant(self.bits, ir.Undefined)
        pair = self.build.load(self.build.bitcast(pointer, I32.as_pointer()), align=2)
        one = self.build.insert_element(undefined, pair, I32(0))
        whole = self.build.shuffle_vector(one, undefined, ir.Constant(self.bits, [0] * self.lanes))
        return self.build.bitcast(whole, ir.VectorType(I16, 2 * self.lanes))

    def load_pairs(self, pointer: ir.Value) -> ir.Value:
        return self.build.load(self.build.bitcast(pointer, ir.VectorType(I16, 2 * self.lanes).as_pointer()), align=2)

    def add_pairs(self, sums: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """int32 sums + a[2n]·b[2n] + a[2n + 1]·b[2n + 1]: one instruction where there is AVX512-VNNI."""
        build, wide = self.build, ir.VectorType(I32, 2 * self.lanes)
        product = build.mul(build.sext(a, wide), build.sext(b, wide), flags=["nsw"])
        even, odd = (
            build.shuffle_vector(
                product, ir.Constant(wide, ir.Undefined), ir.Constant(self.bits, list(range(side, 2 * self.lanes, 2)))
            )
            for side in (0, 1)
        )
        return build.add(sums, build.add(even, odd))

    def clamp(self, x: ir.Value, limit: float) -> ir.Value:
        high, low = self.constant(limit), self.constant(-limit)
        x = self.build.select(self.build.fcmp_ordered("<", high, x), high, x)
        return self.build.select(self.build.fcmp_ordered(">", low, x), low, x)

    def polynomial(self, x: ir.Value, ascending: Sequence[float]) -> ir.Value:
        result = self.constant(ascending[-1])
        for coefficient in ascending[-2::-1]:
            result = self.fma(result, x, self.constant(coefficient))
        return result

    def exp(self, x: ir.Value, factor: float) -> ir.Value:
        """e**(factor·x), the exponent clamped to ±EXP_LIMIT: 2**n times a polynomial of what is left of it."""
        build, log2e = self.build, self.constant(factor * np.log2(np.e))
        x = self.clamp(x, EXP_LIMIT / abs(factor))
        shifted = self.fma(x, log2e, self.constant(ROUND))
        whole = build.fsub(shifted, self.constant(ROUND))
        power = self.polynomial(self.fma(x, log2e, build.fneg(whole)), EXP2)
        exponent = build.shl(build.bitcast(shifted, self.bits), ir.Constant(self.bits, [23] * self.lanes))
        return build.bitcast(build.add(build.bitcast(power, self.bits), exponent), self.kind)

    def gelu(self, x: ir.Value) -> ir.Value:
        """x/2·(1 + erf(x/√2)), exactly 0 or x where float32 makes erf 1."""
        build, half = self.build, self.constant(0.5)
        scaled = build.fmul(x, self.constant(np.sqrt(0.5)))
        inner = self.clamp(scaled, ERF_LIMIT)
        square = build.fmul(inner, inner)
        ratio = build.fdiv(self.polynomial(square, ERF_P), self.polynomial(square, ERF_Q))
        erf = self.clamp(build.fmul(inner, ratio), 1.0)
        for side in (1.0, -1.0):
            beyond = build.fcmp_ordered(">", build.fmul(scaled, self.constant(side)), self.constant(ERF_LIMIT))
            erf = build.select(beyond, self.constant(side), erf)
        return build.fmul(build.fmul(x, half), build.fadd(erf, self.constant(1.0)))

    def gru_states(self, sums: Sequence[Sequence[ir.Value]], old: Sequence[ir.Value]) -> list[ir.Value]:
        """The next states (1 - z)·n + z·old of some windows, from the four lists of their sums.

        With z = 1/(1 + a) and n = tanh = (1 - b)/(1 + b), both fractions share one division:
        (a·(1 - b) + old·(1 + b)) / ((1 + a)·(1 + b)). The windows take each step together, as they wait for nothing
        from one another.
        """
        build, one = self.build, self.constant(1.0)
        reset_sums, update_sums, new_inputs, new_states = sums
        resets = [build.fdiv(one, build.fadd(one, self.exp(x, -1.0))) for x in reset_sums]
        a = [self.exp(x, -1.0) for x in update_sums]
        new = zip(resets, new_states, new_inputs, strict=True)
        b = [self.exp(self.fma(reset, state, x), -2.0) for reset, state, x in new]
        b_1 = [build.fadd(one, x) for x in b]
        above = [self.fma(a[n], build.fsub(one, b[n]), build.fmul(old[n], b_1[n])) for n in range(len(old))]
        return [build.fdiv(above[n], build.fmul(build.fadd(one, a[n]), b_1[n])) for n in range(len(old))]


def offset(builder: ir.IRBuilder, pointer: ir.Value, elements: ir.Value | int) -> ir.Value:
    return builder.gep(pointer, [I64(elements) if isinstance(elements, int) else elements])


def loop(
    builder: ir.IRBuilder, count: ir.Value, values: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:  # fmt: skip
    """Emits `for i in range(count): values = body(i, values)`, the values in registers; returns the last ones."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(I64(0), before)
    carried = [builder.phi(value.type) for value in values]
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    results = body(index, list(carried))
    index.add_incoming(builder.add(index, I64(1)), builder.block)
    for phi, first, result in zip(carried, values, results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return list(carried)


def products(
    vectors: Vectors, sums: list[ir.Value], weights: ir.Value, rows: Sequence[ir.Value], count: ir.Value,
    gates: Sequence[int],
) -> list[ir.Value]:  # fmt: skip
    """Emits, for all k < count, sum[gate][row] += weights[k][gate]·row[k]; `sums` holds GROUP sums a gate."""
    build = vectors.build

    def step(k: ir.Value, before: list[ir.Value]) -> list[ir.Value]:
        after = list(before)
        start = offset(build, weights, build.mul(k, I64(len(gates) * LANES)))
        columns = [vectors.load(offset(build, start, n * LANES)) for n in range(len(gates))]
        for r, row in enumerate(rows):
            number = vectors.splat(offset(build, row, k))
            for gate, column in zip(gates, columns, strict=True):
                after[gate * GROUP + r] = vectors.fma(column, number, after[gate * GROUP + r])
        return after

    return loop(build, count, sums, step)


def short_products(
    vectors: Vectors, sums: list[ir.Value], weights: ir.Value, scales: Sequence[ir.Value], rows: Sequence[ir.Value],
    pairs: ir.Value, gates: Sequence[int],
) -> list[ir.Value]:  # fmt: skip
    """As `products`, with int16 weights and numbers, two k at a time, in two halves that are summed in int32."""
    build = vectors.build
    part = build.ashr(pairs, I64(1))

    def half(side: ir.Value, before: list[ir.Value]) -> list[ir.Value]:
        after, begin = list(before), build.mul(side, part)

        def step(n: ir.Value, counted: list[ir.Value]) -> list[ir.Value]:
            result, k = list(counted), build.add(begin, n)
            start = offset(build, weights, build.mul(k, I64(2 * len(gates) * LANES)))
            columns = [vectors.load_pairs(offset(build, start, 2 * g * LANES)) for g in range(len(gates))]
            for r, row in enumerate(rows):
                number = vectors.splat_pair(offset(build, row, build.mul(k, I64(2))))
                for g, column in enumerate(columns):
                    result[g * GROUP + r] = vectors.add_pairs(result[g * GROUP + r], column, number)
            return result

        zero = ir.Constant(vectors.bits, [0] * LANES)
        counts = loop(build, part, [zero] * (len(gates) * GROUP), step)
        for g, gate in enumerate(gates):
            for r in range(GROUP):
                n = gate * GROUP + r
                after[n] = vectors.fma(build.sitofp(counts[g * GROUP + r], vectors.kind), scales[g], after[n])
        return after

    return loop(build, I64(2), sums, half)


def biases(vectors: Vectors, weights: ir.Value, gates: int) -> list[ir.Value]:
    loaded = [vectors.load(offset(vectors.build, weights, n * LANES)) for n in range(gates)]
    return [bias for bias in loaded for _ in range(GROUP)]


def pointers(context: Any, build: ir.IRBuilder, kinds: Any, values: Any) -> list[ir.Value]:
    """The arguments of an intrinsic: numbers as they are, arrays as pointers to their first element."""
    return [
        context.make_array(kind)(context, build, value).data if isinstance(kind, types.Array) else value
        for kind, value in zip(kinds, values, strict=True)
    ]


def row_of(build: ir.IRBuilder, array: ir.Value, offsets: ir.Value, place: ir.Value) -> ir.Value:
    """Pointer into `array` at the offset that stands at this place of `offsets`."""
    return offset(build, array, build.load(offset(build, offsets, place)))
