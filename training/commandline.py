"""What the commands of `python -m training` share: their common options, what those name, and how results are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from models.clock import duration_ms, from_iso
from models.errors import LeptonError
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from training.settings import Settings, load_settings

__all__ = [
    "JsonOption",
    "PipelineOption",
    "RegistryOption",
    "SettingsOption",
    "champion",
    "parse_columns",
    "parse_duration",
    "parse_time",
    "setup",
    "show",
]

PipelineOption = Annotated[str | None, Parameter(help="A shipped name or a TOML file; else LEPTON_PIPELINE.")]
SettingsOption = Annotated[Path | None, Parameter(help="TOML file with settings; else LEPTON_SETTINGS.")]
RegistryOption = Annotated[str | None, Parameter(help="Folder or URL of the registry; else LEPTON_REGISTRY.")]
JsonOption = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=())]


def setup(settings: Path | None, pipeline: str | None) -> tuple[Settings, Pipeline]:
    loaded = load_settings(settings)
    return loaded, load_pipeline(pipeline or loaded.pipeline)


def champion(registry: str, pipeline: Pipeline) -> Path:
    from models.registry import Registry  # noqa: PLC0415

    version = Registry(registry).champion(pipeline.name)
    if version is None:
        raise LeptonError(f"{registry}: {pipeline.name} has no champion: expected `python -m training promote` before")
    return Registry(registry).path(pipeline.name, version)


def parse_time(option: str, text: str) -> int:
    try:
        return from_iso(text)
    except ValueError as error:
        raise LeptonError(f"{option} {text}: expected a time such as 2026-03-01 or 2026-03-01T12:00:00Z") from error


def parse_duration(option: str, text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise LeptonError(f"{option} {text}: expected a duration such as 30s, 10m or 7d") from error


def parse_columns(texts: list[str]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    for column, field in pairs.items():
        if not column or not field:
            raise LeptonError(f"--columns {column}: expected FILE_COLUMN=FIELD")
    return pairs


def show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(facts).decode())
        return
    table = Table(show_header=False, box=None)
    for name, value in _flat("", facts):
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)


def _flat(prefix: str, facts: dict[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            rows += _flat(f"{prefix}{name}.", value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows += [row for i, entry in enumerate(value, 1) for row in _flat(f"{prefix}{name}.{i}.", entry)]
        else:
            rows.append((prefix + name, value))
    return rows
