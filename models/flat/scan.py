"""Flat JSON objects to numbers, and to where their texts are, in compiled code.

It takes the plain case only (objects of texts, numbers, true, false and null; no escapes, nothing nested, every rule
kept) and answers UNUSUAL at the first thing that is anything else, right or wrong.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import compiled, inlined
from models.flat.machine import WORD, address, byte, put, real, whole, word
from models.flat.tokens import FRACTION, LITERAL, NOTHING, TEXT, UNUSUAL, WHOLE, iso_ms, space, text_size, value

__all__ = [
    "BOOLEAN", "CATEGORY", "IDENTIFIER", "ISO8601", "LONGITUDE", "MILLISECONDS", "NUMBER", "SECONDS", "UNUSUAL",
    "Member", "pack_members", "scan",
]  # fmt: skip

# kinds of members; a longitude is a number that is missing if the member before it is
IDENTIFIER, CATEGORY, NUMBER, LONGITUDE, BOOLEAN, ISO8601, MILLISECONDS, SECONDS = range(8)
MAX_TEXT = 256  # bytes, so never more characters than `models.records.MAX_TEXT`
LATEST_MS = 4_102_444_800_000  # 2100-01-01
# what stands where in a member's row, in bytes
KIND, REQUIRED, VALUE, LOW, HIGH, SIZE, NAME = range(0, 7 * WORD, WORD)
FLOAT32 = 4  # bytes

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


class Member(NamedTuple):
    """A member of the object. value: the column of a number. low, high: its limits."""

    name: str
    kind: int
    required: bool
    value: int = 0
    low: float = 0.0
    high: float = 1.0


def pack_members(members: list[Member]) -> NDArray[np.uint64]:
    """A row of words for each member: the facts above, then its name with the closing quotation mark, padded to the
    longest, then which bits of that count."""
    names = [member.name.encode() + b'"' for member in members]
    width = -(-max(map(len, names)) // WORD) * WORD
    rows = []
    for member, name in zip(members, names, strict=True):
        facts = np.array([member.kind, member.required, member.value], dtype="<i8").tobytes()
        limits = np.array([member.low, member.high], dtype="<f8").tobytes()
        size = np.array([len(name) - 1], dtype="<i8").tobytes()
        bits = b"\xff" * len(name)
        rows.append(facts + limits + size + name.ljust(width, b"\0") + bits.ljust(width, b"\0"))
    return np.frombuffer(b"".join(rows), dtype="<u8").reshape(len(members), -1).copy()


@compiled
def scan(
    text: Bytes, size_M: Ints, append_M: Ints, future_ms: int, members_CX: NDArray[np.uint64], found_MX: Ints,
    values_MV: NDArray[np.float32],
) -> int:  # fmt: skip
    """Reads M objects, each followed by a line feed; UNUSUAL when one of them is.

    text: the objects and, behind them, line feeds for as long as a name is; valid UTF-8 is the caller's to check.
    append_M, future_ms: no event may be further ahead of its append time. members_CX: from `pack_members`. All arrays
    are contiguous. Fills found_MX: the event time in epoch milliseconds, then for each member where its text begins
    and its size, -1 where it is missing; values_MV: numbers and booleans, NaN where missing, infinite where the caller
    has to read one that has too many digits for here. Returns how many those are.
    """
    members, stride = address(members_CX.ctypes.data), WORD * members_CX.shape[1]
    found, values = address(found_MX.ctypes.data), address(values_MV.ctypes.data)
    origin = address(text.ctypes.data)
    first, infinite = origin, 0
    for m in range(len(size_M)):
        row = found + WORD * found_MX.shape[1] * m
        numbers = values + FLOAT32 * values_MV.shape[1] * m
        for c in range(len(members_CX)):
            _forget(members + stride * c, row, numbers, c)
        end = first + size_M[m]
        read = _object(first, end, origin, len(members_CX), members, stride, row, numbers)
        latest = min(max(append_M[m], 0), LATEST_MS) + future_ms
        if read < 0 or not _complete(len(members_CX), members, stride, row) or whole(row) > latest:
            return UNUSUAL
        infinite += read
        first = end + 1
    return infinite


@inlined
def _forget(member: int, row: int, numbers: int, c: int) -> None:
    """The member is missing."""
    put(row + 2 * WORD * (c + 1), UNUSUAL)
    if NUMBER <= whole(member + KIND) <= BOOLEAN:
        put(numbers + FLOAT32 * whole(member + VALUE), np.float32(np.nan))


@inlined
def _complete(count: int, members: int, stride: int, row: int) -> bool:
    for c in range(count):
        missing = whole(row + 2 * WORD * (c + 1)) < 0
        if missing and whole(members + stride * c + REQUIRED):
            return False
        if whole(members + stride * c + KIND) == LONGITUDE and missing != (whole(row + 2 * WORD * c) < 0):
            return False
    return True


@inlined
def _object(at: int, end: int, origin: int, count: int, members: int, stride: int, row: int, numbers: int) -> int:
    """One object: UNUSUAL, or how many of its numbers the caller has to read. The last of two members of one name
    counts."""
    infinite, expected = 0, 0  # most producers write members in one order
    at = space(at, end)
    if byte(at) != ord("{"):
        return UNUSUAL
    while True:
        at = space(at + 1, end)
        if byte(at) != ord('"'):
            return UNUSUAL
        c = _member(at + 1, members, stride, count, expected)
        size = text_size(at + 1) if c < 0 else whole(members + stride * c + SIZE)
        at = space(at + size + 2, end)
        if size < 0 or byte(at) != ord(":"):
            return UNUSUAL
        at = space(at + 1, end)
        kind, size, x = value(at)
        if kind == NOTHING:
            return UNUSUAL
        if c >= 0:
            if not _take(at, kind, size, x, members + stride * c, origin, row, numbers, c):
                return UNUSUAL
            infinite += x == np.inf
            expected = c + 1
        at = space(at + size, end)
        if byte(at) != ord(","):
            break
    return infinite if byte(at) == ord("}") and space(at + 1, end) == end else UNUSUAL


@inlined
def _member(at: int, members: int, stride: int, count: int, expected: int) -> int:
    """Which member's name this is, -1 for none; the expected one is tried first."""
    words = (stride - NAME) // (2 * WORD)
    for n in range(count):
        c = expected + n
        if c >= count:
            c -= count
        name = members + stride * c + NAME
        bits = name + WORD * words
        w = 0
        while w < words and (word(at + WORD * w) & word(bits + WORD * w)) == word(name + WORD * w):
            w += 1
        if w == words:
            return c
    return -1


@inlined
def _take(at: int, kind: int, size: int, x: float, member: int, origin: int, row: int, numbers: int, c: int) -> bool:
    """Put a value where its member's values go; False when it is not what the member may be."""
    wanted = whole(member + KIND)
    if kind == LITERAL and byte(at) == ord("n"):
        _forget(member, row, numbers, c)
        return wanted < ISO8601
    marks = 1 if kind == TEXT else 0
    at, size = at + marks, size - 2 * marks
    put(row + WORD * (2 * c + 1), at - origin)
    put(row + WORD * (2 * c + 2), size)
    if wanted <= CATEGORY:
        short = kind == TEXT and size <= MAX_TEXT and (size > 0 or wanted == CATEGORY)
        return short or kind == WHOLE or (kind == LITERAL and wanted == CATEGORY)
    if wanted >= ISO8601:
        ms = _time_ms(at, size, kind, x, wanted)
        put(row, ms)
        return 0 < ms < LATEST_MS
    if wanted == BOOLEAN:
        if kind == LITERAL:
            x = 1.0 if byte(at) == ord("t") else 0.0
        fits = kind == LITERAL or (kind == WHOLE and (x == 0.0 or x == 1.0))  # noqa: PLR1714, a set is slower
    else:
        number = kind == WHOLE or kind == FRACTION  # noqa: PLR1714, a set is slower
        fits = number and (x == np.inf or real(member + LOW) <= x <= real(member + HIGH))
    put(numbers + FLOAT32 * whole(member + VALUE), np.float32(x))
    return fits


@inlined
def _time_ms(at: int, size: int, kind: int, x: float, wanted: int) -> int:
    """Epoch milliseconds of a time that is wanted in this form; not above 0 when it is not of it."""
    if wanted == ISO8601:
        return iso_ms(at, size) if kind == TEXT else UNUSUAL
    if wanted == MILLISECONDS:
        return np.int64(x) if kind == WHOLE and x < LATEST_MS else UNUSUAL  # type: ignore[return-value]
    number = kind == WHOLE or kind == FRACTION  # noqa: PLR1714, a set is slower
    return np.int64(np.rint(x * 1000.0)) if number and x < LATEST_MS / 1000 else UNUSUAL  # type: ignore[return-value]
