"""`python -m models pipeline …`: draft, check and describe pipeline files. `models.cli` mounts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from models.errors import LeptonError
from models.features.layout import Layout
from models.pipeline import digest, load_pipeline
from models.pipeline.draft import draft
from models.pipeline.schema import asyncapi, schemas

__all__ = ["app"]

app = App(name="pipeline", help="Draft, check and describe pipeline files.")


@app.command
def init(
    sample: Path,
    /,
    *,
    name: str | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    force: bool = False,
) -> None:
    """Draft a pipeline file from a sample of events, with a reason beside every guess.

    Parameters
    ----------
    sample
        A CSV or JSONL file with one event a row.
    name
        The pipeline's name; from the file's name when left out.
    output
        The TOML file to write; standard output when left out.
    force
        Overwrite an existing file.
    """
    text = draft(sample, name)
    if output is None:
        sys.stdout.write(text)
        return
    if output.exists() and not force:
        raise LeptonError(f"{output} exists: expected a new file, or --force")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output}; read the guesses, then: python -m models pipeline check {output}")


@app.command
def check(pipeline: str, /) -> None:
    """Check a pipeline file and say what is derived from it.

    Parameters
    ----------
    pipeline
        A TOML file, or the name of a shipped pipeline.
    """
    loaded = load_pipeline(pipeline)
    layout = Layout(loaded)
    inputs = layout.inputs
    print(f"{loaded.name}: {len(loaded.fields)} fields, {len(loaded.profiles)} profiles")
    print(f"digest    {digest(loaded)}")
    print(f"topics    {', '.join(loaded.topic(kind) for kind in ('events', 'labels', 'scores', 'alerts'))}")
    print(f"state     {layout.state_dtype.itemsize} bytes an entity, {inputs.length} events in the window")
    print(
        f"inputs    {len(inputs.x)} numbers, {len(inputs.codes)} categories an event; {len(inputs.context)} of context"
    )


@app.command
def schema(
    pipeline: str, /, *, topic: Literal["events", "labels", "scores", "alerts", "asyncapi"] = "asyncapi"
) -> None:
    """Print the JSON Schema of one topic, or the AsyncAPI document of all of them.

    Parameters
    ----------
    pipeline
        A TOML file, or the name of a shipped pipeline.
    topic
        Which schema; `asyncapi` holds them all.
    """
    loaded = load_pipeline(pipeline)
    document = asyncapi(loaded) if topic == "asyncapi" else schemas(loaded)[topic]
    print(json.dumps(document, indent=2, ensure_ascii=False))
