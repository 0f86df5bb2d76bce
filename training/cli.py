"""The commands of `python -m training`: each parses, calls one function and prints what came of it.

Results go to standard output (`--json` for machines), progress and errors to standard error. Exit code 0 is
success, 1 an error of this project's family, 2 (of `evaluate`) online and offline that do not agree.
"""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from models.clock import duration_ms, from_iso
from models.engines import EngineName
from models.errors import LeptonError
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from training.protocol_options import ProtocolName, ProtocolOptions
from training.settings import Settings, load_settings

__all__ = ["app", "main"]

app = App(name="python -m training", help="Learn from history and delayed labels: collect, train, evaluate, promote.")

# Named, not imported: they need what is defined below.
app.command("training.learn_cli:pretrain", name="pretrain")
app.command("training.learn_cli:labels_curve", name="labels-curve")

AGREEMENT = 1e-5  # of scores; as far as machines and torch builds may round apart

PipelineOption = Annotated[str | None, Parameter(help="A shipped name or a TOML file; else LEPTON_PIPELINE.")]
SettingsOption = Annotated[Path | None, Parameter(help="TOML file with settings; else LEPTON_SETTINGS.")]
RegistryOption = Annotated[Path | None, Parameter(help="Folder of the registry; else LEPTON_REGISTRY.")]
JsonOption = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=())]


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

    loaded, spec = _setup(settings, pipeline)
    if from_file is not None:
        mapped = Mapped(
            read_file(from_file), spec, labels=labels,
            label_delay_ms=_duration("--label-delay", label_delay or spec.labels.maturity),
            label_time=label_time, columns=_pairs(columns or []),
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
    _show(facts, as_json)


@app.command
def finetune(
    *,
    out: Annotated[Path, Parameter(help="A new folder for the bundle.")],
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    end: Annotated[str | None, Parameter(help="Train as of this ISO-8601 time; else the history's end.")] = None,
    days: Annotated[float | None, Parameter(help="Days to train on; else all.")] = None,
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
    pretrained: Annotated[Path | None, Parameter(help="Start from this trunk, as `pretrain` made it.")] = None,
    trunk_rate: Annotated[float, Parameter(help="Times the learning rate for the trunk.")] = 1.0,
    seed: int = 0,
    threads: int = 2,
    from_champion: Annotated[bool, Parameter(help="Start from the champion's weights.", negative=())] = False,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a detector on matured labels and write a verified bundle."""
    from training.finetune import Start  # noqa: PLC0415, torch takes seconds to import
    from training.finetune import finetune as run  # noqa: PLC0415
    from training.fit import Recipe  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415

    loaded, spec = _setup(settings, pipeline)
    start = Start(_champion(registry or loaded.registry, spec) if from_champion else None, pretrained)
    rate = learning_rate if learning_rate is not None else 1e-3 if from_champion else 4e-3
    recipe = Recipe(
        epochs=epochs, batch=batch, learning_rate=rate, trunk_rate=trunk_rate, average=average, augment=augment,
        max_legit=max_legit, seed=seed, threads=threads,
    )  # fmt: skip
    with Bars() as bars:
        bundle = run(
            spec, history, out, end_ms=None if end is None else _time("--end", end), days=days,
            gap_ms=None if gap is None else _duration("--gap", gap),
            validation_ms=_duration("--validation", validation), holdout_ms=_duration("--holdout", holdout),
            recipe=recipe, start=start, refit=refit, checkpoint=checkpoint, report=bars,
        )  # fmt: skip
    facts: dict[str, Any] = {"bundle": str(bundle.folder), "version": bundle.version, "threshold": bundle.threshold}
    _show(facts | bundle.info.metrics | {"seconds": bundle.info.training["seconds"]}, as_json)


@app.command
def evaluate(
    data: Annotated[Path | None, Parameter(help="With --protocol: a CSV, JSONL or Parquet file.")] = None,
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
    protocol: Annotated[ProtocolName | None, Parameter(help="Train and test on DATA, fold by fold.")] = None,
    options: Annotated[ProtocolOptions | None, Parameter(name="*")] = None,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle on a range of days, and whether the worker's published scores say the same; or, with
    --protocol, train every system on what was known before each test week of DATA and compare them."""
    if protocol is not None:
        from training.protocol_run import run, show  # noqa: PLC0415, torch takes seconds to import

        _, spec = _setup(settings, pipeline or protocol)
        known = _duration("--leave-out-known", leave_out_known or "7d")
        facts = run(spec, data, folds or 4, known, options or ProtocolOptions())
        if as_json:
            _show(facts, as_json)
        else:
            show(facts, Console())
        return
    if data is not None or start is None or end is None:
        raise LeptonError("evaluate: expected --start and --end, or --protocol and a file")
    loaded, spec = _setup(settings, pipeline)
    low, high = _time("--start", start), _time("--end", end)
    folds = folds or 1
    known_ms = None if leave_out_known is None else _duration("--leave-out-known", leave_out_known)

    from models.scorer import load_scorer  # noqa: PLC0415, engines take a second to import
    from training import evaluate as ev  # noqa: PLC0415
    from training.archive import Archive  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.replay import load_history  # noqa: PLC0415

    scorer = load_scorer(bundle or _champion(registry or loaded.registry, spec), spec, engine)
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
    _show(facts, as_json)
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
    loaded, spec = _setup(settings, pipeline)
    known = None if leave_out_known is None else _duration("--leave-out-known", leave_out_known)
    low, high = _time("--start", start), _time("--end", end)
    if folds < 1:
        raise LeptonError(f"--folds {folds}: expected at least 1")

    from training.progress import Bars  # noqa: PLC0415
    from training.report import Options, write_report  # noqa: PLC0415, figures and engines take seconds to import

    options = Options(
        start_ms=low, end_ms=high, folds=folds, known_ms=known, segments=None if segment is None else tuple(segment),
        amount=amount, command=shlex.join(["python", "-m", "training", *sys.argv[1:]]),
    )  # fmt: skip
    folder = Path(bundle) if bundle not in (None, "champion") else _champion(registry or loaded.registry, spec)
    with Bars() as bars:
        facts = write_report(out, spec, history, folder, options, engine, bars)
    _show({"report": str(out), **facts}, as_json)


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

    version = publishing.publish(registry or load_settings(settings).registry, bundle)
    _show({"version": version}, as_json)


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

    loaded, spec = _setup(settings, pipeline)
    message = publishing.promote(loaded, registry or loaded.registry, spec, version, why=why, notify=notify)
    _show(msgspec.structs.asdict(message), as_json)


def _setup(settings: Path | None, pipeline: str | None) -> tuple[Settings, Pipeline]:
    loaded = load_settings(settings)
    return loaded, load_pipeline(pipeline or loaded.pipeline)


def _champion(registry: Path, pipeline: Pipeline) -> Path:
    from models.registry import Registry  # noqa: PLC0415

    version = Registry(registry).champion(pipeline.name)
    if version is None:
        raise LeptonError(f"{registry}: {pipeline.name} has no champion: expected `python -m training promote` before")
    return Registry(registry).path(pipeline.name, version)


def _time(option: str, text: str) -> int:
    try:
        return from_iso(text)
    except ValueError as error:
        raise LeptonError(f"{option} {text}: expected a time such as 2026-03-01 or 2026-03-01T12:00:00Z") from error


def _duration(option: str, text: str) -> int:
    try:
        return duration_ms(text)
    except ValueError as error:
        raise LeptonError(f"{option} {text}: expected a duration such as 30s, 10m or 7d") from error


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = dict(text.partition("=")[::2] for text in texts)
    for column, field in pairs.items():
        if not column or not field:
            raise LeptonError(f"--columns {column}: expected FILE_COLUMN=FIELD")
    return pairs


def _show(facts: dict[str, Any], as_json: bool) -> None:
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
