"""A file nobody prepared: drafted, checked, replayed and scored, without a line of it being changed."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from models.clock import from_iso, to_iso
from models.codec import Codec
from models.features.memory import MemoryStore
from models.pipeline import load_pipeline
from models.pipeline.spec import Pipeline
from stream.replay_file import read_file
from stream.settings import Settings
from tests.conftest import MakeSettings
from tests.support import ROOT, Worker, publish_model, read_settled

HEADER = ["Row", "TxnRef", "Booked At", "Card No", "Shop ID", "AmtEUR", "channel", "Lat", "Long", "3DS ok", "Remark",
          "Is Fraud?"]  # fmt: skip
MISSING = ("", "NA", "null", "N/A", "NaN", " ")
START = from_iso("2026-03-01")


def _messy_file(path: Path, separator: str, count: int = 600) -> list[str]:
    """Rows as an export might have them; returns their ids. Values are missing in half a dozen spellings."""
    rng = random.Random(5)
    rows, times = [], sorted(START + rng.randrange(20 * 86_400_000) for _ in range(count))
    for i, time_ms in enumerate(times):
        gap = MISSING[i % len(MISSING)]
        online = rng.random() < 0.3
        rows.append([
            i + 1, f"TX-{i:05d}", to_iso(time_ms).replace("T", " "), f"{rng.randrange(40):04d}",
            gap if rng.random() < 0.05 else f" S{rng.randrange(15)} ", gap if rng.random() < 0.05 else
            f"{rng.lognormvariate(3, 1):.2f}", rng.choice(["web, app", "pos", "atm"]),
            gap if online else f"{rng.uniform(45, 55):.4f}", gap if online else f"{rng.uniform(5, 15):.4f}",
            rng.choice(["0", "1"]), f"said “{rng.random()}{separator} ok”", rng.choice(["0"] * 9 + ["1"]),
        ])  # fmt: skip
    rng.shuffle(rows)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([HEADER, *rows])
    return [str(row[1]) for row in rows]


@pytest.mark.parametrize("separator", [";", "\t", "|", ","])
def test_replay_reads_what_init_read(tmp_path: Path, separator: str) -> None:
    """Whatever separates values, every row of a drafted file becomes an event that the codec takes."""
    data = tmp_path / "export.csv"
    ids = _messy_file(data, separator)
    pipeline = _drafted(data, tmp_path / "drafted.toml", "messy")
    read = read_file(data, pipeline, labels="Is Fraud?")
    assert (len(read.events), read.skipped) == (len(ids), 0)
    codec = Codec(pipeline)
    rows = read.events.read(0, len(ids))
    decoded = codec.decode([codec.encode_event(row) for row in rows], np.full(len(ids), START + 30 * 86_400_000))
    assert decoded.bad == []
    assert sorted(decoded.batch.event_id) == sorted(ids)
    shops = {value for value in decoded.batch.profile_keys["shop"] if value is not None}
    assert shops == {f"S{i}" for i in range(15)}
    assert None in decoded.batch.profile_keys["shop"]
    amounts = decoded.batch.values_MV[:, codec.layout.values.index("amt_eur")]
    assert 0 < np.isnan(amounts).sum() < len(ids) / 5


def test_a_messy_file_is_scored(make_settings: MakeSettings, tmp_path: Path, pipeline_name: str) -> None:
    """pipeline init, check, a worker and replay are all it takes: every row has one score, none is dead-lettered."""
    data, file = tmp_path / "export.csv", tmp_path / "drafted.toml"
    ids = _messy_file(data, ";")
    pipeline = _drafted(data, file, pipeline_name)
    settings = make_settings(pipeline=str(file))
    _run(settings, "models", "pipeline", "check", str(file))
    _publish(pipeline, settings, data, tmp_path / "bundle")
    with Worker(settings, tmp_path / "worker.log") as worker:
        said = _run(settings, "stream", "replay", str(data), "--labels", "Is Fraud?", "--label-delay", "2d", "--wait")
        assert f"published {len(ids)} events and {len(ids)} labels" in said
        assert worker.stop() == 0
    scores = asyncio.run(read_settled(settings, pipeline.topic("scores")))
    assert Counter(json.loads(r.value)["event_id"] for r in scores) == Counter(ids)
    assert asyncio.run(read_settled(settings, pipeline.topic("dead-letter"), quiet_s=0.3)) == []


def _drafted(data: Path, file: Path, name: str) -> Pipeline:
    _run(None, "models", "pipeline", "init", str(data), "--name", name, "--output", str(file))
    return load_pipeline(file)


def _run(settings: Settings | None, *arguments: str) -> str:
    """The output of `python -m …`."""
    values = settings.model_dump(exclude_defaults=True) if settings else {}
    environment = {f"LEPTON_{key.upper()}": str(value) for key, value in values.items()}
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _publish(pipeline: Pipeline, settings: Settings, data: Path, folder: Path) -> None:
    """A model whose inputs are scaled by the file's own events."""
    codec, rows = Codec(pipeline), read_file(data, pipeline).events
    values = [codec.encode_event(row) for row in rows.read(0, len(rows))]
    batch = codec.decode(values, rows.time_ms).batch
    windows = MemoryStore(pipeline).step(batch, np.maximum.accumulate(batch.time_M)).encoded
    publish_model(pipeline, settings.registry, windows, folder=folder)
