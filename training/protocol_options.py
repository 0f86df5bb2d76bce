"""What `python -m training evaluate --protocol` can be told, beside what `evaluate` can be told anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

__all__ = ["Architecture", "ProtocolName", "ProtocolOptions"]

ProtocolName = Literal["handbook", "nab", "skab", "smd", "tsbad"]
Architecture = Literal["gru", "transformer", "cnn"]


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Options of a protocol; durations as in pipeline files."""

    labels: Annotated[str | None, Parameter(help="The column with the verdict; else named as in messages.")] = None
    label_delay: Annotated[str | None, Parameter(help="From an event to its label; else the labels' maturity.")] = None
    label_time: Annotated[str | None, Parameter(help="The column that says when a label arrived.")] = None
    columns: Annotated[list[str] | None, Parameter(help="FILE_COLUMN=FIELD.", negative=())] = None
    architecture: Annotated[
        list[Architecture], Parameter(help="Detectors; else the pipeline's.", negative=(), consume_multiple=True)
    ] = field(default_factory=list)
    baselines: Annotated[bool, Parameter(help="Also LightGBM and XGBoost.")] = True
    first_test: Annotated[str | None, Parameter(help="The day the first test week begins; docs/training.md.")] = None
    train_days: Annotated[float | None, Parameter(help="Days to train on; else all.")] = None
    gap: Annotated[str, Parameter(help="Between training and validation.")] = "0s"
    validation: Annotated[str, Parameter(help="Length of the part that chooses.")] = "3d"
    holdout: Annotated[str, Parameter(help="Length of the part for calibration.")] = "4d"
    refit: Annotated[bool, Parameter(help="Train again on everything that had matured.")] = True
    epochs: int = 6
    batch: int = 512
    learning_rate: float = 4e-3
    max_legit: int = 500_000
    seed: int = 0
    threads: int = 2
    out: Annotated[Path | None, Parameter(help="Folder for results and scores.")] = None
    checkpoint: Annotated[Path | None, Parameter(help="Folder from which a killed evaluation goes on.")] = None
