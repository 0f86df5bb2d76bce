"""SKAB without the hint of its layout: normal prefixes of random length, and figures that are means over several draws.

In the valve experiments of the Skoltech Anomaly Benchmark (Katser and Kozitsin 2020) nearly every anomaly begins
between rows 566 and 578, 170 rows behind the prefix of 400 that the leaderboard fits on. A detector that counts rows
would look excellent. Here each draw gives each experiment another prefix, and leaves out a random number of rows before
it, so that neither the row nor the distance from the prefix says where the anomaly is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.anomaly.points import Confusion, confusion
from training.anomaly.series import Series, runs_of
from training.errors import TrainingError

__all__ = ["BlindResult", "blind_figures", "draw_blind", "score_blind"]

LEAST_ROWS = 200  # of a prefix: enough to fit on at 1 Hz, and half of what the leaderboard gives
GAP_ROWS = 30  # normal rows at least between prefix and anomaly, so that a false alarm can be raised there

Scored = tuple[Series, NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class BlindResult:
    """Means over draws. f1: in [0, 1]. false_alarm_rate, missed_alarm_rate: percent. spread: standard deviation of f1
    between draws. threshold: rows that reach it are alarmed. draws: the counts of each draw."""

    f1: float
    false_alarm_rate: float
    missed_alarm_rate: float
    spread: float
    threshold: float
    draws: tuple[Confusion, ...]


def draw_blind(
    experiments: Sequence[Series],
    seed: int,
    *,
    least_rows: int = LEAST_ROWS,
    gap_rows: int = GAP_ROWS,
    from_first: bool = False,
) -> list[Series]:
    """Each experiment with an anomaly, from a random row on, with a random prefix; those without one are left out.

    The prefix has at least `least_rows` rows and ends at least `gap_rows` before the first anomaly; its end, and then
    its length, are equally likely among those possible. `series.scored` are the rows to be scored. from_first: the
    prefix begins with the file, so that only its length is random. The same seed gives an experiment the same draw,
    whichever others there are. Raises TrainingError where the anomaly begins too early.
    """
    return [_draw(series, seed, least_rows, gap_rows, from_first) for series in experiments if series.label_T.any()]


def score_blind(
    experiments: Sequence[Series],
    detect: Callable[[Series], NDArray[np.floating]],
    seeds: Sequence[int],
    *,
    from_first: bool = False,
) -> list[list[Scored]]:
    """A detector's scores of each draw: `detect` gives one for each row of a series, those of the prefix too."""
    return [
        [(series, detect(series)) for series in draw_blind(experiments, seed, from_first=from_first)] for seed in seeds
    ]


def blind_figures(draws: Sequence[Sequence[Scored]], threshold: float | None = None) -> BlindResult:
    """F1, FAR and MAR of each draw's rows counted together, as SKAB does; their means over the draws.

    threshold: fixed beforehand. None: the one with the best mean F1 over all draws, an upper bound that knows the
    labels. Raises TrainingError: no draws, a score too few, one that is not finite.
    """
    if not draws or not all(draws):
        raise TrainingError(f"{len(draws)} draws, some without a series: expected at least one of each")
    rows = [_rows(draw) for draw in draws]
    chosen = _best_threshold(rows) if threshold is None else threshold
    counts = tuple(confusion(label_N, score_N >= chosen) for label_N, score_N in rows)
    f1s = [count.f1 for count in counts]
    return BlindResult(
        float(np.mean(f1s)), float(np.mean([count.false_alarm_rate for count in counts])),
        float(np.mean([count.missed_alarm_rate for count in counts])), float(np.std(f1s)), chosen, counts,
    )  # fmt: skip


def _draw(series: Series, seed: int, least_rows: int, gap_rows: int, from_first: bool) -> Series:
    latest = int(series.label_T.argmax()) - gap_rows
    if latest < least_rows:
        raise TrainingError(
            f"{series.name}: first anomaly at row {latest + gap_rows}: expected {least_rows} + {gap_rows} rows before"
        )
    random = np.random.default_rng([seed, *series.name.encode()])
    end = int(random.integers(least_rows, latest + 1))
    begin = 0 if from_first else int(random.integers(0, end - least_rows + 1))
    label_T = series.label_T[begin:]
    return replace(
        series, values_TC=series.values_TC[begin:], time_T=series.time_T[begin:], label_T=label_T, prefix=end - begin,
        windows_W2=runs_of(label_T), probation=0,
    )  # fmt: skip


def _rows(draw: Sequence[Scored]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    labels, scores = [], []
    for series, score_T in draw:
        if score_T.shape != (len(series),):
            raise TrainingError(f"{series.name}: scores of shape {score_T.shape}: expected ({len(series)},)")
        scored_T = np.asarray(score_T[series.scored], np.float64)
        if not np.isfinite(scored_T).all():
            raise TrainingError(f"{series.name}: a score is not finite: expected a number for each row")
        labels.append(series.label_T[series.scored])
        scores.append(scored_T)
    return np.concatenate(labels), np.concatenate(scores)


def _best_threshold(draws: Sequence[tuple[NDArray[np.bool_], NDArray[np.float64]]]) -> float:
    """Of all scores that occur, the one with the best mean F1; the highest of those that are equally good."""
    threshold_M = np.unique(np.concatenate([score_N for _, score_N in draws]))
    mean_M = np.zeros(len(threshold_M))
    for label_N, score_N in draws:
        order = np.argsort(score_N, kind="stable")
        below_M = np.searchsorted(score_N[order], threshold_M, side="left")
        missed_M = np.concatenate([[0], np.cumsum(label_N[order])])[below_M]
        anomalies = int(label_N.sum())
        mean_M += 2 * (anomalies - missed_M) / (len(label_N) - below_M + anomalies)
    return float(threshold_M[len(mean_M) - 1 - int(np.argmax(mean_M[::-1]))])
