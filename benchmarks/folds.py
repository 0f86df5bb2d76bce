"""A protocol's test weeks once more, through broker, worker and Redis: do the published scores say the same?

`python -m training evaluate --protocol handbook DATA --out RESULTS` leaves a bundle and the offline scores of each
test week. Here DATA is streamed from its first day, in event time and with its labels; before each test week that
week's bundle is promoted and the running worker swaps to it. Then the scores topic is read, and the metrics of every
week are computed from it: each must equal the protocol's to three decimals, and every event must have one score.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cyclopts import Parameter

from benchmarks.harness import Report, Worker, command, environment_of, expect, progress, read_topic
from models.errors import LeptonError
from models.messages import Score, decode_score
from models.pipeline import load_pipeline
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.settings import Settings, load_settings

__all__ = ["folds"]

SHOWN = {
    "average_precision": "AP", "roc_auc": "AUC ROC", "card_precision_at_100": "CP@100",
    "expected_calibration_error": "ECE",
}  # fmt: skip
AGREE = 0.0005  # three decimals
SWAP_S = 60
PATIENCE_S = 120


def folds(
    data: Path,
    results: Path,
    *,
    pipeline: str = "handbook",
    architecture: str = "gru",
    labels: str = "is_fraud",
    label_delay: str = "7d",
    start: str | None = None,
    history_skew: str | None = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Stream a file through a worker that swaps to each test week's bundle, and compare its scores with the protocol's.

    Parameters
    ----------
    data
        The file that was evaluated.
    results
        The folder that `python -m training evaluate --protocol … --out` wrote.
    pipeline
        A shipped name or a file, as evaluated.
    architecture
        Whose bundles are streamed.
    labels
        The column with the verdict.
    label_delay
        From an event to its label.
    start
        The first day that is streamed; else the file's first. Later, and windows differ from the protocol's.
    history_skew
        How far anything may be ahead of anything else before the first test week, such as 3h, which makes batches
        larger; else the shortest delay of a profile, as in the test weeks, which leaves scores independent of timing.
        Longer, and single verdicts of that time are compared with a usual amount that lacks some hours.
    as_json
        Print JSON.
    """
    report = Report("a protocol's weeks, streamed")
    with tempfile.TemporaryDirectory(prefix="lepton-folds-") as name, LocalServices(Path(name) / "local") as local:
        settings = load_settings(
            kafka_brokers=local.kafka_brokers, redis_port=local.redis_port, pipeline=pipeline, http_port=0,
            registry=Path(name) / "registry", session_timeout_s=6, log_level="WARNING",
        )  # fmt: skip
        spec = load_pipeline(settings.pipeline)
        ensure_topics(settings, spec)
        run = _Run(settings, Path(name), results, architecture, report)
        replay = [data.resolve(), "--labels", labels, "--label-delay", label_delay, "--follow", "--wait",
                  "--patience", PATIENCE_S]  # fmt: skip
        run.stream(replay, start, [] if history_skew is None else ["--skew", history_skew])
        agree = run.compare(spec.topic("scores"))
    report.print(as_json)
    if not agree:
        raise LeptonError("the published scores and the protocol's do not agree to three decimals")


class _Run:
    def __init__(self, settings: Settings, folder: Path, results: Path, architecture: str, report: Report) -> None:
        self.settings, self.folder, self.report = settings, folder, report
        self.results, self.architecture = results.resolve(), architecture
        self.environment = environment_of(settings)
        self.facts: dict[str, Any] = json.loads((results / "results.json").read_text())
        self.streamed = 0
        self.models: list[str] = []

    def stream(self, replay: list[object], start: str | None, history: list[str]) -> None:
        """All days up to the end of the last test week, each week under its bundle; `history` is for those before."""
        self._promote(1)
        with Worker.running(self.environment, self.folder / "worker.log") as worker:
            began, before_s = time.monotonic(), worker.cpu_s()
            borders = [fold["start"] for fold in self.facts["folds"]]
            ends = [borders[0], *(fold["end"] for fold in self.facts["folds"])]
            for number, (first, end) in enumerate(zip([start, *borders], ends, strict=True)):
                if number > 1:
                    self._promote(number)
                    self._await_swap(worker)
                since = ["--start", first] if first is not None else []
                options = [*since, *([] if number else history)]
                said = command(self.environment, "stream", "replay", *replay, *options, "--end", end)
                self.streamed += int(said.split()[1])
                progress(f"streamed up to {end}: {self.streamed:,} events in {time.monotonic() - began:.0f} s")
            seconds = time.monotonic() - began
            self.report.add("events streamed", self.streamed)
            self.report.add("rate, with reading the file", self.streamed / seconds, "events/s")
            self.report.add("CPU of the worker", (worker.cpu_s() - before_s) / self.streamed * 1e6, "µs an event")

    def compare(self, topic: str) -> bool:
        """Metrics of each week from the topic beside the protocol's; True when they are equal to three decimals."""
        from training.evaluate import Scored, metrics_of  # noqa: PLC0415, sklearn takes seconds to import

        found = self._published(topic)
        weeks = self.facts["systems"][self.architecture]["folds"]
        agree, means, difference = True, dict.fromkeys(SHOWN, 0.0), 0.0
        for number, expected in enumerate(weeks, 1):
            file = pq.read_table(self.results / f"scores-{self.architecture}-{number}.parquet")
            times, table = file["time"].cast(pa.int64()).to_numpy(), file.to_pydict()
            missing = [event_id for event_id in table["event_id"] if event_id not in found]
            expect(not missing, f"{len(missing)} events of week {number} have no score, such as {missing[:3]}")
            online = [found[event_id] for event_id in table["event_id"]]
            models = {score.model for score in online}
            expect(models == {self.models[number - 1]}, f"week {number} was scored by {models}: expected its bundle")
            score_N, probability_N = (
                np.array([getattr(score, name) for score in online], np.float32) for name in ("score", "probability")
            )
            difference = max(difference, float(np.abs(score_N - np.array(table["score"], np.float32)).max()))
            scored = Scored(table["event_id"], table["entity"], times, np.array(table["fraud"]), score_N, probability_N)
            metrics = metrics_of(scored.take(np.array(table["measured"])))
            for name, shown in SHOWN.items():
                agree &= _equal(metrics[name], expected[name])
                means[name] += metrics[name] / len(weeks)
                self.report.add(f"{shown}, week {number}: published", metrics[name])
                self.report.add(f"{shown}, week {number}: protocol", expected[name])
        for name, shown in SHOWN.items():
            mean = self.facts["systems"][self.architecture]["mean"][name]
            agree &= _equal(means[name], mean)
            self.report.add(f"{shown}, mean: published", means[name])
            self.report.add(f"{shown}, mean: protocol", mean)
        self.report.add("greatest difference of a score", difference)
        return agree

    def _published(self, topic: str) -> dict[str, Score]:
        found: dict[str, Score] = {}
        messages = 0
        for record in read_topic(self.settings, topic):
            score = decode_score(record.value)
            found[score.event_id] = score
            messages += 1
        right = messages == len(found) == self.streamed
        expect(right, f"{self.streamed} events, {messages} scores of {len(found)} events: expected one each")
        return found

    def _promote(self, number: int) -> None:
        bundle = self.results / f"bundle-{self.architecture}-{number}"
        said = command(self.environment, "training", "publish", bundle, "--json")
        self.models.append(json.loads(said.splitlines()[-1])["version"])
        command(self.environment, "training", "promote", self.models[-1])

    def _await_swap(self, worker: Worker) -> None:
        """The worker logs the version that it has swapped to."""
        deadline = time.monotonic() + SWAP_S
        while self.models[-1] not in worker.log.read_text(errors="replace"):
            worker.check_alive()
            expect(time.monotonic() < deadline, f"the worker has not swapped to {self.models[-1]} in {SWAP_S} s")
            time.sleep(0.2)


def _equal(online: float, offline: float | None) -> bool:
    """Both are undefined, as of a week without frauds, or they are close."""
    return np.isnan(online) if offline is None else bool(abs(online - offline) <= AGREE)
