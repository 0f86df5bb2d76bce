"""`python -m stream …`: parse, call one function, print. Exit code 1 and one line on standard error when it fails."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from aiokafka.errors import KafkaError
from cyclopts import App, Parameter, validators
from redis.exceptions import RedisError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.clock import duration_ms, from_iso
from models.errors import LeptonError
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.logs import configure_logs
from stream.redrive import redrive as send_back
from stream.replay import Pace, Published, publish, wait_stored
from stream.replay_file import FileRows, read_file
from stream.settings import Settings, load_settings

__all__ = ["app", "main"]

app = App(
    name="python -m stream",
    help="Score a stream of events: the worker, its tools, and local services.",
    default_parameter=Parameter(negative_iterable=()),
)
state = App(name="state", help="Look at what is remembered.")
app.command(state)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Common:
    """Options of every command; the rest of the settings comes from LEPTON_… variables or the file."""

    pipeline: Annotated[str | None, Parameter(help="Shipped pipeline name, or path of a pipeline file.")] = None
    settings: Annotated[Path | None, Parameter(help="TOML file with settings; LEPTON_… variables win.")] = None

    def load(self) -> tuple[Settings, Pipeline]:
        settings = load_settings(self.settings, pipeline=self.pipeline)
        configure_logs(settings.log_level, settings.log_json)
        return settings, load_pipeline(settings.pipeline)


COMMON = Common()


@app.command
def worker(*, common: Common = COMMON) -> None:
    """Score events until SIGTERM."""
    settings, _ = common.load()
    from stream.app import run_worker  # noqa: PLC0415, brings Faust

    run_worker(settings)


@app.command
def dev(*, seconds: float | None = None, folder: Path | None = None, append_only: bool = False) -> None:
    """Start a local broker and Redis; prints the variables that point to them and runs until Ctrl-C.

    Parameters
    ----------
    seconds
        Stop after this long.
    folder
        For logs and Redis' file; a temporary one when left out.
    append_only
        Redis writes its data to the folder, and has it back when it is started there again.
    """
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with (
        tempfile.TemporaryDirectory(prefix="lepton-") as temporary,
        LocalServices(folder or temporary, append_only) as services,
    ):
        for name, value in services.variables.items():
            print(f"export {name}={value}", flush=True)
        ended.wait(seconds)


@app.command(name="compile")
def compile_loops(*, common: Common = COMMON) -> None:
    """Compile what a worker runs, so that the first one on this machine starts at once. For images.

    The code is kept beside the sources, or in the folder that NUMBA_CACHE_DIR names.
    """
    _, pipeline = common.load()
    from models.codec import Codec  # noqa: PLC0415
    from models.warm_up import warm_up, warm_up_engines  # noqa: PLC0415
    from stream.store.values import ProfileFormat  # noqa: PLC0415

    codec = Codec(pipeline)
    warm_up(codec)
    warm_up_engines(codec)
    for name, profile in pipeline.profiles.items():
        ProfileFormat(codec.layout, name, profile)


@app.command
def replay(
    file: Path,
    *,
    common: Common = COMMON,
    labels: str | None = None,
    label_delay: str | None = None,
    rate: Annotated[float, Parameter(validator=validators.Number(gte=0))] = 0,
    start: str | None = None,
    end: str | None = None,
    columns: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    follow: bool | None = None,
    skew: str | None = None,
    patience: float = 60,
    wait: bool = False,
) -> None:
    """Play a CSV, JSONL or Parquet file onto the pipeline's topics in event-time order.

    Parameters
    ----------
    file
        One row an event.
    labels
        Column with the verdict (true, false, 1, 0; empty: none); labels are published when they arrive.
    label_delay
        Time from an event to its label, such as 7d; the pipeline's labels.maturity when left out.
    rate
        Events a second; 0 is as fast as it goes.
    start
        ISO-8601; events and labels are published from this time on.
    end
        ISO-8601; events and labels are published before this time.
    columns
        FILE_COLUMN=FIELD pairs where names differ.
    follow
        Never run ahead of the workers by more than the skew in event time; on when there are labels.
    skew
        Such as 1h; the shortest delay of the pipeline's profiles when left out.
    patience
        Seconds that workers may make no progress while they are followed.
    wait
        Return only when everything is stored by the workers.
    """
    settings, pipeline = common.load()
    delay_ms = _duration("label-delay", label_delay) if label_delay else pipeline.labels.maturity_ms
    pace = Pace(
        rate=rate,
        follow=labels is not None if follow is None else follow,
        skew_ms=_duration("skew", skew) if skew else None,
        patience_s=patience,
    )
    start_ms, end_ms = (_moment(name, text) for name, text in (("start", start), ("end", end)))
    read = read_file(file, pipeline, columns=_pairs(columns), labels=labels, label_delay_ms=delay_ms)
    cut = FileRows(
        read.events.between(start_ms, end_ms), read.labels.between(start_ms, end_ms) if read.labels else None,
        read.skipped,
    )  # fmt: skip
    ensure_topics(settings, pipeline)
    done = asyncio.run(_replay(settings, pipeline, cut, pace, wait))
    print(
        f"published {done.events} events and {done.labels} labels of {pipeline.name}; "
        f"left out {cut.skipped} rows without a usable time and {done.unusable} that cannot be sent"
    )


@app.command
def redrive(
    *,
    common: Common = COMMON,
    reason: str | None = None,
    limit: Annotated[int | None, Parameter(name="--max", validator=validators.Number(gte=1))] = None,
    dry_run: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Send dead-lettered records back to their topic, once what refused them is mended.

    Parameters
    ----------
    reason
        Only records with this reason code.
    limit
        At most so many.
    dry_run
        Only count.
    as_json
        Print JSON.
    """
    settings, pipeline = common.load()
    done = send_back(settings, pipeline, reason, limit, dry_run)
    if as_json:
        print(json.dumps({"sent": done.total, "reasons": done.reasons, "foreign": done.foreign, "dry_run": dry_run}))
        return
    print(f"{'would send' if dry_run else 'sent'} {done.total} records back")
    for name, count in done.reasons.most_common():
        print(f"  {name}: {count}")
    if done.foreign:
        print(f"left {done.foreign} that name no topic of {pipeline.name}")


@state.command(name="show")
def state_show(entity: str, *, common: Common = COMMON) -> None:
    """Print what is remembered of one entity."""
    settings, pipeline = common.load()
    from stream.store.inspect import show_entity  # noqa: PLC0415

    print(show_entity(settings, pipeline, entity))


@app.command
def demo(*, seconds: float = 60, seed: int = 7) -> None:
    """Simulate payments, train, promote, stream and swap models while you watch.

    Parameters
    ----------
    seconds
        How long the stream runs after training.
    seed
        Of the simulated payments.
    """
    from stream.demo import run_demo  # noqa: PLC0415

    run_demo(seconds=seconds, seed=seed)


def main() -> None:
    """Run the command line; errors that are ours become one line and exit code 1."""
    try:
        app()
    except LeptonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (RedisError, KafkaError) as error:
        # the worker waits for servers that are away; a command says which one does not answer
        server = "Redis (LEPTON_REDIS_…)" if isinstance(error, RedisError) else "Kafka (LEPTON_KAFKA_…)"
        print(f"error: {server}: {error}: expected a server that answers", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


async def _replay(settings: Settings, pipeline: Pipeline, rows: FileRows, pace: Pace, wait: bool) -> Published:
    progress = Progress(
        TextColumn("replay"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    with progress:
        bar = progress.add_task("replay", total=len(rows.events), rate="")

        def show(done: Published) -> None:
            speed = progress.tasks[bar].speed
            progress.update(bar, completed=done.events, rate=f"{speed:,.0f}/s" if speed else "")

        done = await publish(settings, pipeline, rows.events, rows.labels, pace=pace, on_progress=show)
        show(done)
    if wait:
        await wait_stored(settings, pipeline, done.next_offsets, pace.patience_s)
    return done


def _pairs(columns: tuple[str, ...]) -> dict[str, str]:
    pairs = dict(pair.split("=", 1) for pair in columns if "=" in pair)
    if len(pairs) != len(columns):
        raise LeptonError(f"--columns = {' '.join(columns)}: expected FILE_COLUMN=FIELD pairs")
    return pairs


def _duration(option: str, text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise LeptonError(f"--{option} = {text!r}: expected a duration such as 30s, 1h or 7d") from error


def _moment(option: str, text: str | None) -> int | None:
    try:
        return None if text is None else from_iso(text)
    except ValueError as error:
        raise LeptonError(f"--{option} = {text!r}: expected ISO-8601 such as 2026-01-31T08:00Z") from error
