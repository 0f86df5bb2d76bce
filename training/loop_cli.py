"""`python -m training loop`; `training.cli` mounts it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

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

__all__ = ["rehearse"]


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
