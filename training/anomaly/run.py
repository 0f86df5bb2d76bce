"""`python -m training evaluate --protocol nab|skab|smd|tsbad`: the detector's figures beside the published ones.

One set of settings for all of them; what differs is learnt from each series' prefix, or its first readings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from training.anomaly.blind import blind_figures, score_blind
from training.anomaly.detect import surprise_of
from training.anomaly.nab import nab_scores, scored
from training.anomaly.nab_files import write_nab_files
from training.anomaly.points import auc_pr, best_f1, confusion
from training.anomaly.series import Series, load_benchmark
from training.anomaly.vus import tsbad_vus_pr
from training.errors import TrainingError

__all__ = ["ANOMALY_PROTOCOLS", "run", "show"]

ALARM = 0.34  # score from which a row is alarmed where a protocol asks for a decision; chosen on SKAB's valve1
DRAWS = range(4)  # of SKAB's prefixes
DETECTOR = "lepton"  # in NAB's file names

# As their authors report them, on all files of a benchmark.
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "nab": {
        "ARTime, told each file's range": {"standard": 74.9, "low FP": 65.2, "low FN": 80.4},
        "Numenta HTM": {"standard": 70.1, "low FP": 63.1, "low FN": 74.3},
        "CAD OSE, told each file's range": {"standard": 69.9, "low FP": 67.0, "low FN": 73.2},
        "random cut forest": {"standard": 51.7, "low FP": 38.4, "low FN": 59.8},
        "windowed Gaussian": {"standard": 39.7, "low FP": 20.9, "low FN": 47.4},
    },
    "skab": {
        "Conv-AE, not blind": {"F1": 0.78, "FAR %": 13.6, "MAR %": 28.0},
        "T² and Q, not blind": {"F1": 0.76, "FAR %": 26.6, "MAR %": 24.9},
        "isolation forest, not blind": {"F1": 0.29},
    },
    "smd": {},
    "tsbad": {"PaAno": {"VUS-PR": 0.43}, "CNN": {"VUS-PR": 0.31}, "OmniAnomaly": {"VUS-PR": 0.31},
              "PCA": {"VUS-PR": 0.31}},
}  # fmt: skip


def run(protocol: str, data: Path | None, out: Path | None) -> dict[str, Any]:
    """Score a benchmark's series; JSON values: figures, by series where the protocol has them, published, seconds.

    out: also writes NAB's result files under it, `results/lepton/…`. Raises TrainingError: no data, unreadable data.
    """
    if data is None:
        raise TrainingError(f"--protocol {protocol}: expected a file or a folder with its data after it")
    if out is not None and protocol != "nab":
        raise TrainingError(f"--out {out}: expected with --protocol nab, whose result files it writes")
    series = load_benchmark(protocol, data)
    began = time.perf_counter()
    facts = ANOMALY_PROTOCOLS[protocol](series, out)
    seconds = round(time.perf_counter() - began, 1)
    return {"protocol": protocol, "series": len(series), "rows": sum(map(len, series)), **facts,
            "published": PUBLISHED[protocol], "seconds": seconds}  # fmt: skip


def _nab(series: Sequence[Series], out: Path | None) -> dict[str, Any]:
    onsets = [(one, surprise_of(one).onset_T) for one in series]
    facts: dict[str, Any] = {}
    if out is not None:
        facts["files"] = len(write_nab_files(out / "results", DETECTOR, onsets))
    results = nab_scores([scored(one, onset_T) for one, onset_T in onsets])
    facts["figures"] = {name: round(result.score, 2) for name, result in results.items()}
    facts["thresholds"] = {name: result.threshold for name, result in results.items()}
    return facts


def _skab(series: Sequence[Series], out: Path | None) -> dict[str, Any]:  # noqa: ARG001, like the others
    experiments = [one for one in series if one.label_T.any()]
    draws = score_blind(experiments, lambda one: surprise_of(one).score_T, DRAWS)
    facts: dict[str, Any] = {}
    for name, threshold in (("figures", ALARM), ("best threshold", None)):
        found = blind_figures(draws, threshold)
        facts[name] = {
            "F1": round(found.f1, 3), "FAR %": round(found.false_alarm_rate, 1),
            "MAR %": round(found.missed_alarm_rate, 1), "spread of F1": round(found.spread, 3),
            "threshold": round(found.threshold, 4),
        }  # fmt: skip
    return facts


def _smd(series: Sequence[Series], out: Path | None) -> dict[str, Any]:  # noqa: ARG001
    rows = {}
    for one in series:
        label_T, score_T = one.label_T[one.scored], surprise_of(one).score_T[one.scored]
        rows[one.name] = {
            "AUC-PR": auc_pr(label_T, score_T), "best F1": best_f1(label_T, score_T).f1,
            f"F1 from {ALARM}": confusion(label_T, score_T >= ALARM).f1,
        }  # fmt: skip
    return _by_series(rows)


def _tsbad(series: Sequence[Series], out: Path | None) -> dict[str, Any]:  # noqa: ARG001
    rows = {}
    for one in series:
        score_T = surprise_of(one).score_T
        rows[one.name] = {"VUS-PR": tsbad_vus_pr(one, score_T), "AUC-PR": auc_pr(one.label_T, score_T)}
    return _by_series(rows)


def _by_series(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    names = next(iter(rows.values()))
    figures = {name: round(float(np.mean([row[name] for row in rows.values()])), 3) for name in names}
    short = {one: {name: round(value, 3) for name, value in row.items()} for one, row in rows.items()}
    return {"figures": figures, "by series": short}


ANOMALY_PROTOCOLS: dict[str, Callable[[Sequence[Series], Path | None], dict[str, Any]]] = {
    "nab": _nab, "skab": _skab, "smd": _smd, "tsbad": _tsbad,
}  # fmt: skip


def show(facts: dict[str, Any], console: Console) -> None:
    """One table: Lepton's figures, by series if there are any, then the published ones."""
    names = list(facts["figures"])
    table = Table("detector", *names, box=None)
    for one, row in facts.get("by series", {}).items():
        table.add_row(f"  {one}", *(f"{row[name]:g}" for name in names))
    table.add_row("Lepton", *(f"{facts['figures'][name]:g}" for name in names), style="bold")
    if "best threshold" in facts:
        table.add_row("  best threshold", *(f"{facts['best threshold'][name]:g}" for name in names))
    for name, row in facts["published"].items():
        table.add_row(f"{name} (published)", *(f"{row[n]:g}" if n in row else "" for n in names))
    console.print(table)
    console.print(
        f"{facts['series']} series, {facts['rows']:,} rows, {facts['seconds']:.0f} s. Published figures are those of a "
        "benchmark's whole data.", highlight=False,
    )  # fmt: skip
