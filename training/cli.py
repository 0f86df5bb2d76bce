"""The commands of `python -m training`: each parses, calls one function and prints what came of it.

Results go to standard output (`--json` for machines), progress and errors to standard error. Exit code 0 is
success, 1 an error of this project's family, 2 (of `evaluate`) online and offline that do not agree.
"""

from __future__ import annotations

import getpass
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from cyclopts import App, Parameter
from rich.console import Console

from models.engines import EngineName
from models.errors import LeptonError
from training.commandline import (
    JsonOption,
    PipelineOption,
    RegistryOption,
    SettingsOption,
    champion,
    parse_columns,
    parse_duration,
    parse_time,
    setup,
    show,
)
from training.protocol_options import ProtocolName, ProtocolOptions
from training.settings import load_launch, load_settings

__all__ = ["app", "main"]

app = App(name="python -m training", help="Learn from history and delayed labels: collect, train, evaluate, promote.")

# Named, not imported: they need what is defined below.
app.command("training.learn_cli:pretrain", name="pretrain")
app.command("training.learn_cli:labels_curve", name="labels-curve")
app.command("training.loop_cli:rehearse", name="rehearse")
app.command("training.loop_cli:gate", name="gate")
app.command("training.loop_cli:backtest", name="backtest")

AGREEMENT = 1e-5  # of scores; as far as machines and torch builds may round apart


def main() -> None:
    """Run a command; an error of the family becomes one line and exit code 1."""
    try:
        app()
    except LeptonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"error: {error}: expected files and folders that can be read and written", file=sys.stderr)
        sys.exit(1)


@app.command
def history(
    *,
    pipeline: PipelineOption = None,
    out: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    until_idle: Annotated[float, Parameter(help="End after so many seconds without a record.")] = 3.0,
    follow: Annotated[bool, Parameter(help="Never end; SIGINT or SIGTERM do.", negative=())] = False,
    from_file: Annotated[Path | None, Parameter(help="A CSV, JSONL or Parquet file instead of the topics.")] = None,
    labels: Annotated[str | None, Parameter(help="Of a file: the column with the verdict.")] = None,
    label_delay: Annotated[
        str | None, Parameter(help="Of a file: time from an event to its label; else the labels' maturity.")
    ] = None,
    label_time: Annotated[str | None, Parameter(help="Of a file: the column that says when it arrived.")] = None,
    columns: Annotated[list[str] | None, Parameter(help="Of a file: FILE_COLUMN=FIELD.", negative=())] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Append the topics' events and labels to a Parquet history, from where it ended; or make one from a file."""
    from training.history import collect, import_file  # noqa: PLC0415, pyarrow and kafka take a second to import
    from training.progress import Bars  # noqa: PLC0415
    from training.tables import Mapped, read_file  # noqa: PLC0415

    loaded, spec = setup(settings, pipeline)
    if from_file is not None:
        mapped = Mapped(
            read_file(from_file), spec, labels=labels,
            label_delay_ms=parse_duration("--label-delay", label_delay or spec.labels.maturity),
            label_time=label_time, columns=parse_columns(columns or []),
        )  # fmt: skip
        with Bars() as bars:
            result = import_file(spec, out, mapped, lambda done, total: bars("import", done, total))
    else:
        stopped: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _: stopped.append(received))
        console = Console(stderr=True)
        result = collect(
            loaded, spec, out, until_idle_s=None if follow else until_idle, stop=lambda: bool(stopped),
            report=lambda text: console.print(text, highlight=False),
        )  # fmt: skip
    facts = {"history": str(out / spec.name), **result.rows, "skipped": result.skipped, "lost": result.lost}
    show(facts, as_json)


@app.command
def finetune(
    *,
    out: Annotated[Path, Parameter(help="A new folder for the bundle.")],
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    end: Annotated[str | None, Parameter(help="Train as of this ISO-8601 time; else the history's end.")] = None,
    days: Annotated[float | None, Parameter(help="Days to train on; else all.")] = None,
    warm_up: Annotated[
        str | None, Parameter(help="Replay so much before these days to build the state; else all.")
    ] = None,
    gap: Annotated[str | None, Parameter(help="Between training and validation; else the labels' maturity.")] = None,
    validation: Annotated[str, Parameter(help="Length of the part that chooses the epoch.")] = "3d",
    holdout: Annotated[str, Parameter(help="Length of the part for calibration, threshold and metrics.")] = "4d",
    epochs: int = 6,
    batch: int = 512,
    learning_rate: Annotated[float | None, Parameter(help="Peak; else 0.004, or 0.001 from a champion.")] = None,
    max_legit: Annotated[int, Parameter(help="Legitimate events kept for training, about.")] = 300_000,
    average: Annotated[float, Parameter(help="Of the weights over the steps; 0 keeps them as they are.")] = 0.998,
    augment: Annotated[bool, Parameter(help="Drop events, stretch gaps while training.", negative=())] = False,
    refit: Annotated[bool, Parameter(help="Then train again on all days before the holdout.", negative=())] = False,
    checkpoint: Annotated[Path | None, Parameter(help="Folder from which a killed training goes on.")] = None,
    pretrained: Annotated[Path | None, Parameter(help="Start from this, as `pretrain` made it.")] = None,
    trunk_rate: Annotated[float, Parameter(help="Times the learning rate for the trunk.")] = 1.0,
    seed: int = 0,
    threads: Annotated[int, Parameter(help="Of each process.")] = 2,
    device: Annotated[Literal["auto", "cpu", "cuda"], Parameter(help="Auto: a GPU if there is one.")] = "cpu",
    from_champion: Annotated[bool, Parameter(help="Start from the champion's weights.", negative=())] = False,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a detector on matured labels and write a verified bundle; under torchrun, in several processes."""
    from training.finetune import Start, assist  # noqa: PLC0415, torch takes seconds to import
    from training.finetune import finetune as run  # noqa: PLC0415
    from training.fit import Recipe  # noqa: PLC0415
    from training.group import open_group  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415

    loaded, spec = setup(settings, pipeline)
    start = Start(champion(registry or loaded.registry, spec) if from_champion else None, pretrained)
    rate = learning_rate if learning_rate is not None else 1e-3 if from_champion else 4e-3
    recipe = Recipe(
        epochs=epochs, batch=batch, learning_rate=rate, trunk_rate=trunk_rate, average=average, augment=augment,
        max_legit=max_legit, seed=seed, threads=threads,
    )  # fmt: skip
    with open_group(load_launch(), device) as group, Bars() as bars:
        if not group.first:
            assist(spec, recipe, start=start, refit=refit, checkpoint=checkpoint, group=group)
            return
        bundle = run(
            spec, history, out, end_ms=None if end is None else parse_time("--end", end), days=days,
            warm_up_ms=None if warm_up is None else parse_duration("--warm-up", warm_up),
            gap_ms=None if gap is None else parse_duration("--gap", gap),
            validation_ms=parse_duration("--validation", validation), holdout_ms=parse_duration("--holdout", holdout),
            recipe=recipe, start=start, refit=refit, checkpoint=checkpoint, group=group,
            report=bars,
        )  # fmt: skip
    facts: dict[str, Any] = {"bundle": str(bundle.folder), "version": bundle.version, "threshold": bundle.threshold}
    show(facts | bundle.info.metrics | {"seconds": bundle.info.training["seconds"]}, as_json)


@app.command
def evaluate(
    data: Annotated[Path | None, Parameter(help="With --protocol: its file or folder.")] = None,
    *,
    start: Annotated[str | None, Parameter(help="ISO-8601; the first event time evaluated.")] = None,
    end: Annotated[str | None, Parameter(help="ISO-8601; the first event time no longer evaluated.")] = None,
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    bundle: Annotated[Path | None, Parameter(help="Folder of the bundle; else the champion.")] = None,
    scores_topic: Annotated[bool, Parameter(help="Also measure the scores topic.", negative=())] = False,
    scores: Annotated[Path | None, Parameter(help="Also measure a file of score messages (JSONL).")] = None,
    until_idle: Annotated[float, Parameter(help="The topic has ended after so many seconds of silence.")] = 3.0,
    engine: Annotated[EngineName, Parameter(help="That scores offline; expected to be the worker's.")] = "auto",
    folds: Annotated[int | None, Parameter(help="Measured apart and averaged; else 1, of a protocol 4 weeks.")] = None,
    leave_out_known: Annotated[
        str | None, Parameter(help="Leave out entities with a known fraud since this long before training ended.")
    ] = None,
    protocol: Annotated[ProtocolName | None, Parameter(help="Train and test on DATA; docs/training.md.")] = None,
    options: Annotated[ProtocolOptions | None, Parameter(name="*")] = None,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle on a range of days, and whether the worker's published scores say the same; or, with
    --protocol, train every system on what was known before each test week of DATA and compare them."""
    if protocol is not None and protocol != "handbook":
        from training.anomaly import run as anomaly  # noqa: PLC0415, compiled code takes a second to load

        facts = anomaly.run(protocol, data, (options or ProtocolOptions()).out)
        if as_json:
            show(facts, as_json)
        else:
            anomaly.show(facts, Console())
        return
    if protocol is not None:
        from training import protocol_run  # noqa: PLC0415, torch takes seconds to import

        _, spec = setup(settings, pipeline or protocol)
        known = parse_duration("--leave-out-known", leave_out_known or "7d")
        facts = protocol_run.run(spec, data, folds or 4, known, options or ProtocolOptions())
        if as_json:
            show(facts, as_json)
        else:
            protocol_run.show(facts, Console())
        return
    if data is not None or start is None or end is None:
        raise LeptonError("evaluate: expected --start and --end, or --protocol and a file")
    loaded, spec = setup(settings, pipeline)
    low, high = parse_time("--start", start), parse_time("--end", end)
    folds = folds or 1
    known_ms = None if leave_out_known is None else parse_duration("--leave-out-known", leave_out_known)

    from models.scorer import load_scorer  # noqa: PLC0415, engines take a second to import
    from training import evaluate as ev  # noqa: PLC0415
    from training.archive import Archive  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.replay import load_history  # noqa: PLC0415

    scorer = load_scorer(bundle or champion(registry or loaded.registry, spec), spec, engine)
    past = load_history(Archive(history, spec))
    with Bars() as bars:
        offline = ev.offline_scores(past, scorer, low, high, lambda done, total: bars("replay", done, total))
    facts = {"version": scorer.version, "engine": scorer.engine}
    facts["offline"] = ev.measure(offline, past, low, high, folds=folds, known_ms=known_ms)
    agree = True
    if scores_topic or scores is not None:
        online = ev.scores_of_file(scores, low, high) if scores is not None else ev.scores_of_topic(
            loaded, spec.topic("scores"), low, high, until_idle)  # fmt: skip
        both, facts["agreement"] = ev.compare(offline, online)
        facts["online"] = ev.measure(both, past, low, high, folds=folds, known_ms=known_ms)
        # also false of NaN: no common event is no agreement
        agree = facts["agreement"]["one_score_each"] and facts["agreement"]["max_difference"] <= AGREEMENT
        facts["agreement"]["agree"] = agree
    show(facts, as_json)
    if not agree:
        sys.exit(2)


@app.command
def report(
    *,
    out: Annotated[Path, Parameter(help="The page, one HTML file.")],
    start: Annotated[str, Parameter(help="ISO-8601; the first event time reported.")],
    end: Annotated[str, Parameter(help="ISO-8601; the first event time no longer reported.")],
    bundle: Annotated[str | None, Parameter(help="Folder of a bundle, or `champion`, the default.")] = None,
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    folds: Annotated[int, Parameter(help="Equal ranges that are measured apart and averaged.")] = 1,
    leave_out_known: Annotated[str | None, Parameter(help="As of `evaluate`.")] = None,
    segment: Annotated[list[str] | None, Parameter(help="A field to measure by; may be repeated.", negative=())] = None,
    amount: Annotated[str | None, Parameter(help="The number field that says what a fraud costs.")] = None,
    engine: Annotated[EngineName, Parameter(help="That scores.")] = "auto",
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page about a bundle on a range of days."""
    loaded, spec = setup(settings, pipeline)
    known = None if leave_out_known is None else parse_duration("--leave-out-known", leave_out_known)
    low, high = parse_time("--start", start), parse_time("--end", end)
    if folds < 1:
        raise LeptonError(f"--folds {folds}: expected at least 1")

    from training.progress import Bars  # noqa: PLC0415
    from training.report import Options, write_report  # noqa: PLC0415, figures and engines take seconds to import

    options = Options(
        start_ms=low, end_ms=high, folds=folds, known_ms=known, segments=None if segment is None else tuple(segment),
        amount=amount, command=shlex.join(["python", "-m", "training", *sys.argv[1:]]),
    )  # fmt: skip
    folder = Path(bundle) if bundle not in (None, "champion") else champion(registry or loaded.registry, spec)
    with Bars() as bars:
        facts = write_report(out, spec, history, folder, options, engine, bars)
    show({"report": str(out), **facts}, as_json)


@app.command
def publish(
    bundle: Path,
    *,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle into the registry; prints its version."""
    from training import publish as publishing  # noqa: PLC0415

    loaded = load_settings(settings)
    version = publishing.publish(loaded, registry or loaded.registry, bundle)
    show({"version": version}, as_json)


@app.command
def promote(
    version: str,
    *,
    why: Annotated[str, Parameter(help="Kept in the registry's history.")] = "by hand",
    pipeline: PipelineOption = None,
    notify: Annotated[bool, Parameter(help="Tell running workers through <pipeline>.models.")] = True,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a published version the champion; running workers swap to it."""
    from training import publish as publishing  # noqa: PLC0415

    loaded, spec = setup(settings, pipeline)
    message = publishing.promote(
        loaded, registry or loaded.registry, spec, version, why=why, tell=notify, by=getpass.getuser()
    )
    show(msgspec.structs.asdict(message), as_json)
