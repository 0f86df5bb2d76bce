"""Where a demo plays: settings, the commands of training, worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from models.errors import LeptonError
from models.pipeline import Pipeline, load_pipeline
from stream.local import LocalServices, free_port
from stream.settings import Settings, load_settings

__all__ = ["Stage", "check_alive", "command", "make_stage", "promote_new", "until", "worker"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything of one pipeline is."""

    folder: Path
    settings: Settings
    pipeline: Pipeline
    console: Console

    @property
    def log(self) -> Path:
        """Of its worker."""
        return self.folder / f"{self.pipeline.name}.log"

    @property
    def environment(self) -> dict[str, str]:
        """Of the processes that this one starts."""
        names = (
            "kafka_brokers", "redis_port", "pipeline", "registry", "http_port", "session_timeout_s", "log_level",
            "kafka_linger_ms", "latency_objective_ms",
        )  # fmt: skip
        ours = {f"LEPTON_{name.upper()}": str(getattr(self.settings, name)) for name in names}
        return {**os.environ, **ours, "OMP_NUM_THREADS": "1"}


def make_stage(folder: Path, services: LocalServices, console: Console, name: str, budget: float) -> Stage:
    """The shipped pipeline of this name with an alert budget for a demo's few entities."""
    text = (resources.files("models") / "pipelines" / f"{name}.toml").read_text(encoding="utf-8")
    lines = [f"alerts_per_day = {budget:g}" if "alerts_per_day" in line else line for line in text.splitlines()]
    path = folder / f"{name}.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    settings = load_settings(
        kafka_brokers=services.kafka_brokers, redis_port=services.redis_port, pipeline=str(path),
        registry=folder / "registry", http_port=free_port(), session_timeout_s=2, log_level="WARNING",
        kafka_linger_ms=20, latency_objective_ms=250,  # the local broker slows down with every batch it is sent
    )  # fmt: skip
    return Stage(folder, settings, load_pipeline(settings.pipeline), console)


async def command(stage: Stage, *arguments: object) -> dict[str, Any]:
    """A command of the training package, which this package must not import; its JSON answer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "training", *map(str, arguments), "--json",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=stage.environment,
    )  # fmt: skip
    try:
        output, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise LeptonError(f"python -m training {arguments[0]} failed: {errors.decode(errors='replace')[-800:].strip()}")
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


@contextmanager
def worker(stage: Stage) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process, ended by SIGTERM, or SIGKILL when that is not enough."""
    with stage.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream", "worker"], stdout=log, stderr=log,
            env=stage.environment,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check_alive(stage: Stage, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        kept = Path(tempfile.gettempdir()) / f"lepton-demo-{stage.pipeline.name}.log"
        shutil.copy(stage.log, kept)
        raise LeptonError(f"the worker of {stage.pipeline.name} ended with code {process.returncode}: see {kept}")


async def promote_new(stage: Stage, bundle: Path, why: str) -> str:
    """Publish a bundle and promote it; its version."""
    version: str = (await command(stage, "publish", bundle))["version"]
    await command(stage, "promote", version, "--why", why)
    return version


async def until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for it; if it does not come the summary says what is missing."""
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
