"""Shared fixtures: real local services once a session, and a pipeline of its own for every test.

Topics and Redis keys begin with the pipeline's name, so a unique name keeps tests apart on shared services.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import pytest

from models.pipeline.load import load_pipeline, shipped_pipelines
from models.pipeline.spec import Pipeline
from stream.local import LocalServices
from stream.settings import Settings, load_settings

MakePipeline = Callable[..., Path]
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServices]:
    """A broker and a Redis for the whole session. Tests that kill one start their own LocalServices."""
    with LocalServices(tmp_path_factory.mktemp("services")) as running:
        yield running


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests must not reach them."""
    for name in os.environ:
        if name.startswith("LEPTON_"):
            monkeypatch.delenv(name)


@pytest.fixture
def pipeline_name() -> str:
    """A name no other test has."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def make_pipeline(tmp_path: Path, pipeline_name: str) -> MakePipeline:
    """`make_pipeline(source="payments", name=None) -> Path`: write a pipeline file under a unique name.

    source: a shipped name, or the TOML text of a pipeline whose [pipeline] table has a name.
    """

    def make(source: str = "payments", name: str | None = None) -> Path:
        text = source
        if source in shipped_pipelines():
            text = (resources.files("models") / "pipelines" / f"{source}.toml").read_text(encoding="utf-8")
        name = name or pipeline_name
        renamed, count = re.subn(r'(?m)^name\s*=\s*"[^"]*"', f'name = "{name}"', text, count=1)
        assert count == 1, "the pipeline text has no name"
        path = tmp_path / f"{name}.toml"
        path.write_text(renamed, encoding="utf-8")
        return path

    return make


@pytest.fixture
def pipeline_file(make_pipeline: MakePipeline) -> Path:
    """The shipped payments pipeline under a unique name, as a file."""
    return make_pipeline("payments")


@pytest.fixture
def pipeline(pipeline_file: Path) -> Pipeline:
    return load_pipeline(pipeline_file)


@pytest.fixture
def make_settings(services: LocalServices, pipeline_file: Path, tmp_path: Path) -> MakeSettings:
    """`make_settings(**overrides) -> Settings` for the session's services; any HTTP port, own registry."""

    def make(**overrides: object) -> Settings:
        defaults: dict[str, object] = {
            "pipeline": str(pipeline_file),
            "kafka_brokers": services.kafka_brokers,
            "redis_port": services.redis_port,
            "session_timeout_s": 2,
            "http_port": 0,
            "registry": tmp_path / "registry",
        }
        return load_settings(**(defaults | overrides))

    return make


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()
