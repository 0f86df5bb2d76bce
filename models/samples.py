"""Write simulated payments or readings to a CSV, JSONL or Parquet file, as a user's own export would look.

Columns are the JSON keys of payments.toml or sensors.toml, times ISO-8601, and of payments three more: `is_fraud` (0 or
1, the truth), `label_time` (when a label arrived, empty if none did) and `pattern` (which fraud); of readings `fault`.
Parquet needs pyarrow, which the `training` extra installs.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.simulate import PATTERNS, Simulated
from models.simulate_machines import FAULTS, Machines

__all__ = ["file_columns", "write_file"]

NO_TIME = np.iinfo(np.int64).min  # NaT as an integer


def write_file(simulated: Simulated | Machines, path: Path) -> None:
    """Write all events, ordered by time. The suffix chooses the format: .csv, .jsonl or .parquet.

    Raises ValueError for another suffix.
    """
    columns = _machine_columns(simulated) if isinstance(simulated, Machines) else file_columns(simulated)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    elif path.suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            for values in zip(*columns.values(), strict=True):
                row = {k: v for k, v in zip(columns, values, strict=True) if v is not None}
                file.write(json.dumps(row) + "\n")
    elif path.suffix == ".parquet":
        import pyarrow  # noqa: PLC0415 (workers are installed without it)
        import pyarrow.parquet  # noqa: PLC0415

        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        raise ValueError(f"{path}: expected a name that ends in .csv, .jsonl or .parquet")


def file_columns(simulated: Simulated) -> dict[str, list[Any]]:
    """The file's columns as Python values, None where a value is missing."""
    events, labels = simulated.events, simulated.labels
    columns: dict[str, list[Any]] = {}
    for name, values in events.items():
        if name == "timestamp":
            columns[name] = _iso(values)
        elif name.startswith("location."):
            columns[name.removeprefix("location.")] = [None if np.isnan(v) else v for v in values.tolist()]
        else:
            columns[name] = values.tolist()
    arrival = dict(zip(labels["event_id"].tolist(), labels["time"].tolist(), strict=True))
    arrivals = np.array([arrival.get(i, NO_TIME) for i in columns["transaction_id"]], dtype=np.int64)
    columns["is_fraud"] = simulated.fraud_N.astype(int).tolist()
    columns["label_time"] = _iso(arrivals)
    columns["pattern"] = [PATTERNS[i] for i in simulated.pattern_N.tolist()]
    return columns


def _machine_columns(machines: Machines) -> dict[str, list[Any]]:
    columns = {
        name: [None if value != value else value for value in values.tolist()]  # noqa: PLR0124, NaN differs from itself
        for name, values in machines.events.items()
    }
    columns["timestamp"] = _iso(machines.events["timestamp"])
    return columns | {"fault": [FAULTS[kind] for kind in machines.fault_N.tolist()]}


def _iso(ms: NDArray[np.int64]) -> list[str | None]:
    texts = np.datetime_as_string(ms.astype("datetime64[ms]"), unit="ms").tolist()
    return [None if text == "NaT" else f"{text}Z" for text in texts]
