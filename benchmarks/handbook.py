"""The published handbook data through the whole house: train, stream, and compare with an offline replay.

A file of card transactions is imported, a detector is trained on what was known when the evaluated days began, and
a worker scores a long stretch of the file, streamed in event time through a broker, labels a week late. Then a
history is collected from the topics, replayed offline, and the evaluated days are measured from both: the scores
the worker published, and those of the replay. They must agree, and every event must have exactly one score.

The stream starts with nothing remembered, weeks before the evaluated days, and goes on after them until their last
label has arrived: only then is there a truth to measure against.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from benchmarks.harness import Report, Worker, command, environment_of, expect, progress, read_topic
from models.clock import duration_ms, from_iso, to_iso
from models.errors import LeptonError
from models.messages import decode_score
from models.pipeline import load_pipeline
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.settings import Settings, load_settings

__all__ = ["handbook"]

PIPELINE = "handbook"
VERDICT, DELAY = "is_fraud", "7d"
METRICS = {"average_precision": "AP", "roc_auc": "AUC ROC", "card_precision_at_100": "CP@100"}
AGREE = 0.0005  # three decimals
PATIENCE_S = 120


@dataclass(frozen=True, slots=True)
class Plan:
    """What is streamed and what is measured; ISO-8601 dates."""

    data: Path
    start: str
    evaluate: str
    end: str
    epochs: int
    bundle: Path | None

    @property
    def stream_end(self) -> str:
        """When the last evaluated event has its label."""
        return to_iso(from_iso(self.end) + duration_ms(DELAY))


def handbook(
    data: Path,
    *,
    start: str = "2018-06-25",
    evaluate: str = "2018-08-08",
    end: str = "2018-08-15",
    epochs: int = 8,
    bundle: Path | None = None,
    minimum: int = 300_000,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Train on the handbook's transactions, stream them through a worker, compare online with offline.

    Parameters
    ----------
    data
        Parquet or CSV with the columns transaction_id, timestamp, customer_id, terminal_id, amount, is_fraud.
    start
        The first day that is streamed.
    evaluate
        The first day that is measured; training ends here.
    end
        The first day that is no longer measured. The stream goes on until its labels are in.
    epochs
        Of training.
    bundle
        A bundle trained earlier, instead of training one.
    minimum
        Fewer events than this in the stream are an error.
    as_json
        Print JSON.
    """
    plan = Plan(data.resolve(), start, evaluate, end, epochs, bundle and bundle.resolve())
    report = Report("handbook: online and offline")
    with tempfile.TemporaryDirectory(prefix="lepton-handbook-") as name, LocalServices(Path(name) / "local") as local:
        folder = Path(name)
        settings = load_settings(
            kafka_brokers=local.kafka_brokers, redis_port=local.redis_port, pipeline=PIPELINE, http_port=0,
            registry=folder / "registry", session_timeout_s=6, log_level="WARNING",
        )  # fmt: skip
        ensure_topics(settings, load_pipeline(settings.pipeline))
        run = _Run(plan, folder, settings, report)
        run.train()
        run.stream(minimum)
        agree = run.compare()
    report.print(as_json)
    if not agree:
        raise LeptonError("online and offline do not agree to three decimals, or an event has not exactly one score")


class _Run:
    def __init__(self, plan: Plan, folder: Path, settings: Settings, report: Report) -> None:
        self.plan, self.folder, self.settings, self.report = plan, folder, settings, report
        self.environment = environment_of(settings)
        self.bundle = plan.bundle or folder / "bundle"
        self.streamed = 0

    def train(self) -> None:
        """Import the file and train as of the first evaluated day; publish and promote."""
        if self.plan.bundle is None:
            began = time.monotonic()
            imported = self._training(
                "history", "--out", self.folder / "past", "--from-file", self.plan.data, "--labels", VERDICT,
                "--label-delay", DELAY,
            )  # fmt: skip
            progress(f"imported {imported['events']:,} events in {time.monotonic() - began:.0f} s; training …")
            # labels that arrive from `evaluate` on, and events after it, are cut off by --end
            trained = self._training(
                "finetune", "--history", self.folder / "past", "--out", self.bundle, "--end", self.plan.evaluate,
                "--epochs", self.plan.epochs,
            )  # fmt: skip
            self.report.add("training, replay included", trained["seconds"], "s")
            self.report.add("AP on the held-back days", trained["average_precision"])
            progress(f"trained in {trained['seconds']:.0f} s: AP {trained['average_precision']:.3f} on held-back days")
        published = self._training("publish", self.bundle)
        self._training("promote", published["version"], "--why", "benchmark")
        self.report.add("model", published["version"])

    def stream(self, minimum: int) -> None:
        """Play the file onto the topics in event time, followed by the worker."""
        with Worker.running(self.environment, self.folder / "worker.log") as worker:
            progress(f"streaming {self.plan.start} to {self.plan.stream_end} …")
            before_s = worker.cpu_s()
            said = command(
                self.environment, "stream", "replay", self.plan.data, "--labels", VERDICT, "--label-delay", DELAY,
                "--start", self.plan.start, "--end", self.plan.stream_end, "--follow", "--wait",
                "--patience", PATIENCE_S,
            )  # fmt: skip
            progress(said.strip())
            self.streamed = int(said.split()[1])
            cpu_s = worker.cpu_s() - before_s
            self.report.add("events streamed", self.streamed)
            self.report.add("labels streamed", int(said.split("and ")[1].split()[0]))
            self.report.add("CPU of the worker", cpu_s / max(self.streamed, 1) * 1e6, "µs an event")
            self.report.add("memory of the worker", worker.memory_mib(), "MiB")
        expect(self.streamed >= minimum, f"{self.streamed} events streamed: expected at least {minimum}")
        self._count_scores()

    def _count_scores(self) -> None:
        counts: Counter[str] = Counter()
        times: list[int] = []
        for record in read_topic(self.settings, "handbook.scores"):
            counts[decode_score(record.value).event_id] += 1
            times.append(record.timestamp)
        repeated = sum(count > 1 for count in counts.values())
        seconds = (max(times) - min(times)) / 1000 if times else float("nan")
        self.report.add("rate, first score to last", self.streamed / seconds, "events/s")
        self.report.add("events with exactly one score", len(counts) - repeated)
        right = len(counts) == self.streamed and not repeated
        expect(right, f"{self.streamed} events, {len(counts)} with a score, {repeated} with several: expected one each")

    def compare(self) -> bool:
        """Collect the topics, replay them offline, and measure both. True when they agree."""
        progress("collecting the topics and replaying them offline …")
        collected = self._training("history", "--out", self.folder / "streamed")
        expect(collected["events"] == self.streamed, f"{collected['events']} events collected of {self.streamed}")
        facts = self._training(
            "evaluate", "--history", self.folder / "streamed", "--bundle", self.bundle, "--start", self.plan.evaluate,
            "--end", self.plan.end, "--leave-out-known", "7d", "--scores-topic", answers=(0, 2),
        )  # fmt: skip
        agreement, agree = facts["agreement"], True
        self.report.add("evaluated", f"{self.plan.evaluate} to {self.plan.end}")
        for name in ("events", "frauds"):
            self.report.add(f"{name} evaluated", facts["offline"][name])
        for name, shown in METRICS.items():
            online, offline = facts["online"][name], facts["offline"][name]
            self.report.add(f"{shown} online", online)
            self.report.add(f"{shown} offline", offline)
            agree &= abs(online - offline) < AGREE and f"{online:.3f}" == f"{offline:.3f}"
        self.report.add("greatest difference of a score", agreement["max_difference"])
        return agree and bool(agreement["one_score_each"])

    def _training(self, *arguments: object, answers: tuple[int, ...] = (0,)) -> dict[str, Any]:
        out = command(self.environment, "training", *arguments, "--json", answers=answers)
        answer: dict[str, Any] = json.loads(out.splitlines()[-1])
        return answer
