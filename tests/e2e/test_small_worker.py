"""A worker on a machine without torch: it takes a model, scores, and says which engine does it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.simulate import simulate
from stream.kafka import ensure_topics
from stream.replay import publish, wait_stored
from stream.replay_file import Rows
from stream.settings import Settings
from tests.support import Worker, publish_model, read_settled, simulated_windows


def test_a_worker_without_torch_scores(
    pipeline: Pipeline, make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores are those of torch within the stated tolerance; metrics and log name the engine it measured."""
    (tmp_path / "without" / "torch").mkdir(parents=True)
    (tmp_path / "without" / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('torch is not here')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    # one partition: then events meet shared profiles in the order in which they are encoded below
    asyncio.run(_score(pipeline, make_settings(partitions=1), tmp_path))


async def _score(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    simulated = simulate(seed=12, customers=100, merchants=40, days=2)
    rows, windows = list(simulated.event_rows()), simulated_windows(pipeline, simulated, count=10**6)
    ensure_topics(settings, pipeline)
    version = publish_model(pipeline, settings.registry, windows, folder=folder / "bundle")
    with Worker(settings, folder / "worker.log") as worker:
        await worker.logs("model in use")
        done = await publish(settings, pipeline, Rows.of(rows, "timestamp"))
        await wait_stored(settings, pipeline, done.next_offsets)
        assert worker.metric("lepton_engine_info", version=version, engine="native", precision="float32") == 1
        for batch in ("8", "512"):
            assert 0 < worker.metric("lepton_engine_seconds", engine="native", batch=batch) < 0.01
        assert "µs an event in a batch of 8" in worker.text()
        assert worker.stop() == 0
    scores = await read_settled(settings, pipeline.topic("scores"))
    found = {message["event_id"]: message["score"] for message in (json.loads(record.value) for record in scores)}
    torch = load_scorer(Registry(settings.registry).path(pipeline.name, version), pipeline, "torch")
    assert torch.engine == "torch"
    expected = torch.score(windows).score_B
    ids = simulated.events["transaction_id"].tolist()
    np.testing.assert_allclose([found[i] for i in ids], expected, atol=1e-5)
    assert len(found) == len(rows)
