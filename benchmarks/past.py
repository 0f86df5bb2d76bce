"""What a replay costs as the history grows: peak memory and CPU time, read from disk by days and held in memory.

Simulated payments of the same customers are imported as a file would be, over ever more days. Each replay is a process
of its own, which says how much memory it had at most; the windows it makes must be the same, however it reads. The
floor is a process that has imported the same modules and replayed the first day.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import xxhash
from cyclopts import Parameter

from benchmarks.harness import Report, expect, progress
from benchmarks.options import DEFAULTS, Options
from models.clock import DAY_MS
from models.pipeline.load import load_pipeline
from models.samples import write_file
from models.simulate import simulate
from training.archive import Archive
from training.history import import_file
from training.replay import load_history, replay
from training.stored import open_history
from training.tables import Mapped, read_file

__all__ = ["past"]

CUSTOMERS, EVENTS_A_DAY = 5000, 10_000
WAYS = ("disk", "memory")


def past(*, thousands: Annotated[list[int], Parameter(negative=())] | None = None, options: Options = DEFAULTS) -> None:
    """Memory and CPU time of a replay over histories of several lengths.

    Parameters
    ----------
    thousands
        Of events, about; may be repeated. 500 and 2,000 when left out, 20 and 80 with --quick.
    """
    sizes = thousands or ([20, 80] if options.quick else [500, 2000])
    report = Report(f"past: replays of a history of {CUSTOMERS:,} customers")
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            events = _make(Path(folder), size * 1000, options.seed)
            report.add(f"events of {size} thousand", events)
            for way in ("day", *WAYS):
                progress(f"{events:,} events, {way}")
                found = _measured(Path(folder), way)
                name = {"day": "first day alone", "disk": "read by days", "memory": "held in memory"}[way]
                report.add(f"{size} thousand, {name}: peak", found["mib"], "MiB")
                report.add(f"{size} thousand, {name}: open, frauds, replay", found["seconds"], "s of CPU")
                if way == "disk":
                    digest = found["windows"]
                elif way == "memory":
                    expect(found["windows"] == digest, f"{size} thousand: windows from disk and from memory differ")
    report.finish("past", options.json)


def _make(folder: Path, events: int, seed: int) -> int:
    pipeline, file = load_pipeline("payments"), folder / "payments.parquet"
    days = max(2, events // EVENTS_A_DAY)
    world = simulate(
        seed=seed, customers=CUSTOMERS, merchants=500, days=days, payments_per_day=EVENTS_A_DAY / CUSTOMERS
    )
    write_file(world, file)
    del world
    mapped = Mapped(read_file(file), pipeline, labels="is_fraud", label_time="label_time")
    return import_file(pipeline, folder, mapped).rows["events"]


def _measured(folder: Path, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.past", str(folder), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"a replay ended with {done.returncode}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def _replay(folder: Path, way: str) -> dict[str, Any]:
    """In a process of its own: what was asked for, and the greatest memory so far."""
    began = time.process_time()
    archive, hashed = Archive(folder, load_pipeline("payments")), xxhash.xxh3_64()
    source = load_history(archive) if way == "memory" else open_history(archive)
    until_ms = source.first_event_ms() + DAY_MS if way == "day" else None
    frauds = source.frauds() if way != "day" else set()
    for part in replay(source, lambda batch: np.ones(len(batch), dtype=bool), until_ms):
        # of each row, as chunks may end elsewhere
        hashed.update(np.ascontiguousarray(part.encoded.context_BC).data)
    return {
        "windows": f"{hashed.hexdigest()} {len(frauds)}", "seconds": time.process_time() - began,
        "mib": _peak_mib(),
    }  # fmt: skip


def _peak_mib() -> float:
    """Of this process since it was started; getrusage would begin with what its parent had."""
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    print(json.dumps(_replay(Path(sys.argv[1]), sys.argv[2])))
