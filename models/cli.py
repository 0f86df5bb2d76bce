"""`python -m models …`: the registry and the pipeline files. Commands live in `*_cli.py`; this mounts them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App

from models.errors import LeptonError
from models.pipeline_cli import app as pipeline_app
from models.registry_cli import app as registry_app

__all__ = ["app", "main"]

app = App(name="python -m models", help="Model bundles and pipeline files.")
app.command(registry_app)
app.command(pipeline_app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error of ours is one line on stderr and exit code 1."""
    try:
        app(arguments)
    except LeptonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error}: expected files and folders that can be read and written", file=sys.stderr)
        sys.exit(1)
