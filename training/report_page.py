"""The page itself: figures drawn, tables laid out, everything escaped by the template."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import jinja2
import msgspec
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from models.bundle import BundleInfo
from models.clock import to_iso
from models.pipeline.spec import NumberField, Pipeline
from models.policy import decide
from training import report_plots as plots
from training.bootstrap import Interval
from training.deletion import Deletion, verdict
from training.drift import LARGE, SOME, Drift
from training.evaluate import Scored
from training.importance import Importance
from training.metrics import CARDS, average_precision, reliability
from training.report_facts import Money, Segment, days_of, precision_recall

if TYPE_CHECKING:
    from training.report import Options

__all__ = ["render"]

DASH = "–"
TOP_GROUPS, WORST = 15, 10
PACKAGES = ("lepton", "numpy", "numba", "torch", "scikit-learn")
CELL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline figure: what machines read, what people read, and a word on it."""

    label: str
    key: str
    value: float
    shown: str
    note: str = ""


def render(
    *,
    info: BundleInfo,
    pipeline: Pipeline,
    scored: Scored,
    tested_N: NDArray[np.bool_],
    threshold: float,
    facts: dict[str, Any],
    money: Money | None,
    amount: str | None,
    days: float,
    folds: list[Segment],
    segments: list[tuple[str, list[Segment]]],
    importance: tuple[float, list[Importance]],
    deletion: Deletion,
    deletion_of: str,
    drift: list[Drift],
    reference: tuple[int, int],
    reference_note: str,
    notes: list[str],
    options: Options,
    engine: tuple[str, str],
    made_ms: int,
) -> str:
    """The page as text. facts: as of `training.report.Report`; the rest as the modules that made it describe it."""
    budget, part = pipeline.policy.alerts_per_day, scored.take(tested_N)
    bins = reliability(part.fraud_N, part.probability_N)
    overall = average_precision(part.fraud_N, part.score_N)
    alert_N = decide(scored.score_N, threshold)
    share = float(part.fraud_N.mean()) if len(part) else float("nan")
    figures = {
        "precision_recall": (plots.precision_recall_plot(precision_recall(part.fraud_N, part.score_N, threshold), share)
                             if part.fraud_N.any() else None),
        "histogram": plots.histogram(part.score_N, part.fraud_N, threshold),
        "reliability": plots.reliability_plot(bins) if bins else None,
        "folds": plots.intervals_plot(folds, facts["average_precision"], "mean of the folds") if folds[1:] else None,
        "alerts": plots.alerts_plot(days_of(scored.time_N, alert_N, scored.fraud_N), budget),
        "money": plots.money_plot(money, budget) if money is not None and money.total > 0 else None,
        "importance": plots.importance_plot(importance[1][:TOP_GROUPS]) if importance[1] else None,
        "deletion": plots.deletion_plot(deletion),
    }  # fmt: skip
    faithful, sentence = verdict(deletion)
    field = pipeline.fields.get(amount or "")
    unit = field.unit if isinstance(field, NumberField) else ""
    return _environment().get_template("report.html").render(
        title=f"{info.pipeline} {info.version}", info=info, pipeline=pipeline, made=_minute(made_ms), options=options,
        start=_minute(options.start_ms), end=_minute(options.end_ms), notes=notes, days=days, budget=budget,
        tiles=_tiles(facts, money, amount, unit, budget), facts=facts, overall=overall, scored=scored, part=part,
        figures={name: _drawn(figure, name) for name, figure in figures.items()}, folds=folds, money=money,
        bins=bins,
        amount=amount, unit=unit, threshold=threshold,
        segments=[(n, found, _drawn(plots.intervals_plot(found, overall, "all events"), f"segment-{n}"))
                  for n, found in segments if found],
        importance=importance[1], importance_ap=importance[0], importance_shown=TOP_GROUPS,
        deletion=deletion, deletion_of=deletion_of, faithful=faithful, verdict=sentence,
        drift=drift, drift_some=SOME, drift_large=LARGE, reference=[*(_minute(ms) for ms in reference), reference_note],
        drift_figures=[(d, _drawn(plots.drift_plot(d), f"drift-{i}")) for i, d in enumerate(drift[:WORST])],
        theme=plots.THEME, versions=_versions(engine), measured=_rows(info.metrics), training=_rows(info.training),
        model=_model(info),
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "number": _number, "percent": _percent, "interval": _interval, "clean": lambda t: plots.clean(t, 80),
    }  # fmt: skip
    return environment


def _drawn(figure: Figure | None, name: str) -> Markup | None:
    return None if figure is None else plots.svg(figure, name, name.replace("_", " ").replace("-", " "))


def _tiles(
    facts: dict[str, Any], money: Money | None, amount: str | None, unit: str, budget: float
) -> list[Tile]:  # fmt: skip
    cards = f"card_precision_at_{CARDS}"
    tiles = [
        Tile("average precision", "average_precision", facts["average_precision"], _number(facts["average_precision"]),
             f"{facts['frauds']:,} frauds in {facts['events']:,} events"),
        Tile("ROC AUC", "roc_auc", facts["roc_auc"], _number(facts["roc_auc"])),
        Tile(f"card precision at {CARDS}", cards, facts[cards], _number(facts[cards]),
             f"of the {CARDS} most suspicious entities of a day"),
        Tile("expected calibration error", "expected_calibration_error", facts["expected_calibration_error"],
             _number(facts["expected_calibration_error"], 4)),
        Tile("alerts a day", "alerts_per_day", facts["alerts_per_day"], f"{facts['alerts_per_day']:.1f}",
             f"budget {budget:g}"),
        Tile("alerts that are frauds", "alert_precision", facts["alert_precision"], _percent(facts["alert_precision"]),
             f"{_percent(facts['alert_recall'])} of all frauds"),
    ]  # fmt: skip
    if money is not None:
        for label, key, caught in (("caught at the threshold", "money_caught", money.caught),
                                   ("caught at the budget", "money_caught_at_budget", money.at_budget)):  # fmt: skip
            value = money.share(caught)
            note = f"{caught:,.0f} of {money.total:,.0f} {unit or amount} lost to fraud"
            tiles.append(Tile(label, key, value, _percent(value), note))
    return tiles


def _model(info: BundleInfo) -> list[tuple[str, str]]:
    inputs = info.inputs
    verdicts = f"; {inputs.verdict_length} verdicts of {', '.join(inputs.verdicts)}" if inputs.verdicts else ""
    return [
        ("pipeline", info.pipeline), ("version", info.version), ("made", info.created_at),
        ("pipeline digest", info.digest), ("architecture", info.architecture),
        ("width", f"{info.hidden}, of categories {info.embedding}"),
        ("reads", f"{inputs.length} events of {len(inputs.x)} numbers and {len(inputs.codes)} categories; "
                  f"{len(inputs.context)} context features{verdicts}"),
        ("threshold", f"{info.threshold:.6g}"),
        ("calibration", f"a curve of {len(info.calibration.scores)} knots"),
    ]  # fmt: skip


def _versions(engine: tuple[str, str]) -> list[tuple[str, str]]:
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return [*found, ("engine", f"{engine[0]}, {engine[1]}")]


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """A bundle's facts, which may be nested, as a table of two columns."""
    return [(name, _cell(value)) for name, value in values.items()]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else DASH
    if isinstance(value, list) and all(isinstance(v, int | float) for v in value):
        return ", ".join(f"{v:.4g}" for v in value)
    if isinstance(value, list | dict):
        value = msgspec.json.encode(value).decode()
    return plots.clean(DASH if value is None else value, CELL_CHARS)


def _minute(ms: int) -> str:
    return to_iso(ms)[:16].replace("T", " ")


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def _percent(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else DASH


def _interval(interval: Interval, digits: int = 3) -> str:
    if not math.isfinite(interval.low):
        return DASH
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"
