"""The tokens of JSON, in compiled code: texts, numbers, literals and times, each where it begins at an address.

Only what is plain is taken; the rest is UNUSUAL or NOTHING, right or wrong. Every loop stops at a line feed at the
latest: none stands within a token.
"""

from __future__ import annotations

import numpy as np

from models.compiled import inlined
from models.flat.machine import WORD, byte, lowest_byte, word

__all__ = ["FRACTION", "LITERAL", "NOTHING", "TEXT", "UNUSUAL", "WHOLE", "iso_ms", "space", "text_size", "value"]

NOTHING, TEXT, WHOLE, FRACTION, LITERAL = range(5)  # kinds of values; a fraction has a point or an exponent
UNUSUAL = -1
LONGEST = 65_536  # bytes of a record, and so of any text
MAX_DIGITS = 18  # fit an int64
EXACT = 2**53  # whole numbers up to here, and powers of ten up to 10^22, are exact as float64
POWERS = np.array([10.0**e for e in range(23)])
DAYS_BEFORE = np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365], dtype=np.int64)
DAYS = np.diff(DAYS_BEFORE)
ONES, HIGHS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
SPACES, QUOTES, BACKSLASHES = (np.uint64(code * 0x0101010101010101) for code in (0x20, 0x22, 0x5C))


@inlined
def space(at: int, end: int) -> int:
    """The next byte that is no white space; `end` when there is none."""
    while at < end:
        b = byte(at)
        if b > 32 or not (b == 32 or b == 10 or b == 13 or b == 9):  # noqa: PLR1714, a set is slower
            break
        at += 1
    return at


@inlined
def text_size(at: int) -> int:
    """Bytes up to the closing quotation mark; UNUSUAL where an escape or a control character comes first.

    Eight bytes at a time: a byte is 0 where w - 1 borrows into its highest bit and w has not set it (Warren, Hacker's
    Delight 6-1); a borrow can only go wrong above the first hit, which is the one that is looked for.
    """
    for i in range(at, at + LONGEST, WORD):
        w = word(i)
        quote, backslash = w ^ QUOTES, w ^ BACKSLASHES
        hit = (
            ((w - SPACES) & ~w) | ((quote - ONES) & ~quote) | ((backslash - ONES) & ~backslash)
        ) & HIGHS  # fmt: skip
        if hit != 0:
            size = i - at + lowest_byte(hit)
            return size if byte(at + size) == ord('"') else UNUSUAL
    return UNUSUAL


@inlined
def value(at: int) -> tuple[int, int, float]:
    """Kind and size of the value that begins here, of a text with its quotation marks; if a number, as `_number`."""
    b = byte(at)
    if b == ord('"'):
        size = text_size(at + 1)
        return (TEXT, size + 2, np.nan) if size >= 0 else (NOTHING, 0, np.nan)
    if b == ord("-") or ord("0") <= b <= ord("9"):
        return _number(at)
    if _is(at, ord("t"), ord("r"), ord("u"), ord("e")) or _is(at, ord("n"), ord("u"), ord("l"), ord("l")):
        return LITERAL, 4, np.nan
    if b == ord("f") and _is(at + 1, ord("a"), ord("l"), ord("s"), ord("e")):
        return LITERAL, 5, np.nan
    return NOTHING, 0, np.nan


@inlined
def _is(at: int, a: int, b: int, c: int, d: int) -> bool:
    return (
        byte(at) == a and byte(at + 1) == b and byte(at + 2) == c and byte(at + 3) == d
    )  # fmt: skip


@inlined
def _digit(at: int) -> int:
    """The value of a decimal digit; above 9 where there is none."""
    return np.int64(np.uint8(byte(at) - np.uint8(48)))  # type: ignore[return-value]


@inlined
def _number(at: int) -> tuple[int, int, float]:
    """Kind and size of a number, and its value: the float64 nearest to the text; infinite where that is not plain.

    It is for a whole number up to 2^53 times or over a power of ten up to 10^22: both are exact, so only one rounding
    is left (Clinger, How to read floating point numbers accurately, 1990). Minus zero, exponents of four digits and
    whole numbers of more than MAX_DIGITS are unusual.
    """
    nothing = (NOTHING, 0, np.nan)
    negative = byte(at) == ord("-")
    first = at + 1 if negative else at
    i, mantissa = first, 0
    while _digit(i) <= 9 and i - first <= MAX_DIGITS:
        mantissa = 10 * mantissa + _digit(i)
        i += 1
    digits = i - first
    if digits == 0 or digits > MAX_DIGITS or (digits > 1 and _digit(first) == 0):
        return nothing
    kind, scale = WHOLE, 0
    if byte(i) == ord("."):
        kind, first = FRACTION, i + 1
        i = first
        while _digit(i) <= 9:
            digits += 1
            if digits <= MAX_DIGITS:
                mantissa = 10 * mantissa + _digit(i)
            i += 1
        if i == first:
            return nothing
        scale = first - i
    if byte(i) | 32 == ord("e"):
        kind, exponent = FRACTION, 0
        i += 1
        down = byte(i) == ord("-")
        if down or byte(i) == ord("+"):
            i += 1
        first = i
        while _digit(i) <= 9:
            exponent = min(10 * exponent + _digit(i), 10_000)
            i += 1
        if i == first or i > first + 3:
            return nothing
        scale += -exponent if down else exponent
    if kind == WHOLE and negative and mantissa == 0:
        return nothing
    if digits > MAX_DIGITS or mantissa > EXACT or abs(scale) > 22:
        return kind, i - at, np.inf
    x = mantissa * POWERS[scale] if scale >= 0 else mantissa / POWERS[-scale]
    return kind, i - at, -x if negative else x


@inlined
def _two(at: int, greatest: int) -> int:
    """A number of two digits, UNUSUAL when it is none or above `greatest`."""
    tens, units = _digit(at), _digit(at + 1)
    number = 10 * tens + units
    return number if tens <= 9 and units <= 9 and number <= greatest else UNUSUAL


@inlined
def iso_ms(at: int, size: int) -> int:
    """Epoch milliseconds of 1970-01-01T00:00:00 with up to six decimals, and Z, +hh:mm, -hh:mm or nothing (UTC);
    UNUSUAL for anything else and for years outside 1970 to 2099. Halves of a millisecond are rounded up."""
    if size < 19 or byte(at + 4) != ord("-") or byte(at + 7) != ord("-") or byte(at + 10) != ord("T"):
        return UNUSUAL
    century, year, month = _two(at, 20), _two(at + 2, 99), _two(at + 5, 12)
    day, hour, minute, second = (
        _two(at + 8, 31), _two(at + 11, 23), _two(at + 14, 59), _two(at + 17, 59)
    )  # fmt: skip
    if byte(at + 13) != ord(":") or byte(at + 16) != ord(":") or min(century, year, hour, minute, second) < 0:
        return UNUSUAL
    year += 100 * century
    leap = year % 4 == 0 and year != 1900  # 2000 was one
    if year < 1970 or month < 1 or day < 1 or day > DAYS[month - 1] + (leap and month == 2):
        return UNUSUAL
    # from 1972 on each fourth year has had a day more
    days = 365 * (year - 1970) + (year - 1969) // 4 + DAYS_BEFORE[month - 1] + (leap and month > 2) + day - 1
    seconds = 86_400 * days + 3600 * hour + 60 * minute + second
    i, end = at + 19, at + size
    decimals, fraction = 0, 0
    if i < end and byte(i) == ord("."):
        i += 1
        while _digit(i) <= 9 and decimals <= 6:
            fraction = 10 * fraction + _digit(i)
            decimals, i = decimals + 1, i + 1
        if decimals == 0 or decimals > 6:
            return UNUSUAL
        for _ in range(decimals, 6):
            fraction *= 10
    if i < end and byte(i) == ord("Z"):
        i += 1
    elif i + 6 == end and (byte(i) == ord("+") or byte(i) == ord("-")) and byte(i + 3) == ord(":"):
        ahead, ahead_minutes = _two(i + 1, 23), _two(i + 4, 59)
        if ahead < 0 or ahead_minutes < 0:
            return UNUSUAL
        offset = 3600 * ahead + 60 * ahead_minutes
        seconds += offset if byte(i) == ord("-") else -offset
        i = end
    return 1000 * seconds + (fraction + 500) // 1000 if i == end else UNUSUAL
