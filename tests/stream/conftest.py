"""A connection to the session's Redis, and a store of the test's own pipeline on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from stream.redis import connect
from stream.settings import Settings
from stream.store.redis_store import RedisStore


@pytest.fixture
def client(settings: Settings) -> Iterator[Any]:
    client = connect(settings)
    yield client
    client.close()


@pytest.fixture
def store(client: Any, pipeline: Pipeline) -> RedisStore:
    return RedisStore(client, Layout(pipeline))
