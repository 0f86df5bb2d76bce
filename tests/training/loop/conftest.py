"""A small world with a history, and what a turn of the loop makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.clock import DAY_MS
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from models.samples import write_file
from models.simulate import simulate
from training.archive import Archive
from training.history import import_file
from training.loop.cycle import Turn, train_challenger
from training.loop.material import Material, gather, make_plan
from training.source import Source
from training.stored import open_history
from training.tables import Mapped, read_file

LEARNING = """
[learning]
window = "21d"
older = 0.2
holdout = "10d"
epochs = 2
events = 6000

[learning.gate]
frauds = 10
"""


def silent(*_: object) -> None:
    """No progress."""


@pytest.fixture(scope="session")
def loop_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Payments, learning quickly, with a small detector."""
    text = (Path(__file__).parents[3] / "models/pipelines/payments.toml").read_text(encoding="utf-8")
    lines = ["hidden = 12" if line.startswith("hidden") else line for line in text.splitlines()]
    path = tmp_path_factory.mktemp("loop") / "loop.toml"
    path.write_text("\n".join(lines) + LEARNING, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def loop_pipeline(loop_file: Path) -> Pipeline:
    return load_pipeline(loop_file)


@pytest.fixture(scope="session")
def history_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop-world")


@pytest.fixture(scope="session")
def world(loop_pipeline: Pipeline, history_root: Path) -> Source:
    """Fifty days of payments with their labels."""
    folder = history_root
    write_file(simulate(seed=3, customers=250, merchants=60, days=50, fraud_share=0.02), folder / "payments.parquet")
    frame = read_file(folder / "payments.parquet")
    import_file(loop_pipeline, folder, Mapped(frame, loop_pipeline, labels="is_fraud", label_time="label_time"))
    return open_history(Archive(folder, loop_pipeline))


@pytest.fixture(scope="session")
def end_ms(world: Source) -> int:
    """The loop's now: the end of the last day."""
    return world.last_clock_ms("events") // DAY_MS * DAY_MS


@pytest.fixture(scope="session")
def material(world: Source, loop_pipeline: Pipeline, end_ms: int) -> Material:
    return gather(world, make_plan(loop_pipeline, world.first_event_ms(), end_ms))[0]


@pytest.fixture(scope="session")
def champion(
    loop_pipeline: Pipeline, material: Material, end_ms: int, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A decent model."""
    turn = Turn(loop_pipeline, None, end_ms, tmp_path_factory.mktemp("champion"), threads=1)
    return train_challenger(turn, material, silent).folder
