"""`python -m training rehearse`, `gate` and `backtest`; `training.cli` mounts them."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from models.engines import EngineName
from training.commandline import (
    JsonOption,
    PipelineOption,
    RegistryOption,
    SettingsOption,
    champion,
    parse_duration,
    parse_time,
    setup,
    show,
)

if TYPE_CHECKING:
    from training.loop.gate import Decision

__all__ = ["backtest", "gate", "rehearse"]

REFUSED = 3  # exit code


def rehearse(
    *,
    start: Annotated[str, Parameter(help="ISO-8601; when the first champion is trained.")],
    end: Annotated[str | None, Parameter(help="ISO-8601; else the history's end.")] = None,
    every: Annotated[str, Parameter(help="Between two turns of the loop.")] = "7d",
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    out: Annotated[Path | None, Parameter(help="Keep the registry with all models here.")] = None,
    from_champion: Annotated[
        bool, Parameter(help="Freeze the champion instead of a first model.", negative=())
    ] = False,
    engine: Annotated[EngineName, Parameter(help="That scores.")] = "auto",
    threads: int = 2,
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the loop over a history as if its days were passing now, and compare with a champion that stays."""
    from training.archive import Archive  # noqa: PLC0415, torch and pyarrow take seconds to import
    from training.loop.rehearse import Rehearsal  # noqa: PLC0415
    from training.loop.rehearse import rehearse as run  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.stored import open_history  # noqa: PLC0415

    loaded, spec = setup(settings, pipeline)
    low = parse_time("--start", start)
    past = open_history(Archive(history, spec))
    with tempfile.TemporaryDirectory(prefix="lepton-rehearsal-") as scratch, Bars() as bars:
        plan = Rehearsal(
            pipeline=spec, start_ms=low, every_ms=parse_duration("--every", every), work=out or Path(scratch),
            end_ms=past.end_ms() if end is None else parse_time("--end", end), engine=engine,
            champion=champion(registry or loaded.registry, spec) if from_champion else None, threads=threads,
        )  # fmt: skip
        facts = run(past, plan, bars)
    if as_json:
        show(facts, as_json)
    else:
        _print(facts)


def gate(
    bundle: Annotated[Path, Parameter(help="Folder of the challenger's bundle.")],
    *,
    end: Annotated[str | None, Parameter(help="As of this ISO-8601 time; else the history's end.")] = None,
    against: Annotated[Path | None, Parameter(help="Folder of the bundle to beat; else the champion.")] = None,
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    engine: Annotated[EngineName, Parameter(help="That scores.")] = "auto",
    registry: RegistryOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a bundle before the gate: would it be let in? Exit code 3 when it is refused."""
    from training.archive import Archive  # noqa: PLC0415, torch and pyarrow take seconds to import
    from training.loop.cycle import Turn, described, gate_bundle  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.stored import open_history  # noqa: PLC0415

    loaded, spec = setup(settings, pipeline)
    past = open_history(Archive(history, spec))
    now_ms = past.end_ms() if end is None else parse_time("--end", end)
    beaten = against or champion(registry or loaded.registry, spec)
    with tempfile.TemporaryDirectory(prefix="lepton-gate-") as scratch, Bars() as bars:
        decision = gate_bundle(Turn(spec, beaten, now_ms, Path(scratch), engine=engine), bundle, past, bars)
    if as_json:
        show(described(decision, "by hand", now_ms), as_json)
    else:
        _print_checks(decision)
    if decision.reason is not None:
        sys.exit(REFUSED)


def backtest(
    first: Annotated[Path, Parameter(help="Folder of a bundle.")],
    second: Annotated[Path, Parameter(help="Folder of the bundle that would take its place.")],
    *,
    start: Annotated[str, Parameter(help="ISO-8601; the first event time.")],
    end: Annotated[str, Parameter(help="ISO-8601; the first event time no longer.")],
    threshold: Annotated[float | None, Parameter(help="Of the second; else its own.")] = None,
    amount: Annotated[str | None, Parameter(help="The number field that says what a fraud costs.")] = None,
    changes: Annotated[Path | None, Parameter(help="Write the alerts that appear or vanish here, JSONL.")] = None,
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    engine: Annotated[EngineName, Parameter(help="That scores.")] = "native",
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which alerts would appear and which vanish, had another model scored a stretch of history; and their worth."""
    from models.scorer import load_scorer  # noqa: PLC0415, engines and pyarrow take seconds to import
    from training.archive import Archive  # noqa: PLC0415
    from training.backtest import Backtest  # noqa: PLC0415
    from training.backtest import backtest as run  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.stored import open_history  # noqa: PLC0415

    _, spec = setup(settings, pipeline)
    what = Backtest(
        start_ms=parse_time("--start", start), end_ms=parse_time("--end", end), thresholds=(None, threshold),
        amount=amount,
    )  # fmt: skip
    one, other = (load_scorer(folder, spec, engine) for folder in (first, second))
    past = open_history(Archive(history, spec))
    with Bars() as bars:
        facts = run(past, one, other, what, changes=changes, report=lambda done, total: bars("replay", done, total))
    show(facts, as_json)


def _print_checks(decision: Decision) -> None:
    table = Table("check", "", "found", box=None)
    for check in decision.checks:
        table.add_row(check.name, "ok" if check.ok else "refused", check.detail)
    console = Console()
    console.print(table)
    console.print(f"{decision.challenger}: {'let in' if decision.reason is None else f'refused for {decision.reason}'}")


def _print(facts: dict[str, Any]) -> None:
    reasons = {decision["at"]: decision["reason"] or "let in" for decision in facts["decisions"]}
    table = Table("from", "frauds", "AP frozen", "AP with the loop", "turn", "champion", box=None)
    for step in facts["steps"]:
        figures = (f"{step['frozen']:.4f}", f"{step['loop']:.4f}")
        table.add_row(
            step["from"][:10], f"{step['frauds']:,}", *figures, reasons.get(step["from"], ""), step["champion"]
        )
    console = Console()
    console.print(table)
    show({name: facts[name] for name in ("average_precision", "promoted", "turns")}, False)
