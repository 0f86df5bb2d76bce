"""Labelled series of the anomaly benchmarks, in one form: what a detector sees, and what its scores are held against.

    nab     Numenta Anomaly Benchmark (Lavin and Ahmad 2015, arXiv:1510.03336): one value, anomaly windows
    skab    Skoltech Anomaly Benchmark (Katser and Kozitsin 2020): eight sensors of a water circuit at 1 Hz
    smd     Server Machine Dataset (Su et al. 2019, OmniAnomaly): 38 metrics; the train part comes before the test part
    tsbad   TSB-AD-M (Liu and Paparrizos 2024): many series of many kinds; the file's name says where training ends

The first three are one Parquet file each, the last a folder of `.npz` with `x` (rows × channels) and `y` (0 or 1).
Rows keep the order of the file: some NAB files step back in time, and their windows count rows. Nothing is scaled,
filled in or left out.

Legend: T rows of a series, C its channels, W its windows.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from models.errors import shorten
from training.errors import TrainingError

__all__ = ["BENCHMARKS", "Series", "load_benchmark", "runs_of"]

SECOND_MS = 1000
TSBAD_NAME = re.compile(r"\d+_(?P<group>.+?)_id_\d+_.*tr_(?P<prefix>\d+)_1st_\d+")
NO_WINDOWS = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Series:
    """One entity's readings in order, with the answers.

    name: unique within a benchmark. group: what figures may be averaged over. values_TC: float64, NaN where missing.
    time_T: int64 epoch ms, or the row's number in seconds (as ms) where the data has no times. label_T: bool.
    prefix: how many rows at the beginning are known to be normal; a detector may fit on them, and they are not scored.
    windows_W2: first and last row of each anomaly, in order. probation: how many rows at the beginning NAB does not
    score, though nobody knows that they are normal; 0 elsewhere.
    """

    name: str
    group: str
    channels: tuple[str, ...]
    values_TC: NDArray[np.float64]
    time_T: NDArray[np.int64]
    label_T: NDArray[np.bool_]
    prefix: int
    windows_W2: NDArray[np.int64]
    probation: int = 0

    def __post_init__(self) -> None:
        rows = len(self.values_TC)
        if self.values_TC.ndim != 2 or self.values_TC.shape[1] != len(self.channels):
            raise TrainingError(
                f"{self.name}: values of shape {self.values_TC.shape}: expected rows × {len(self.channels)} channels"
            )
        for what, length in (("times", len(self.time_T)), ("labels", len(self.label_T))):
            if length != rows:
                raise TrainingError(f"{self.name}: {length} {what}: expected one for each of {rows} rows")
        for what, length in (("prefix", self.prefix), ("probation", self.probation)):
            if not 0 <= length <= rows:
                raise TrainingError(f"{self.name}: {what} of {length} rows: expected 0 to {rows}")
        if np.isinf(self.values_TC).any():
            raise TrainingError(f"{self.name}: a value is infinite: expected a number, or NaN where it is missing")

    def __len__(self) -> int:
        return len(self.values_TC)

    @property
    def scored(self) -> slice:
        """The rows behind the prefix."""
        return slice(self.prefix, len(self))


def load_benchmark(benchmark: str, path: Path) -> list[Series]:
    """All series of `nab`, `skab`, `smd` or `tsbad`, in the order of the file; those of `tsbad` by name.

    path: the Parquet file, or the folder of `.npz`; also a folder that holds just one `<benchmark>*` of that kind.
    Raises TrainingError: unknown benchmark, no such file, a column that is missing, rows out of order.
    """
    if benchmark not in BENCHMARKS:
        raise TrainingError(f"benchmark {shorten(benchmark)}: expected one of {', '.join(BENCHMARKS)}")
    series = list(BENCHMARKS[benchmark](_find(benchmark, path)))
    if not series:
        raise TrainingError(f"{path}: no series: expected at least one of {benchmark}")
    return series


def runs_of(label_T: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(W, 2): first and last row of each run of True.

    >>> runs_of(np.array([True, False, True, True])).tolist()
    [[0, 0], [2, 3]]
    """
    step = np.diff(label_T.astype(np.int8), prepend=0, append=0)
    return np.column_stack([np.flatnonzero(step == 1), np.flatnonzero(step == -1) - 1]).astype(np.int64)


def _nab(path: Path) -> Iterator[Series]:
    table = _read(path, ("series_id", "category", "row", "timestamp", "value", "window_id", "probation"))
    for name, part in _by_series(path, table):
        window_T = _column(part, "window_id", np.int64)
        probation_T = _column(part, "probation", np.bool_)
        probation = int(probation_T.sum())
        if not probation_T[:probation].all():
            raise TrainingError(f"{path}: {name}: probation rows {runs_of(probation_T).tolist()}: expected the first")
        # Two windows may touch, so that runs of labelled rows would join what counts as two.
        windows = [runs_of(window_T == window)[0] for window in np.unique(window_T[window_T >= 0])]
        yield Series(
            name, str(part["category"][0].as_py()), ("value",), _column(part, "value", np.float64)[:, None],
            _times(part), window_T >= 0, 0, np.array(sorted(map(tuple, windows)), np.int64).reshape(-1, 2), probation,
        )  # fmt: skip


def _skab(path: Path) -> Iterator[Series]:
    said = ("series_id", "group", "row", "timestamp", "anomaly", "leaderboard_test")
    table = _read(path, said)
    channels = tuple(name for name in table.column_names if name not in (*said, "changepoint"))
    for name, part in _by_series(path, table):
        label_T = _column(part, "anomaly", np.int8) > 0
        # The leaderboard fits on the first rows of each experiment; a run without a test part is normal throughout.
        prefix = int((~_column(part, "leaderboard_test", np.bool_)).sum())
        yield Series(
            name, str(part["group"][0].as_py()), channels, _channels(part, channels), _times(part), label_T, prefix,
            runs_of(label_T),
        )  # fmt: skip


def _smd(path: Path) -> Iterator[Series]:
    said = ("series_id", "part", "row", "is_anomaly")
    table = _read(path, said)
    channels = tuple(name for name in table.column_names if name not in said)
    parts_of: dict[str, dict[str, pa.Table]] = {}
    for part in table["part"].unique().to_pylist():
        for name, rows in _by_series(path, table.filter(pc.equal(table["part"], part))):
            parts_of.setdefault(name, {})[str(part)] = rows
    for name, parts in parts_of.items():
        if set(parts) != {"train", "test"}:
            raise TrainingError(f"{path}: {name}: parts {sorted(parts)}: expected train and test")
        both = pa.concat_tables([parts["train"], parts["test"]])
        label_T = _column(both, "is_anomaly", np.int8) > 0
        yield Series(
            name, "smd", channels, _channels(both, channels), _seconds(len(both)), label_T, len(parts["train"]),
            runs_of(label_T),
        )  # fmt: skip


def _tsbad(path: Path) -> Iterator[Series]:
    for file in sorted(path.glob("*.npz")):
        match = TSBAD_NAME.fullmatch(file.stem)
        if match is None:
            raise TrainingError(f"{file}: expected a name like 002_MSL_id_1_Sensor_tr_500_1st_900.npz")
        try:
            with np.load(file, allow_pickle=False) as arrays:
                values_TC, label_T = arrays["x"].astype(np.float64), arrays["y"] > 0
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise TrainingError(f"{file}: {error}: expected arrays x (rows × channels) and y (rows)") from error
        values_TC = values_TC[:, None] if values_TC.ndim == 1 else values_TC
        channels = tuple(f"v{number:02d}" for number in range(values_TC.shape[1]))
        yield Series(
            file.stem, match["group"], channels, values_TC, _seconds(len(values_TC)), label_T, int(match["prefix"]),
            runs_of(label_T),
        )  # fmt: skip


BENCHMARKS: dict[str, Callable[[Path], Iterator[Series]]] = {"nab": _nab, "skab": _skab, "smd": _smd, "tsbad": _tsbad}


def _find(benchmark: str, path: Path) -> Path:
    if not path.exists():
        raise TrainingError(f"{path}: no such file or folder: expected the data of {benchmark}")
    if benchmark == "tsbad":
        if path.is_file() or any(path.glob("*.npz")):
            return path.parent if path.is_file() else path
        found = sorted(folder for folder in path.glob("tsbad*") if folder.is_dir())
    else:
        if path.is_file():
            return path
        found = sorted(path.glob(f"{benchmark}*.parquet"))
    if len(found) != 1:
        wanted = "a folder with .npz files" if benchmark == "tsbad" else f"one file {benchmark}*.parquet"
        raise TrainingError(f"{path}: {[file.name for file in found]}: expected {wanted}")
    return found[0]


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TrainingError(f"{path}: {error}: expected a Parquet file") from error
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise TrainingError(f"{path}: no column {', '.join(missing)}: expected {', '.join(columns)}")
    return table


def _by_series(path: Path, table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    for name in table["series_id"].unique().to_pylist():
        part = table.filter(pc.equal(table["series_id"], name)).combine_chunks()
        if not np.array_equal(_column(part, "row", np.int64), np.arange(len(part))):
            raise TrainingError(f"{path}: {name}: rows out of order: expected 0 to {len(part) - 1}")
        yield str(name), part


def _column(table: pa.Table, name: str, dtype: type[np.generic]) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy(zero_copy_only=False)).astype(dtype)


def _channels(table: pa.Table, names: Sequence[str]) -> NDArray[np.float64]:
    return np.column_stack([_column(table, name, np.float64) for name in names])


def _times(table: pa.Table) -> NDArray[np.int64]:
    return np.asarray(table["timestamp"].cast(pa.timestamp("ms")).cast(pa.int64()).to_numpy())


def _seconds(rows: int) -> NDArray[np.int64]:
    return np.arange(rows, dtype=np.int64) * SECOND_MS
