"""Detectors in this project's own compiled kernels (`native_gru`, `native_surprise`): the fastest where they fit, and
no framework.

The kernels are compiled when they are first imported on a machine and then kept on disk.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.engines.base import Engine, Precision
from models.engines.native_gru import NativeGru
from models.engines.native_surprise import NativeSurprise
from models.features.encoded import Encoded
from models.pipeline.spec import SURPRISE

__all__ = ["NativeEngine", "build"]


class NativeEngine(Engine):
    """Runs architectures `gru` and `surprise`, in one thread."""

    def __init__(self, bundle: Bundle, short: bool = False) -> None:
        info = bundle.info
        self.precision: Precision
        self.name, self.precision = ("native-int16", "int16") if short else ("native", "float32")
        self._detector = (
            NativeSurprise(info.inputs)
            if info.architecture == SURPRISE
            else NativeGru(bundle.weights, info.inputs, info.hidden, info.embedding, short=short)
        )

    def logits(self, encoded: Encoded) -> NDArray[np.float32]:
        return self._detector.logits(encoded)

    def logits_after(self, past: Encoded, last: Encoded, past_V: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._detector.logits_after(past, last, past_V)


def build(bundle: Bundle, threads: int) -> NativeEngine:  # noqa: ARG001, the kernels use one thread
    """The engine for a bundle, whatever `threads` the setting has."""
    return NativeEngine(bundle)


def build_int16(bundle: Bundle, threads: int) -> NativeEngine:  # noqa: ARG001
    """The same with states and their weights in int16: faster where the processor multiplies those (AVX512-VNNI)."""
    return NativeEngine(bundle, short=True)
