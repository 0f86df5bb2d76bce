"""Is the challenger let in? Champion and challenger on the same held-back events, through the one feature path.

Each check has a name, which is the reason of a refusal:

    overlap            it has learnt from what it would be judged by
    frauds             too few held-back frauds to compare by
    leak               an input tells the verdict by itself, which no input can at the time of the event
    features           windows it was made with are not what the feature path gives for those events: stale, or other
    average_precision  not better: the paired bootstrap, over entities, is not sure enough
    recall, precision  at the alert budget: lost more than is allowed
    segment            average precision within a value of a category or flag: lost more than is allowed, surely
    calibration        probabilities further from the rates than the champion's
    alert_rate         its threshold gives too many alerts a day, or too few
    latency            scoring takes too many times as long

A bundle that cannot be loaded (weights that are not numbers, a broken checksum, another digest) never gets here: its
BundleError has the reason. Without a champion there is nothing to be better than; the other checks hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.features.encoded import Encoded
from models.pipeline.learning import Gate
from models.policy import decide, threshold_for_budget
from models.scorer import Scorer, Scores
from training.bootstrap import paired_difference
from training.calibrate import cross_calibrated
from training.evidence import columns_of, lone_precision, unlike
from training.loop.material import HELD_BACK, Held
from training.metrics import average_precision, expected_calibration_error

__all__ = ["Case", "Check", "Decision", "judge"]

SEGMENT_FRAUDS = 20  # in a smaller segment chance decides
TIMED, ROUNDS = 512, 7


@dataclass(frozen=True, slots=True)
class Check:
    """One question put to the challenger. detail: what was found, against what was expected."""

    name: str
    ok: bool
    detail: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of all checks. reason: the name of the first that failed, None where the challenger is let in."""

    champion: str | None
    challenger: str
    checks: list[Check]

    @property
    def reason(self) -> str | None:
        return next((check.name for check in self.checks if not check.ok), None)

    @property
    def detail(self) -> str:
        """Of the reason, or of the comparison that let it in."""
        failed = [check.detail for check in self.checks if not check.ok]
        return failed[0] if failed else next(c.detail for c in self.checks if c.name == "average_precision")

    @property
    def figures(self) -> dict[str, Any]:
        return {check.name: {"ok": check.ok, "detail": check.detail, **check.figures} for check in self.checks}


@dataclass(frozen=True, slots=True)
class Case:
    """What is put before the gate.

    golden: the windows of the challenger's golden events as the feature path gives them, by id; segments: by field, the
    value of each held-back event; budget: alerts a day.
    """

    held: Held
    golden: dict[str, Encoded]
    segments: dict[str, list[str | None]]
    budget: float


def judge(champion: Scorer | None, challenger: Scorer, case: Case, gate: Gate) -> Decision:
    """Put all checks. Scores all held-back events with both."""
    scores = {s.version: s.score(case.held.part.encoded) for s in (champion, challenger) if s is not None}
    new, old = scores[challenger.version], scores[champion.version] if champion else None
    checks = [_overlap(challenger, case), _frauds(case, gate), *_evidence(challenger, case, gate)]
    checks += [_better(new, old, case, gate), *_at_budget(new, old, case, gate), *_segments(new, old, case, gate)]
    checks += [_calibration(new, old, case, gate), _alert_rate(challenger, new, case, gate)]
    checks.append(_latency(champion, challenger, case, gate))
    return Decision(champion.version if champion else None, challenger.version, checks)


def _overlap(challenger: Scorer, case: Case) -> Check:
    """Either it holds back the same entities, or what it learnt from ends before the holdout."""
    facts, plan = challenger.bundle.info.training, case.held.plan
    ends = [facts[name] for name in ("matured", "holdout_end") if name in facts]
    holds_back = facts.get(HELD_BACK.replace("-", "_")) == plan.share
    start = plan.describe()["holdout"]
    ok = holds_back or bool(ends and max(ends) <= start)
    learnt = f"it learnt from days up to {max(ends, default='an unknown one')}"
    return Check("overlap", ok, f"{learnt}: expected {plan.share:.0%} of the entities held back, or an end by {start}")


def _evidence(challenger: Scorer, case: Case, gate: Gate) -> Iterator[Check]:
    """Features and leaks: what the challenger was made with against what the feature path gives."""
    bundle, part, inputs = challenger.bundle, case.held.part, challenger.bundle.info.inputs
    ids = [str(i) for i in bundle.info.training.get("golden_events", [])][: len(bundle.golden.encoded)]
    found = [(row, case.golden[i]) for row, i in enumerate(ids) if i in case.golden]
    leaks = lone_precision(columns_of(inputs, part.encoded), part.fraud_N)
    differing: dict[str, int] = {}
    if found:
        made = bundle.golden.encoded.take(np.array([row for row, _ in found]))
        given = Encoded.concatenate([window for _, window in found])
        differing = unlike(columns_of(inputs, made), columns_of(inputs, given))
        fraud_B = np.array([bool(bundle.info.training["golden_frauds"][row]) for row, _ in found])
        told = lone_precision({n: v for n, v in columns_of(inputs, made).items() if n in differing}, fraud_B)
        leaks |= {name: value for name, value in told.items() if value > 1 - 1e-9}  # of few events: all, or chance
    worst = max(leaks, key=lambda name: leaks[name], default="")
    telling = {name: round(value, 4) for name, value in leaks.items() if value >= gate.leak}
    alone = f"{worst} alone has average precision {leaks.get(worst, 0):.3f}"
    yield Check("leak", not telling, f"{alone}: expected less than {gate.leak:g} of any input", {"telling": telling})
    detail = f"{len(found)} of {len(ids)} golden events are in the history: expected at least one"
    if differing:
        named = ", ".join(list(differing)[:3])
        detail = (
            f"{len(differing)} of its inputs ({named}) are not what the feature path gives for its {len(found)} golden "
            "events: expected the same to the bit"
        )
    figures = {"compared": len(found), "differing": differing}
    yield Check("features", bool(found) and not differing, detail, figures)


def _frauds(case: Case, gate: Gate) -> Check:
    count = int(case.held.part.fraud_N.sum())
    return Check("frauds", count >= gate.frauds, f"{count} held-back frauds: expected at least {gate.frauds}",
                 {"frauds": count, "events": len(case.held)})  # fmt: skip


def _better(new: Scores, old: Scores | None, case: Case, gate: Gate) -> Check:
    part = case.held.part
    own = average_precision(part.fraud_N, new.score_B)
    if old is None:
        return Check("average_precision", own > 2 * part.fraud_N.mean(), f"{own:.4f}, and no champion to compare with: "
                     "expected more than twice the share of frauds", {"challenger": own})  # fmt: skip
    found = paired_difference(part.fraud_N, old.score_B, new.score_B, part.entity)
    figures = {"champion": average_precision(part.fraud_N, old.score_B), "challenger": own, "low": found.interval.low,
               "high": found.interval.high, "surely": found.above}  # fmt: skip
    detail = (
        f"{figures['champion']:.4f} → {own:.4f}, the difference between {found.interval.low:+.4f} and "
        f"{found.interval.high:+.4f}, above zero in {found.above:.1%} of the draws: expected {gate.confidence:.0%}"
    )
    return Check("average_precision", found.above >= gate.confidence, detail, figures)


def _at_budget(new: Scores, old: Scores | None, case: Case, gate: Gate) -> Iterator[Check]:
    part, days = case.held.part, case.held.plan.days
    figures = [_budget_figures(s, part.fraud_N, days, case.budget) for s in (new, old) if s is not None]
    for number, name in enumerate(("recall", "precision")):
        own = figures[0][number]
        if old is None:
            yield Check(name, True, f"{own:.3f} at {case.budget:g} alerts a day", {"challenger": own})
            continue
        was = figures[1][number]
        detail = f"{was:.3f} → {own:.3f} at {case.budget:g} alerts a day: expected to lose at most {gate.loss:g}"
        yield Check(name, own >= was - gate.loss, detail, {"champion": was, "challenger": own})


def _budget_figures(scores: Scores, fraud_N: NDArray[np.bool_], days: float, budget: float) -> tuple[float, float]:
    """Recall and precision where the threshold meets the budget on these very events."""
    alert_N = decide(scores.score_B, threshold_for_budget(scores.score_B, days, budget))
    hits = int((alert_N & fraud_N).sum())
    return hits / max(int(fraud_N.sum()), 1), hits / max(int(alert_N.sum()), 1)


def _segments(new: Scores, old: Scores | None, case: Case, gate: Gate) -> Iterator[Check]:
    """The worst segment speaks for all."""
    if old is None:
        return
    part = case.held.part
    figures: dict[str, Any] = {}
    lost: list[tuple[float, str]] = []
    for name, values in case.segments.items():
        array = np.array(values, dtype=object)
        for value in sorted({v for v in values if v is not None}):
            inside = array == value
            if int(part.fraud_N[inside].sum()) < SEGMENT_FRAUDS:
                continue
            entity = [e for e, kept in zip(part.entity, inside.tolist(), strict=True) if kept]
            found = paired_difference(part.fraud_N[inside], old.score_B[inside], new.score_B[inside], entity)
            figures[f"{name}={value}"] = found.interval.value
            if found.interval.value < -gate.segment_loss and found.interval.high < 0:
                lost.append((found.interval.value, f"{name}={value}"))
    detail = f"{len(figures)} segments with {SEGMENT_FRAUDS} frauds"
    if lost:
        detail = (
            f"{min(lost)[1]}: average precision {min(lost)[0]:+.3f}: expected to lose at most {gate.segment_loss:g}"
        )
    yield Check("segment", not lost, detail, {"differences": figures})


def _calibration(new: Scores, old: Scores | None, case: Case, gate: Gate) -> Check:
    """The challenger's curve may have been fitted on these events: its scores are calibrated crosswise for this."""
    fraud_N = case.held.part.fraud_N
    own = expected_calibration_error(fraud_N, cross_calibrated(new.score_B, fraud_N))
    stored = expected_calibration_error(fraud_N, new.probability_B)
    was = own if old is None else expected_calibration_error(fraud_N, cross_calibrated(old.score_B, fraud_N))
    worst = max(own, stored)
    detail = f"error {worst:.5f}, the champion's {was:.5f}: expected at most {gate.calibration:g} more"
    figures = {"champion": was, "challenger": own, "stored": stored}
    return Check("calibration", worst <= was + gate.calibration, detail, figures)


def _alert_rate(challenger: Scorer, new: Scores, case: Case, gate: Gate) -> Check:
    rate = float(decide(new.score_B, challenger.threshold).sum()) / case.held.plan.days
    low, high = case.budget / gate.alert_rate, case.budget * gate.alert_rate
    few = len(case.held) / case.held.plan.days <= low  # a stream smaller than its budget
    detail = f"{rate:.1f} alerts a day at its threshold: expected from {low:g} to {high:g}"
    return Check("alert_rate", rate <= high and (rate >= low or few), detail, {"alerts_per_day": rate})


def _latency(champion: Scorer | None, challenger: Scorer, case: Case, gate: Gate) -> Check:
    """The least of several rounds, in turns: what else the machine does disturbs both alike."""
    windows = case.held.part.encoded.take(slice(0, TIMED))
    scorers = [s for s in (challenger, champion) if s is not None]
    least = dict.fromkeys((s.version for s in scorers), np.inf)
    for _ in range(ROUNDS):
        for scorer in scorers:
            began = time.perf_counter()
            scorer.score(windows)
            least[scorer.version] = min(least[scorer.version], (time.perf_counter() - began) / len(windows))
    own, was = least[challenger.version] * 1e6, least[champion.version if champion else challenger.version] * 1e6
    detail = f"{own:.1f} µs an event, the champion's {was:.1f}: expected at most {gate.latency:g} times as many"
    return Check("latency", own <= gate.latency * was, detail, {"champion_us": was, "challenger_us": own})
