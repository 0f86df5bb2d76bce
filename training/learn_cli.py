"""`python -m training pretrain` and `labels-curve`; `training.cli` mounts them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from models.errors import LeptonError
from training.commandline import (
    JsonOption,
    PipelineOption,
    SettingsOption,
    parse_duration,
    parse_time,
    setup,
    show,
)

__all__ = ["labels_curve", "pretrain"]


def pretrain(
    *,
    out: Annotated[Path, Parameter(help="A new folder for what was learnt.")],
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    end: Annotated[str | None, Parameter(help="Only events before this ISO-8601 time; else all.")] = None,
    epochs: int = 4,
    batch: int = 256,
    learning_rate: Annotated[float, Parameter(help="Peak.")] = 3e-3,
    hide: Annotated[float, Parameter(help="Share of the fields that are hidden and restored.")] = 0.15,
    max_windows: Annotated[int, Parameter(help="Windows of real events, about; as many of exchanged ones.")] = 100_000,
    seed: int = 0,
    threads: int = 2,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Learn from events without labels what they are like; `finetune --pretrained` starts from it."""
    from training.pretrain import PretrainRecipe  # noqa: PLC0415, torch takes seconds to import
    from training.pretrain import pretrain as run  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415

    _, spec = setup(settings, pipeline)
    recipe = PretrainRecipe(
        epochs=epochs, batch=batch, learning_rate=learning_rate, hide=hide, max_windows=max_windows, seed=seed,
        threads=threads,
    )  # fmt: skip
    end_ms = None if end is None else parse_time("--end", end)
    with Bars() as bars:
        facts = run(spec, history, out, end_ms=end_ms, recipe=recipe, report=bars)
    show({"pretrained": str(out), **facts}, as_json)


def labels_curve(
    *,
    out: Annotated[Path, Parameter(help="Folder for labels-curve.json and what was pre-trained.")],
    pipeline: PipelineOption = None,
    history: Annotated[Path, Parameter(help="Folder of histories.")] = Path("artifacts/history"),
    shares: Annotated[str, Parameter(help="Of the training labels, comma-separated.")] = "0.01,0.05,0.2,1",
    repeats: Annotated[int, Parameter(help="Seeds that are averaged.")] = 1,
    min_steps: Annotated[int, Parameter(help="Of a training with few labels.")] = 1200,
    pretrained: Annotated[Path | None, Parameter(help="As `pretrain` made it; else it is pre-trained.")] = None,
    pretrain_epochs: int = 4,
    end: Annotated[str | None, Parameter(help="As of this ISO-8601 time; else the history's end.")] = None,
    days: Annotated[float | None, Parameter(help="Days to train on; else all.")] = None,
    gap: Annotated[str | None, Parameter(help="Between training and validation; else the labels' maturity.")] = None,
    validation: Annotated[str, Parameter(help="Length of the part that chooses the epoch.")] = "3d",
    holdout: Annotated[str, Parameter(help="Length of the part that is measured.")] = "4d",
    epochs: int = 6,
    batch: int = 512,
    learning_rate: Annotated[float, Parameter(help="Peak.")] = 4e-3,
    trunk_rate: Annotated[float, Parameter(help="Times that for the trunk.")] = 1.0,
    max_legit: Annotated[int, Parameter(help="Legitimate events kept for training, about.")] = 300_000,
    seed: int = 0,
    threads: int = 2,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Average precision by the share of the training labels, with and without pre-training."""
    from training.archive import Archive  # noqa: PLC0415, torch and pyarrow take seconds to import
    from training.finetune import split_history  # noqa: PLC0415
    from training.fit import Recipe  # noqa: PLC0415
    from training.labels_curve import labels_curve as run  # noqa: PLC0415
    from training.pretrain import PretrainRecipe  # noqa: PLC0415
    from training.progress import Bars  # noqa: PLC0415
    from training.stored import open_history  # noqa: PLC0415

    _, spec = setup(settings, pipeline)
    wanted = _shares(shares)
    past = open_history(Archive(history, spec))
    split = split_history(
        past, end_ms=None if end is None else parse_time("--end", end), days=days,
        gap_ms=None if gap is None else parse_duration("--gap", gap),
        validation_ms=parse_duration("--validation", validation), holdout_ms=parse_duration("--holdout", holdout),
    )  # fmt: skip
    recipe = Recipe(
        epochs=epochs, batch=batch, learning_rate=learning_rate, trunk_rate=trunk_rate, max_legit=max_legit, seed=seed,
        threads=threads,
    )  # fmt: skip
    with Bars() as bars:
        rows = run(
            past, split, out, recipe=recipe, shares=wanted, repeats=repeats, min_steps=min_steps, pretrained=pretrained,
            pretrain=PretrainRecipe(epochs=pretrain_epochs, seed=seed, threads=threads), report=bars,
        )  # fmt: skip
    if as_json:
        show({"curve": rows}, as_json)
    else:
        Console().print(_table(rows))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("share", "labels", "frauds", "AP from scratch", "AP pre-trained", "gain", box=None)
    for row in rows:
        figures = (f"{row['scratch']:.4f}", f"{row['pretrained']:.4f}", f"{row['gain']:+.4f}")
        table.add_row(f"{row['share']:.0%}", f"{row['labels']:,}", f"{row['frauds']:,}", *figures)
    return table


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise LeptonError(f"--shares {text}: expected numbers such as 0.01,0.05,1") from error
