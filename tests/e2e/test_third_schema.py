"""A pipeline nobody wrote Python for: parcel scans, not keyed by the parcel, under the depot software's own names."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.clock import from_iso
from models.codec import Codec
from models.pipeline import Pipeline, load_pipeline
from stream.kafka import ensure_topics, partition_for
from stream.replay import wait_stored
from stream.settings import Settings
from tests.conftest import MakePipeline, MakeSettings
from tests.support import ROOT, Worker, encode_columns, publish_model, read_settled, read_topic, send_records

PARCELS = """
[pipeline]
name = "parcels"
entity = "parcel"
event_id = "scan"
time = "scanned_at"
keyed_by_entity = false

[fields]
scan = { type = "id", source = "ScanNo" }
scanned_at = { type = "time", unit = "s", source = "TimeOfScan" }
parcel = { type = "entity", source = "ParcelNo" }
depot = { type = "entity", source = "Depot" }
kind = { type = "category", buckets = 16, source = "ScanKind" }
weight = { type = "number", unit = "kg", min = 0, transform = "log1p", source = "WeightKg" }
temperature = { type = "number", unit = "degC", required = false, source = "TempC" }
damaged = { type = "boolean", required = false, source = "IsDamaged" }
place = { type = "geo", latitude = "Lat", longitude = "Lon", required = false }

[window]
length = 8
horizons = ["6h", "3d"]

[profiles.depot]
key = "depot"
amount = "weight"
half_lives = ["12h"]
delay = "30m"

[labels]
verdict = "Lost"
time = "ReportedAt"
maturity = "3d"
"""
START_MS = from_iso("2026-03-01T00:00:00Z")
PARCEL_COUNT, SCANS = 60, 600


def _rows() -> list[dict[str, Any]]:
    """Scans in order of time, by field name."""
    rng = np.random.default_rng(1)
    times = START_MS + np.sort(rng.integers(0, 4 * 86_400_000, SCANS))
    rows: list[dict[str, Any]] = []
    for number, at in enumerate(times.tolist()):
        rows.append({
            "scan": 10_000 + number, "scanned_at": at, "parcel": f"P{rng.integers(PARCEL_COUNT):04d}",
            "depot": int(rng.integers(5)), "kind": str(rng.choice(["in", "out", "van"])),
            "weight": float(rng.gamma(2, 3)), "temperature": None if number % 3 else float(rng.normal(8, 4)),
            "damaged": bool(rng.random() < 0.05), "place.latitude": float(rng.uniform(47, 54)),
            "place.longitude": float(rng.uniform(6, 14)),
        })  # fmt: skip
    return rows


def test_parcels_from_ingest_to_alert(make_pipeline: MakePipeline, make_settings: MakeSettings, tmp_path: Path) -> None:
    """Scans under any key are re-keyed, scored once and remembered; labels and bad scans find their way, too."""
    path = make_pipeline(PARCELS)
    pipeline = load_pipeline(path)
    settings = make_settings(pipeline=str(path))
    asyncio.run(_run(pipeline, settings, tmp_path))


async def _run(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    rows, codec = _rows(), Codec(pipeline)
    ensure_topics(settings, pipeline)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    publish_model(pipeline, settings.registry, encode_columns(pipeline, columns), quantile=0.9, folder=folder / "b")
    scans = [codec.encode_event(row) for row in rows]
    assert {"ScanNo", "TimeOfScan", "ParcelNo"} <= json.loads(scans[0]).keys()
    labels = [
        codec.encode_label(row["scan"], row["scanned_at"] + 3_600_000, n % 20 == 0, {"depot": row["depot"]})
        for n, row in enumerate(rows[::10])
    ]
    with Worker(settings, folder / "worker.log") as worker:
        # scanner guns know nothing of parcels' partitions; one after another, for their clocks are compared
        await send_records(settings, pipeline.topic("ingest"), [(b"gun", scan) for scan in scans[: SCANS // 2]])
        await send_records(settings, pipeline.topic("ingest"), [(b"gun", b"beep"), (None, None)])
        await send_records(settings, pipeline.topic("ingest"), [(b"gun", scan) for scan in scans[SCANS // 2 :]])
        await send_records(settings, pipeline.topic("labels"), [(None, label) for label in labels])
        scores = await read_topic(settings, pipeline.topic("scores"), lambda found: len(found) >= SCANS, 60)
        events = await read_topic(settings, pipeline.topic("events"), lambda found: len(found) >= SCANS, 60)
        ends = {p: max(e.offset for e in events if e.partition == p) + 1 for p in {e.partition for e in events}}
        await wait_stored(settings, pipeline, {("events", p): end for p, end in ends.items()})
        shown = await asyncio.to_thread(_show, settings, rows[-1]["parcel"])
        while worker.metric("lepton_labels_total") < len(labels):
            await asyncio.sleep(0.1)
        assert worker.stop() == 0
    assert sorted(json.loads(r.value)["event_id"] for r in scores) == sorted(str(row["scan"]) for row in rows)
    for record in events:
        parcel = json.loads(record.value)["ParcelNo"].encode()
        assert record.key == parcel
        assert record.partition == partition_for(parcel, settings.partitions)
    letters = await read_settled(settings, pipeline.topic("dead-letter"))
    assert sorted((dict(r.headers)["lepton-reason"], r.value) for r in letters) == [(b"empty", b""), (b"json", b"beep")]
    assert {dict(r.headers)["lepton-topic"] for r in letters} == {pipeline.topic("ingest").encode()}
    alerts = [json.loads(r.value) for r in await read_settled(settings, pipeline.topic("alerts"))]
    assert alerts
    assert all(alert["event"]["ScanNo"] == int(alert["event_id"]) for alert in alerts)
    _check_shown(shown, rows)


def _show(settings: Settings, parcel: str) -> dict[str, Any]:
    """What `python -m stream state show` prints."""
    names = ("pipeline", "kafka_brokers", "redis_port")
    environment = {f"LEPTON_{name.upper()}": str(getattr(settings, name)) for name in names}
    done = subprocess.run(
        [sys.executable, "-m", "stream", "state", "show", parcel], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _check_shown(shown: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The newest scan of this parcel, in its own units."""
    last = rows[-1]
    mine = [row for row in rows if row["parcel"] == last["parcel"]]
    assert shown["events"] == len(mine)
    assert len(shown["window"]) == min(len(mine), 8)
    newest = shown["window"][-1]
    assert from_iso(newest["time"]) == last["scanned_at"]
    assert abs(newest["weight"] - last["weight"]) < 1e-4
    assert newest["damaged"] == float(last["damaged"])
