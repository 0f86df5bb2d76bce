"""The model in use follows the registry's pointer, and a roll back waits for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.simulate import simulate
from stream.champion import Champion
from stream.settings import Settings
from tests.support import publish_model, simulated_windows


def test_a_roll_back_takes_the_model_that_is_still_loaded(
    pipeline: Pipeline, settings: Settings, tmp_path: Path
) -> None:
    """Back and forth between two versions loads each once; a third takes the place of the older one."""
    windows = simulated_windows(pipeline, simulate(seed=2, customers=60, merchants=12, days=3))
    a, b, c = (
        publish_model(pipeline, settings.registry, windows, seed=n, folder=tmp_path / str(n), promote=False)
        for n in range(3)
    )
    registry, loads = Registry(settings.registry), []

    async def blocking(function: Callable[..., Any], *arguments: Any) -> Any:
        if function.__name__ == "_load":
            loads.append(arguments[0])
        return function(*arguments)

    champion = Champion(settings.model_copy(update={"engine": "native"}), pipeline, blocking)

    def follow(version: str) -> None:
        registry.promote(pipeline.name, version, "test")
        asyncio.run(champion._take_champion())
        assert champion.scorer is not None
        assert champion.scorer.version == version

    for version in (a, b, a, b):
        follow(version)
    assert loads == [a, b]
    follow(c)
    follow(b)
    follow(a)
    assert loads == [a, b, c, a]
