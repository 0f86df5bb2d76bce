"""The elementary functions of compiled loops."""

from __future__ import annotations

import numpy as np
import pytest
from numba import njit

from models.features import numerics

RNG = np.random.default_rng(3)
SMALL_TO_LARGE = np.concatenate([[0.0, np.sqrt(2.0) - 1, 1.0, 3.0], np.exp(RNG.uniform(-25, 80, 5000))])
TURNS = np.concatenate([[0.0, 0.125, -0.125, 0.25, 0.5, -0.5, 0.75, 1.0], RNG.uniform(-1, 1, 5000)])


def _loop(function):
    @njit(error_model="numpy")
    def loop(x_N, out_N):
        for i in range(len(x_N)):
            out_N[i] = function(x_N[i])

    return loop


CASES = {
    "log1p": (numerics.log1p, np.log1p, SMALL_TO_LARGE, 3e-9, 0.0),
    "asinh": (numerics.asinh, np.arcsinh, np.concatenate([SMALL_TO_LARGE, -SMALL_TO_LARGE]), 3e-9, 0.0),
    "sin": (numerics.sin_turns, lambda u: np.sin(2 * np.pi * u), TURNS, 0.0, 3e-9),
    "cos": (numerics.cos_turns, lambda u: np.cos(2 * np.pi * u), TURNS, 0.0, 3e-9),
    "arcsin": (numerics.arcsin, np.arcsin, np.append(RNG.random(5000), [0.0, 0.5, 1.0]), 2e-8, 0.0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_function_is_as_exact_as_it_says_wherever_its_argument_stands(name: str) -> None:
    """Values are within the stated error, and the same to the bit alone as in the middle of a vector."""
    function, reference, x_N, relative, absolute = CASES[name]
    loop = _loop(function)
    whole_N = np.empty_like(x_N)
    loop(x_N, whole_N)
    np.testing.assert_allclose(whole_N, reference(x_N), rtol=relative, atol=absolute + 1e-300)
    for width in (1, 7):
        parts_N = np.empty_like(x_N)
        for start in range(0, len(x_N), width):
            loop(x_N[start : start + width], parts_N[start : start + width])
        assert parts_N.tobytes() == whole_N.tobytes()


def test_small_arguments_keep_their_digits() -> None:
    """log1p and asinh of tiny numbers are those numbers, not what is left of them beside 1."""
    tiny_N = np.array([1e-12, 1e-17, 1e-30])
    for function in (numerics.log1p, numerics.asinh):
        out_N = np.empty_like(tiny_N)
        _loop(function)(tiny_N, out_N)
        np.testing.assert_allclose(out_N, tiny_N, rtol=1e-9)
