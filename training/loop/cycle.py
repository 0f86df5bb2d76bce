"""One turn of the loop: replay, fine-tune, calibrate, gate, publish, promote.

What is repeated and what is left behind if the process dies on each line of `turn`:

    1 replay, fine-tune, calibrate   repeated; a half-written bundle has a hidden name and is removed by the next turn
    2 the gate                       repeated, with the same outcome: everything is seeded
    3 the decision is written        after it nothing is trained again; a challenger that was let in and is not in the
                                     registry yet is trained anew by the next turn
    4 publish                        one rename: the version is there or is not. Published and not promoted, it waits
    5 promote                        one change of the registry; the workers look at it whether they are told or not

A model that is not let in is published, too: a decision can be looked into, and the bundle put before the gate again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_bundle
from models.clock import to_iso
from models.engines import EngineName
from models.errors import BundleError
from models.pipeline.spec import BooleanField, CategoryField, Pipeline
from models.scorer import Scorer, load_scorer
from training.finetune import Start, new_detector, write_trained
from training.fit import Recipe, refit, score
from training.loop.gate import Case, Check, Decision, judge
from training.loop.material import Held, Material, gather, make_plan
from training.source import Source

__all__ = ["Outcome", "Turn", "described", "gate_bundle", "train_challenger"]

FIRST_EPOCHS = 6  # without a champion to start from
# of the weights' average: a fine-tuning takes few steps, and an average over more than those stays where it began
AVERAGE, FIRST_AVERAGE = 0.99, 0.998
BATCH = 512

# report(stage, done, total, note), as of `finetune`; stages are "replay", "train" and "gate"
Report = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a turn came to. seconds: of each stage."""

    decision: Decision
    bundle: Path | None
    seconds: dict[str, float]

    @property
    def passed(self) -> bool:
        return self.decision.reason is None


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn is given. champion: the folder of its bundle; end_ms: the loop's now; work: a folder for bundles on
    their way."""

    pipeline: Pipeline
    champion: Path | None
    end_ms: int
    work: Path
    threads: int = 2
    engine: EngineName = "auto"
    seed: int = 0

    def run(self, history: Source, report: Report | None = None) -> Outcome:
        """Train a challenger and put it before the gate. Raises TrainingError with too little to learn from."""
        tell = report or (lambda *_: None)
        began = time.monotonic()
        plan = make_plan(self.pipeline, history.first_event_ms(), self.end_ms)
        material, _ = gather(history, plan, report=lambda done, total: tell("replay", done, total, ""))
        replayed = time.monotonic()
        bundle = train_challenger(self, material, tell)
        trained = time.monotonic()
        tell("gate", 0, 1, "")
        decision = self._gate(history, bundle, material.held)
        tell("gate", 1, 1, decision.reason or "let in")
        seconds = {"replay": replayed - began, "train": trained - replayed, "gate": time.monotonic() - trained}
        return Outcome(decision, bundle.folder, {name: round(s, 1) for name, s in seconds.items()})

    def _gate(self, history: Source, bundle: Bundle, held: Held) -> Decision:
        windows = dict(zip(held.part.event_id or (), range(len(held)), strict=True))
        ids = bundle.info.training["golden_events"]
        golden = {i: held.part.encoded.take(slice(windows[i], windows[i] + 1)) for i in ids}
        case = Case(held, golden, _segments(history, held), self.pipeline.policy.alerts_per_day)
        challenger = load_scorer(bundle.folder, self.pipeline, self.engine)
        return judge(self.scorer_of(self.champion), challenger, case, self.pipeline.learning.gate)

    def scorer_of(self, folder: Path | None) -> Scorer | None:
        """Runs the bundle in a folder as a worker would."""
        return None if folder is None else load_scorer(folder, self.pipeline, self.engine)


def train_challenger(turn: Turn, material: Material, report: Report) -> Bundle:
    """Fine-tune the champion, or train a first model, and write its bundle below the turn's folder."""
    learning, pipeline = turn.pipeline.learning, turn.pipeline
    first = turn.champion is None
    epochs = max(learning.epochs, FIRST_EPOCHS) if first else learning.epochs
    recipe = Recipe(
        epochs=epochs, batch=BATCH, learning_rate=learning.learning_rate, seed=turn.seed, threads=turn.threads,
        average=FIRST_AVERAGE if first else AVERAGE, max_legit=learning.events,
    )  # fmt: skip
    began = time.monotonic()
    detector, origin = new_detector(pipeline, material.train, turn.seed, Start(turn.champion))
    fitted = refit(detector, material.train, recipe, epochs, lambda done, note: report("train", done, epochs, note))
    held = material.held
    score_N = score(detector, held.part.encoded)
    facts: dict[str, Any] = {
        **material.plan.describe(), **origin, "events": len(material.train),
        "frauds": int(material.train.fraud_N.sum()), "legit_share": material.train.legit_share, "loss": fitted.loss,
        **asdict(recipe), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    folder = turn.work / f"challenger-{turn.end_ms}"
    shutil.rmtree(folder, ignore_errors=True)  # of a turn that died
    folder.parent.mkdir(parents=True, exist_ok=True)
    return write_trained(folder, pipeline, detector, held.part, score_N, material.plan.days, facts)


def gate_bundle(turn: Turn, folder: Path, history: Source, report: Report | None = None) -> Decision:
    """Put a bundle that was made elsewhere before the gate. One that cannot be loaded is refused for that reason."""
    tell = report or (lambda *_: None)
    try:
        bundle = load_bundle(folder, turn.pipeline)
        challenger = load_scorer(folder, turn.pipeline, turn.engine)
    except BundleError as error:
        champion = None if turn.champion is None else load_bundle(turn.champion, turn.pipeline).version
        return Decision(champion, folder.name, [Check(error.reason, False, error.detail)])
    plan = make_plan(turn.pipeline, history.first_event_ms(), turn.end_ms)
    ids = frozenset(map(str, bundle.info.training.get("golden_events", [])))
    material, golden = gather(history, plan, also=ids, report=lambda done, total: tell("replay", done, total, ""))
    case = Case(
        material.held, golden, _segments(history, material.held), turn.pipeline.policy.alerts_per_day
    )  # fmt: skip
    return judge(turn.scorer_of(turn.champion), challenger, case, turn.pipeline.learning.gate)


def _segments(history: Source, held: Held) -> dict[str, list[str | None]]:
    """Values of the fields that have few: categories and flags."""
    fields = history.pipeline.of_type(CategoryField) + history.pipeline.of_type(BooleanField)
    stream, ids = history.pipeline.pipeline, held.part.event_id or []
    if not fields:
        return {}
    values: dict[str, tuple[Any, ...]] = {}
    wanted = set(ids)
    for block in history.blocks("events", held.plan.holdout_ms, columns=[stream.event_id, *fields]):
        rows = zip(*(block.table[name].to_pylist() for name in (stream.event_id, *fields)), strict=True)
        values |= {event_id: row for event_id, *row in rows if event_id in wanted}
    return {name: [_text(values[i][n]) for i in ids] for n, name in enumerate(fields)}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def described(decision: Decision, why: str, end_ms: int) -> dict[str, Any]:
    """What is kept of a decision: JSON values."""
    return {
        "at": to_iso(end_ms), "why": why, "champion": decision.champion, "challenger": decision.challenger,
        "passed": decision.reason is None, "reason": decision.reason, "detail": decision.detail,
        "checks": decision.figures,
    }  # fmt: skip
