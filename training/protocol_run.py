"""`python -m training evaluate --protocol`: a file, a pipeline and options in; a table of systems and folds out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from models.clock import DAY_MS
from models.features.layout import Layout
from models.pipeline.spec import Pipeline, without_labels
from training.baselines import LightGBM, XGBoost
from training.commandline import parse_columns, parse_duration, parse_time
from training.errors import TrainingError
from training.fit import Recipe
from training.folds import Plan, System
from training.from_table import history_of_table
from training.leaks import View
from training.progress import Bars
from training.protocol import Neural, Report, run_protocol
from training.protocol_options import Architecture, ProtocolOptions
from training.replay import History
from training.rolling import rolling_features, rolling_seen
from training.tables import Mapped, read_file

__all__ = ["run", "show"]

COLUMNS = {
    "roc_auc": "AUC", "average_precision": "AP", "card_precision_at_100": "CP@100", "expected_calibration_error": "ECE",
    "top_percentile_probability": "top 1 %: said", "top_percentile_fraud_rate": "were", "seconds": "training, s",
}  # fmt: skip
WIDTH = 120
DIGITS = {"expected_calibration_error": 4, "seconds": 0}


def run(pipeline: Pipeline, data: Path | None, folds: int, known_ms: int, options: ProtocolOptions) -> dict[str, Any]:
    """Evaluate all systems on the file; JSON values.

    known_ms: see `training.folds.Plan`. Raises HistoryError, TrainingError.
    """
    if data is None:
        raise TrainingError("--protocol: expected a CSV, JSONL or Parquet file after it")
    plan = Plan(
        folds=folds, known_ms=known_ms, first_test_ms=_day(options.first_test),
        train_ms=None if options.train_days is None else round(options.train_days * DAY_MS),
        gap_ms=parse_duration("--gap", options.gap), validation_ms=parse_duration("--validation", options.validation),
        holdout_ms=parse_duration("--holdout", options.holdout), max_legit=options.max_legit, refit=options.refit,
        seed=options.seed,
    )  # fmt: skip
    began = time.monotonic()
    history, skipped = history_of_table(_mapped(pipeline, data, options))
    imported = round(time.monotonic() - began, 1)
    with Bars() as bars:
        systems, views = _systems(history, options, bars)
        facts = run_protocol(history, systems, plan, views=views, out=options.out, report=bars)
    facts["seconds"] = {"import": imported} | facts["seconds"]
    facts["skipped"] = skipped
    return facts


def show(facts: dict[str, Any], console: Console) -> None:
    """One table: every system by fold and on the mean, then the published means."""
    console.width = max(console.width, WIDTH)  # of a file or a narrow window: rows stay rows
    table = Table("system", "fold", *COLUMNS.values(), box=None)
    for name, found in facts["systems"].items():
        for number, metrics in enumerate(found["folds"], 1):
            table.add_row(name if number == 1 else "", str(number), *_cells(metrics))
        table.add_row("", "mean", *_cells(found["mean"]), style="bold")
    table.add_section()
    for name, metrics in facts["published"].items():
        table.add_row(f"{name} (published)", "mean", *_cells(metrics))
    console.print(table)
    days = ", ".join(fold["start"][:10] for fold in facts["folds"])
    console.print(
        f"Test weeks from {days}. Published: the Fraud Detection Handbook, chapters 5 to 7, on its own simulated "
        "transactions and the weeks from 2018-08-08; comparable only there.", highlight=False,
    )  # fmt: skip
    seconds = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in facts["seconds"].items())
    console.print(f"{seconds}.", highlight=False)


def _mapped(pipeline: Pipeline, data: Path, options: ProtocolOptions) -> Mapped:
    return Mapped(
        read_file(data), pipeline, labels=options.labels or pipeline.labels.verdict,
        label_delay_ms=parse_duration("--label-delay", options.label_delay or pipeline.labels.maturity),
        label_time=options.label_time, columns=parse_columns(options.columns or []),
    )  # fmt: skip


def _systems(history: History, options: ProtocolOptions, report: Report) -> tuple[list[System], dict[str, View]]:
    pipeline = history.pipeline
    recipe = Recipe(
        epochs=options.epochs, batch=options.batch, learning_rate=options.learning_rate, max_legit=options.max_legit,
        seed=options.seed, threads=options.threads,
    )  # fmt: skip
    own = pipeline.detector.architecture
    names = options.architecture or [cast(Architecture, "gru" if without_labels(own) else own)]
    systems: list[System] = [
        Neural(
            pipeline, name, recipe, refit=options.refit, out=options.out, checkpoint=options.checkpoint, report=report
        )
        for name in dict.fromkeys(names)
    ]
    if not options.baselines:
        return systems, {}
    how: dict[str, Any] = {"seed": options.seed, "threads": options.threads, "refit": options.refit}
    light = LightGBM(Layout(pipeline).inputs, **how)  # before the work: it may not be installed
    features_MF: NDArray[np.float32] = rolling_features(history)
    return [*systems, light, XGBoost(features_MF, **how)], {"handbook features": rolling_seen}


def _cells(metrics: dict[str, Any]) -> list[str]:
    return [f"{metrics[name]:.{DIGITS.get(name, 3)}f}" if name in metrics else "" for name in COLUMNS]


def _day(text: str | None) -> int | None:
    return None if text is None else parse_time("--first-test", text)
