"""`python -m benchmarks`: all benchmarks that need no data file; `python -m benchmarks NAME`: one of them."""

from __future__ import annotations

import sys
from dataclasses import replace

from cyclopts import App

from benchmarks import entities, folds, handbook, latency, memory, past, scaling, steps, throughput
from benchmarks.harness import progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.peers import compare
from models.errors import LeptonError

app = App(name="python -m benchmarks", help="Measure, and fail when an answer is wrong.")
EVERY = (
    steps.steps, throughput.throughput, compare.peers, latency.latency, entities.entities, scaling.scaling,
    memory.memory, past.past,
)  # fmt: skip
for benchmark in EVERY:
    app.command(benchmark)
app.command(handbook.handbook)
app.command(folds.folds)


@app.default
def every(*, options: Options = DEFAULTS) -> None:
    """Run all benchmarks that need no data file, one after the other."""
    failed = []
    for benchmark in EVERY:
        try:
            benchmark(options=replace(options, json=None))
        except LeptonError as error:
            progress(f"{benchmark.__name__}: {error}")
            failed.append(benchmark.__name__)
    if failed:
        raise LeptonError(f"{', '.join(failed)} failed: expected none to")


def main() -> None:
    """Run a benchmark; an error, or an answer that is wrong, becomes one line and exit code 1."""
    try:
        app()
    except LeptonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
