"""What compiled loops need to know of a layout, as numbers: no names, no Python objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Facts"]


class Facts(NamedTuple):
    """Sizes, and arrays over horizons H, plain values P (numbers, then booleans), positions G, categories K.

    horizon_H: float64, ms. how_P: int64, the transform of each plain value (`models.features.numerics`); booleans
    are linear. optional_P: int64, places of the plain values with a `missing` flag. optional_G: int64, 1 where a
    position has one. buckets_K: int64, embedding rows. log_count: float64, log1p of 0 up to the window's length.
    """

    length: int
    numbers: int
    values: int  # plain values, and the two degrees of each position
    hashes: int  # categories, then entities
    columns: int  # of one event of the window
    context: int  # columns of context before those of surprise and profiles
    beside: int  # words of 4 bytes of a state that are not advanced with the window: of surprise and of the episode
    horizon_H: NDArray[np.float64]
    how_P: NDArray[np.int64]
    optional_P: NDArray[np.int64]
    optional_G: NDArray[np.int64]
    buckets_K: NDArray[np.int64]
    log_count: NDArray[np.float64]
