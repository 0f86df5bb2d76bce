"""Has what the detector reads changed since it was trained? Population stability index of each input.

PSI = Σ (a - e) ln(a / e) over bins, a the shares now and e those of the reference (Siddiqi, "Credit Risk Scorecards",
2006, whose rule it is that below 0.10 nothing has changed and from 0.25 the population has shifted). Two samples of the
same population differ, too: (1/n + 1/m) χ²(bins - 1) is what chance alone gives (Yurdakul, "Statistical Properties of
Population Stability Index", 2018), and its 95% point is stated beside each value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from models.features.encoded import Encoded, InputSpec

__all__ = ["LARGE", "SOME", "Drift", "drift", "stability_index"]

SOME, LARGE = 0.10, 0.25  # Siddiqi 2006
BINS = 10
CODES = 20  # embedding rows that get a bin of their own, the most frequent first


@dataclass(frozen=True, slots=True)
class Drift:
    """One input: its index, what chance alone reaches in one of twenty cases, and the shares it was computed from.

    labels: of the bins; the number at which each begins, or the embedding row ("other": all the rest).
    """

    name: str
    index: float
    by_chance: float
    labels: tuple[str, ...]
    reference: tuple[float, ...]
    now: tuple[float, ...]

    @property
    def judgement(self) -> str:
        if self.index < SOME:
            return "stable"
        return "large" if self.index >= LARGE else "some"


def drift(inputs: InputSpec, reference: Encoded, now: Encoded) -> list[Drift]:
    """Of every number and category of the current event, every context feature, and the verdicts; greatest first.

    Only the last event of each window is read. Both samples have to be drawn alike, and hold at least one event.
    """
    found = [_of_numbers(name, reference.x_BLF[:, -1, f], now.x_BLF[:, -1, f]) for f, name in enumerate(inputs.x)]
    found += [
        _of_codes(name, reference.codes_BLK[:, -1, k], now.codes_BLK[:, -1, k])
        for k, (name, _) in enumerate(inputs.codes)
    ]
    found += [_of_numbers(name, reference.context_BC[:, c], now.context_BC[:, c])
              for c, name in enumerate(inputs.context)]  # fmt: skip
    for j, name in enumerate(inputs.verdicts):
        for what, column in (("verdicts", 0), ("frauds", 1)):
            counts = [side.verdicts_BJSG[:, j, :, column].sum(axis=1) for side in (reference, now)]
            found.append(_of_numbers(f"{name}.newest_{what}", *counts))
    return sorted(found, key=lambda d: -d.index)


def stability_index(reference: NDArray[np.int64], now: NDArray[np.int64]) -> tuple[float, float]:
    """The index of counts by bin, and its 95% point under no change. Empty bins count as half an event."""
    n, m, bins = int(reference.sum()), int(now.sum()), len(reference)
    e, a = (np.maximum(counts, 0.5) / max(total, 1) for counts, total in ((reference, n), (now, m)))
    index = float(np.sum((a - e) * np.log(a / e)))
    return index, float((1 / n + 1 / m) * chi2.ppf(0.95, bins - 1)) if bins > 1 else 0.0


def _of_numbers(name: str, reference_N: NDArray[np.float32], now_M: NDArray[np.float32]) -> Drift:
    """Bins of equal counts of the reference; a value that many share, such as 0 or a flag, makes fewer of them."""
    values = np.unique(reference_N)
    if len(values) <= BINS:
        edges = values[1:]  # each value its own bin
    else:
        edges = np.quantile(reference_N, np.linspace(0, 1, BINS + 1)[1:-1], method="lower")
        edges = np.unique(np.where(edges == values[0], values[1], edges))  # a least value that many share is alone
    counts = [np.bincount(np.searchsorted(edges, side, side="right"), minlength=len(edges) + 1)
              for side in (reference_N, now_M)]  # fmt: skip
    least = min(float(reference_N.min()), float(now_M.min()))
    return _drift(name, tuple(f"{v:.3g}" for v in [least, *edges.tolist()]), *counts)


def _of_codes(name: str, reference_N: NDArray[np.int32], now_M: NDArray[np.int32]) -> Drift:
    values, times = np.unique(reference_N, return_counts=True)
    own = values[np.argsort(-times, kind="stable")[:CODES]]
    counts = [np.array([*((side == v).sum() for v in own), (~np.isin(side, own)).sum()])
              for side in (reference_N, now_M)]  # fmt: skip
    labels = tuple("missing" if v == 0 else f"row {v}" for v in own.tolist())
    return _drift(name, (*labels, "other"), *counts)


def _drift(name: str, labels: tuple[str, ...], reference: NDArray[np.int64], now: NDArray[np.int64]) -> Drift:
    seen = (reference + now) > 0
    index, by_chance = stability_index(reference[seen], now[seen])
    shares = [tuple((counts[seen] / counts.sum()).tolist()) for counts in (reference, now)]
    return Drift(name, index, by_chance, tuple(np.array(labels)[seen].tolist()), shares[0], shares[1])
