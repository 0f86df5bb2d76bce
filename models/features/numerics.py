"""Elementary functions for compiled loops: without branches, so that a loop over them uses vector registers.

The results go into float32 columns (relative step 6e-8); each function says how far it is from the true value
before that rounding. The series are Taylor's, cut where the remainder on the reduced argument is below that.
"""

from __future__ import annotations

import math

import numpy as np

from models.compiled import inlined

__all__ = ["ASINH", "LINEAR", "LOG1P", "arcsin", "asinh", "cos_turns", "log1p", "sin_turns", "transformed"]

LINEAR, LOG1P, ASINH = 0, 1, 2  # a number field's transform

LN2 = math.log(2.0)
SQRT2 = math.sqrt(2.0)
SQRT_HALF_BITS = np.uint64(np.float64(math.sqrt(0.5)).view(np.uint64))
MANTISSA_BITS = np.uint64(52)
TWO_52 = 2.0**52
TWO_52_BITS = np.uint64(np.float64(TWO_52).view(np.uint64))
HALF_PI = math.pi / 2
TWO_PI = 2 * math.pi

# (2π)^n / n!, with the sign it has in the series of the sine and the cosine of a turn
S1, S3, S5, S7, S9 = ((-1) ** (n // 2) * TWO_PI**n / math.factorial(n) for n in range(1, 10, 2))
C2, C4, C6, C8, C10 = ((-1) ** (n // 2) * TWO_PI**n / math.factorial(n) for n in range(2, 11, 2))
# arcsin s = Σ A_n s^(2n+1)
A1, A2, A3, A4, A5, A6, A7, A8, A9 = (math.comb(2 * n, n) / 4.0**n / (2 * n + 1) for n in range(1, 10))


@inlined
def log1p(x: float) -> float:
    """ln(1 + x) for finite x >= 0, within 3e-9 of its value.

    1 + x = 2^e m with √½ <= m < √2; ln m = 2 artanh z with z = (m - 1) / (m + 1), and z from x itself where e is 0,
    so that small x lose nothing in the sum.
    """
    y = 1.0 + x
    bits = np.float64(y).view(np.uint64)
    exponent = (bits - SQRT_HALF_BITS) >> MANTISSA_BITS
    m = np.uint64(bits - (exponent << MANTISSA_BITS)).view(np.float64)
    # an integer below 2^52, put into the mantissa of 2^52, is a float without a conversion
    e = np.uint64(exponent | TWO_52_BITS).view(np.float64) - TWO_52
    f = m - 1.0 if y >= SQRT2 else x
    z = f / (2.0 + f)
    w = z * z
    series = 1.0 + w * (1 / 3 + w * (1 / 5 + w * (1 / 7 + w * (1 / 9))))
    return e * LN2 + 2.0 * z * series


@inlined
def asinh(x: float) -> float:
    """The inverse hyperbolic sine of finite x, |x| < 1e150, within 3e-9 of its value."""
    a = abs(x)
    return math.copysign(log1p(a + a * a / (1.0 + math.sqrt(1.0 + a * a))), x)


@inlined
def transformed(how: int, x: float) -> float:
    """A number field's transform of a value that is there."""
    if how == LOG1P:
        return log1p(max(x, 0.0))
    value: float = asinh(x) if how == ASINH else x
    return value


@inlined
def sin_turns(u: float) -> float:
    """The sine of u turns, |u| <= 1, within 3e-9."""
    quarter = np.floor(4.0 * u + 0.5)
    sine, cosine = _series(u - 0.25 * quarter)  # exact: an eighth of a turn to either side
    q = quarter - 4.0 * np.floor(0.25 * quarter)
    odd = abs(q - 2.0) == 1.0
    value: float = cosine if odd else sine
    return -value if q >= 2.0 else value


@inlined
def cos_turns(u: float) -> float:
    """The cosine of u turns, |u| <= 1, within 3e-9."""
    quarter = np.floor(4.0 * u + 0.5)
    sine, cosine = _series(u - 0.25 * quarter)
    q = quarter - 4.0 * np.floor(0.25 * quarter)
    odd = abs(q - 2.0) == 1.0
    value: float = sine if odd else cosine
    return -value if abs(q - 1.5) < 1.0 else value


@inlined
def arcsin(s: float) -> float:
    """The arc sine of 0 <= s <= 1, within 2e-8 of its value.

    Above a half by arcsin s = π/2 - 2 arcsin √((1 - s) / 2), so that the series sees at most a half.
    """
    far = s > 0.5
    r = math.sqrt(max(0.5 - 0.5 * s, 0.0)) if far else s
    w = r * r
    high = A5 + w * (A6 + w * (A7 + w * (A8 + w * A9)))
    series = 1.0 + w * (A1 + w * (A2 + w * (A3 + w * (A4 + w * high))))
    return HALF_PI - 2.0 * r * series if far else r * series


@inlined
def _series(f: float) -> tuple[float, float]:
    """Sine and cosine of f turns, |f| <= 1/8."""
    w = f * f
    sine = f * (S1 + w * (S3 + w * (S5 + w * (S7 + w * S9))))
    cosine = 1.0 + w * (C2 + w * (C4 + w * (C6 + w * (C8 + w * C10))))
    return sine, cosine
