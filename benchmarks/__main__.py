"""`python -m benchmarks`: all benchmarks that need no data file; `python -m benchmarks NAME`: one of them."""

from __future__ import annotations

import sys

from cyclopts import App

from benchmarks import handbook, hot_path
from models.errors import LeptonError

app = App(name="python -m benchmarks", help="Measure, and fail when an answer is wrong.")
app.command(hot_path.hot_path)
app.command(handbook.handbook)


@app.default
def every() -> None:
    """Run all benchmarks that need no data file."""
    hot_path.hot_path()


def main() -> None:
    """Run a benchmark; an error, or an answer that is wrong, becomes one line and exit code 1."""
    try:
        app()
    except LeptonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
