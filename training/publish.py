"""A bundle into the registry, and a version to the workers.

The registry's pointer is the truth; the message on `<pipeline>.models` tells running workers to look. It is
sent after the pointer has moved: if this process dies between the two, workers find the new champion on their
next start, and promoting again sends the message.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from models.clock import now_ms, to_iso
from models.pipeline.spec import Pipeline
from models.registry import Registry
from training.broker import send
from training.settings import Settings

__all__ = ["ModelMessage", "promote", "publish"]


class ModelMessage(msgspec.Struct, frozen=True):
    """The value on `<pipeline>.models`; its key is the pipeline's name, so compaction keeps the newest."""

    pipeline: str
    version: str
    digest: str
    promoted_at: str  # ISO-8601


def publish(registry_root: Path, bundle: Path) -> str:
    """Copy a bundle into the registry; returns its version. Raises BundleError and RegistryError."""
    return Registry(registry_root).publish(bundle)


def promote(
    settings: Settings, registry_root: Path, pipeline: Pipeline, version: str, *, why: str, notify: bool = True
) -> ModelMessage:
    """Make a published version the champion and, with `notify`, tell the workers.

    Raises RegistryError and BundleError before anything has changed, HistoryError when the broker is away: then
    the pointer has moved and only the message is missing.
    """
    registry = Registry(registry_root)
    info = registry.verify(pipeline.name, version)
    registry.promote(pipeline.name, version, why)
    message = ModelMessage(pipeline.name, version, info.digest, to_iso(now_ms()))
    if notify:
        send(settings, pipeline.topic("models"), pipeline.name.encode(), msgspec.json.encode(message))
    return message
