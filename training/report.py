"""One page about a model on a range of days, for an analyst and for whoever decides whether it goes live.

`make_report` replays the history once, computes every figure and renders the page; docs/reports.md says how to read
it. Everything drawn at random is seeded: the same history, bundle and options give the same page but for its date.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleInfo
from models.clock import DAY_MS, from_iso, to_iso
from models.engines import EngineName
from models.features.encoded import Encoded
from models.pipeline.spec import BooleanField, CategoryField, EntityField, NumberField, Pipeline
from models.policy import decide, threshold_for_budget
from models.scorer import Scorer, load_scorer
from models.weights import Scaling
from training.archive import Archive
from training.bootstrap import ap_interval
from training.deletion import Deletion, deletion_test, named_groups
from training.drift import Drift, drift
from training.errors import TrainingError
from training.evaluate import Scored, measure, tested
from training.importance import Importance, importance
from training.replay import History, load_history
from training.report_data import Gathered, field_values, gather, seen_before
from training.report_facts import Money, Segment, by_deciles, by_values, money_curve, segments
from training.report_page import render

__all__ = ["Options", "Report", "make_report", "write_report"]

CALL = 1024  # windows that are scored at a time: bounds memory
ENOUGH_ALERTS = 20  # for a deletion test; with fewer, the highest scores stand for them
CATEGORIES = 3  # that get segments when none are asked for
SEGMENTED = NumberField | CategoryField | BooleanField | EntityField

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to report on. start_ms, end_ms: event times from and before which, epoch ms.

    folds, known_ms: as of `training.evaluate.measure`. segments: fields; None for the entity (new or known), the
    amount, and the first categories. amount: the number field that says what a fraud costs; None for the one that
    profiles sum, or one called "amount". command: as it was typed, for the page's foot.
    """

    start_ms: int
    end_ms: int
    folds: int = 1
    known_ms: int | None = None
    segments: tuple[str, ...] | None = None
    amount: str | None = None
    command: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """html: the page. facts: its headline, as JSON values; of ranking those of `training.evaluate.measure`."""

    html: str
    facts: dict[str, Any]


def make_report(history: History, scorer: Scorer, options: Options, progress: Progress | None = None) -> Report:
    """Replay, measure and render. Raises TrainingError: no event in the range, or a field that cannot be used."""
    tell = progress or (lambda *_: None)
    pipeline, info, seed = history.pipeline, scorer.bundle.info, options.seed
    amount = _amount_field(pipeline, options.amount)
    fields = _segment_fields(pipeline, options.segments, amount)
    reference, reference_note = _reference(info, history, options.start_ms)
    data = gather(
        history, scorer, options.start_ms, options.end_ms, reference, seed=seed,
        report=lambda done, total: tell("replay", done, total),
    )  # fmt: skip
    scored = data.scored
    masks = tested(scored, history, options.start_ms, options.end_ms, folds=options.folds, known_ms=options.known_ms)
    measured = measure(
        scored, history, options.start_ms, options.end_ms, folds=options.folds, known_ms=options.known_ms
    )
    tested_N = np.logical_or.reduce(masks)
    days = _covered_days(history, options)
    facts = measured | _alerts(scored, scorer.threshold, days)
    money = _money(history, scorer, scored, amount, days)
    if money is not None:
        facts |= {
            "money": money.total, "money_caught": money.share(money.caught),
            "money_caught_at_budget": money.share(money.at_budget),
        }  # fmt: skip
    folds = [_fold(f"fold {n}", scored.take(mask_N), seed) for n, mask_N in enumerate(masks, start=1)]
    by_field = [(name, _segmented(history, scored, tested_N, name, options)) for name in fields]

    def score(encoded: Encoded) -> NDArray[np.float32]:
        parts = [scorer.score(encoded.take(slice(i, i + CALL))).score_B for i in range(0, len(encoded), CALL)]
        return np.concatenate(parts)

    tell("explain", 0, 3)
    whole, important = _importance(score, scorer, data, seed)
    tell("explain", 1, 3)
    deletion, what = _deletion(score, scorer, data, pipeline.policy.reasons, seed)
    tell("explain", 2, 3)
    drifted = _drift(scorer, data)
    tell("explain", 3, 3)
    html = render(
        info=info, pipeline=pipeline, scored=scored, tested_N=tested_N, threshold=scorer.threshold, facts=facts,
        money=money, amount=amount, days=days, importance=(whole, important), deletion=deletion, deletion_of=what,
        drift=drifted, reference=reference, reference_note=reference_note,
        notes=_notes(history, info, options, scored), options=options, engine=(scorer.engine, scorer.precision),
        made_ms=int(time.time() * 1000), folds=folds, segments=by_field,
    )  # fmt: skip
    return Report(html, facts)


def write_report(
    out: Path, pipeline: Pipeline, history_root: Path, bundle: Path, options: Options, engine: EngineName = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the page about a bundle's folder to `out` and return its headline. Raises as what it calls does."""
    scorer = load_scorer(bundle, pipeline, engine)
    report = make_report(load_history(Archive(history_root, pipeline)), scorer, options, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(report.html, encoding="utf-8")
    return {"version": scorer.version, "engine": scorer.engine, **report.facts}


def _alerts(scored: Scored, threshold: float, days: float) -> dict[str, Any]:
    alert_N = decide(scored.score_N, threshold)
    alerts, hits, frauds = int(alert_N.sum()), int((alert_N & scored.fraud_N).sum()), int(scored.fraud_N.sum())
    return {
        "alerts": alerts, "alerts_per_day": alerts / days,
        "alert_precision": hits / alerts if alerts else float("nan"),
        "alert_recall": hits / frauds if frauds else float("nan"),
    }  # fmt: skip


def _money(history: History, scorer: Scorer, scored: Scored, amount: str | None, days: float) -> Money | None:
    if amount is None:
        return None
    values = field_values(history, scored.event_id, scored.time_N, amount)
    amount_N = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    at_budget = threshold_for_budget(scored.score_N, days, history.pipeline.policy.alerts_per_day)
    return money_curve(amount_N, scored.fraud_N, scored.score_N, scorer.threshold, at_budget, days)


def _fold(name: str, fold: Scored, seed: int) -> Segment:
    ap = ap_interval(fold.fraud_N, fold.score_N, fold.entity, seed=seed)
    return Segment(name, len(fold), int(fold.fraud_N.sum()), ap)


def _segmented(
    history: History, scored: Scored, tested_N: NDArray[np.bool_], name: str, options: Options
) -> list[Segment]:
    """Of the events that ranking is measured on."""
    pipeline, part = history.pipeline, scored.take(tested_N)
    if len(part) == 0:
        return []
    if name == pipeline.entity:
        names, place_N = ["new", "known before"], seen_before(history, part, options.start_ms).astype(np.int64)
    elif isinstance(pipeline.fields[name], NumberField):
        values = field_values(history, part.event_id, part.time_N, name)
        names, place_N = by_deciles(np.array([np.nan if v is None else v for v in values], dtype=np.float64))
    else:
        names, place_N = by_values(field_values(history, part.event_id, part.time_N, name))
    return segments(names, place_N, part.fraud_N, part.score_N, part.entity, seed=options.seed)


def _importance(
    score: Callable[[Encoded], NDArray[np.float32]], scorer: Scorer, data: Gathered, seed: int
) -> tuple[float, list[Importance]]:
    """Nothing without a fraud: there is no average precision that could fall."""
    if data.frauds is None or data.legit is None:
        return float("nan"), []
    sides, counts = (data.frauds, data.legit), (int(data.scored.fraud_N.sum()), int((~data.scored.fraud_N).sum()))
    weight_B = np.concatenate([np.full(len(w), n / len(w)) for w, n in zip(sides, counts, strict=True)])
    fraud_B = np.repeat([True, False], [len(w) for w in sides])
    encoded = Encoded.concatenate([w.encoded for w in sides])
    return importance(score, scorer.bundle.info.inputs, encoded, fraud_B, weight_B, seed=seed)


def _deletion(
    score: Callable[[Encoded], NDArray[np.float32]], scorer: Scorer, data: Gathered, reasons: int, seed: int
) -> tuple[Deletion, str]:
    windows, what = data.alerts, "alerts"
    if windows is None or len(windows) < ENOUGH_ALERTS:
        windows, what = data.highest, "events of the highest scores"
    assert windows is not None  # there is an event, so one has the highest score
    inputs, entity = scorer.bundle.info.inputs, [data.scored.entity[i] for i in windows.row_B.tolist()]
    named = named_groups(inputs, scorer.explain(windows.encoded, reasons))
    scaling = Scaling.of(scorer.bundle.weights)
    return deletion_test(score, inputs, scaling, windows.encoded, named, entity, seed=seed), what


def _drift(scorer: Scorer, data: Gathered) -> list[Drift]:
    if data.reference is None or data.now is None:
        return []
    return drift(scorer.bundle.info.inputs, data.reference.encoded, data.now.encoded)


def _reference(info: BundleInfo, history: History, start_ms: int) -> tuple[tuple[int, int], str]:
    """From when to when the events lie that the range's are compared with, and what they are."""
    try:
        return (from_iso(info.training["train_start"]), from_iso(info.training["train_end"])), "the training range"
    except (KeyError, TypeError, ValueError):
        first = int(history.event_time_M.min())
        return (first, max(first, start_ms)), "all days before the range, as the bundle names no training range"


def _covered_days(history: History, options: Options) -> float:
    """Length of the range as far as the history reaches."""
    times = history.event_time_M
    first, last = max(options.start_ms, int(times.min())), min(options.end_ms, int(times.max()) + 1)
    return max(last - first, 1) / DAY_MS


def _amount_field(pipeline: Pipeline, wanted: str | None) -> str | None:
    numbers = pipeline.of_type(NumberField)
    if wanted is not None:
        if wanted not in numbers:
            raise TrainingError(f"amount {wanted!r}: expected a number field: {', '.join(numbers) or 'there is none'}")
        return wanted
    summed = [p.amount for p in pipeline.profiles.values() if p.amount is not None]
    return next(iter([*summed, *(n for n in numbers if n == "amount")]), None)


def _segment_fields(pipeline: Pipeline, wanted: Sequence[str] | None, amount: str | None) -> list[str]:
    possible = [name for name, field in pipeline.fields.items() if isinstance(field, SEGMENTED)]
    if wanted is None:
        return [pipeline.entity, *([amount] if amount else []), *pipeline.of_type(CategoryField)[:CATEGORIES]]
    for name in wanted:
        if name not in possible:
            raise TrainingError(f"segment {name!r}: expected one of {', '.join(possible)}")
    return list(dict.fromkeys(wanted))


def _notes(history: History, info: BundleInfo, options: Options, scored: Scored) -> list[str]:
    """What a reader has to know before believing the figures."""
    notes = []
    try:
        seen = [(from_iso(info.training[f"{a}_start"]), from_iso(info.training[f"{b}_end"])) for a, b in
                (("train", "train"), ("validation", "holdout"))]  # fmt: skip
    except (KeyError, TypeError, ValueError):
        notes.append("The bundle does not say which days it was trained on: the range may be among them.")
    else:
        used = np.zeros(len(scored), dtype=bool)
        for low, high in seen:
            used |= (scored.time_N >= low) & (scored.time_N < high)
        if used.any():
            notes.append(f"{used.mean():.0%} of these events lie in days that the model was trained, chosen or "
                         "calibrated on: the figures flatter it.")  # fmt: skip
    latest = int(history.label_clock_M.max()) if len(history.label_clock_M) else None
    maturity_ms = history.pipeline.labels.maturity_ms
    last = int(scored.time_N.max())
    if latest is None:
        notes.append("The history holds no verdict: every event counts as legitimate.")
    elif last + maturity_ms > latest:
        notes.append(f"The newest verdict is of {to_iso(latest)[:10]}, and verdicts mature in "
                     f"{history.pipeline.labels.maturity}: frauds of the last days may not be known yet.")  # fmt: skip
    if not scored.fraud_N.any():
        notes.append("No event of the range is known as fraud: what needs one is shown as a dash.")
    if options.known_ms is not None:
        notes.append("Ranking, calibration, folds and segments leave out entities whose fraud was known before; "
                     "alerts, money, importance and drift are of all events.")  # fmt: skip
    return notes
