"""A bundle into the registry, and a version to the workers.

The registry's pointer is the truth; the message on `<pipeline>.models` tells running workers to look. It is
sent after the pointer has moved: if this process dies between the two, workers find the new champion on their
next start, and promoting again sends the message.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from models.clock import now_ms, to_iso
from models.pipeline.spec import Pipeline
from models.registry import Registry
from models.signing import load_keys
from training.broker import send
from training.settings import Settings

__all__ = ["ModelMessage", "notify", "open_registry", "promote", "publish"]


class ModelMessage(msgspec.Struct, frozen=True):
    """The value on `<pipeline>.models`; its key is the pipeline's name, so compaction keeps the newest."""

    pipeline: str
    version: str
    digest: str
    promoted_at: str  # ISO-8601


def publish(settings: Settings, registry_root: str, bundle: Path) -> str:
    """Copy a bundle into the registry, signed where there is a key; returns its version.

    Raises BundleError, RegistryError and SettingsError.
    """
    return open_registry(settings, registry_root).publish(bundle, key=settings.signing_key)


def promote(
    settings: Settings, registry_root: str, pipeline: Pipeline, version: str, *, why: str, tell: bool = True,
    by: str = "unknown", figures: dict[str, Any] | None = None,
) -> ModelMessage:  # fmt: skip
    """Make a published version the champion and, with `tell`, tell the workers.

    Raises RegistryError and BundleError before anything has changed, HistoryError when the broker is away: then
    the pointer has moved and only the message is missing.
    """
    registry = open_registry(settings, registry_root)
    info = registry.verify(pipeline.name, version)
    registry.promote(pipeline.name, version, why, by=by, figures=figures)
    message = ModelMessage(pipeline.name, version, info.digest, to_iso(now_ms()))
    if tell:
        notify(settings, pipeline, message)
    return message


def notify(settings: Settings, pipeline: Pipeline, message: ModelMessage) -> None:
    """Tell the workers to look at the registry now. Raises HistoryError when the broker is away."""
    send(settings, pipeline.topic("models"), pipeline.name.encode(), msgspec.json.encode(message))


def open_registry(settings: Settings, root: str | None = None) -> Registry:
    """The registry of the settings, or another, with the settings' trusted keys."""
    return Registry(root or settings.registry, trusted=load_keys(settings.trusted_keys))
