"""Loaders against small files of each benchmark's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.anomaly.series import Series, load_benchmark, runs_of
from training.errors import TrainingError

NINE_AM_MS = 1_396_342_800_000  # 2014-04-01 09:00:00 UTC


def stamps(rows: int, step_s: int) -> pa.Array:
    return pa.array([(NINE_AM_MS + t * step_s * 1000) * 1000 for t in range(rows)], pa.timestamp("us"))


def nab_table(name: str, windows: list[int], probation: int) -> pa.Table:
    rows = len(windows)
    return pa.table({
        "series_id": [name] * rows, "category": [str(Path(name).parent)] * rows,
        "row": pa.array(range(rows), pa.int32()), "timestamp": stamps(rows, 300),
        "value": [10.0 + t for t in range(rows)], "window_id": pa.array(windows, pa.int16()),
        "probation": [t < probation for t in range(rows)],
    })  # fmt: skip


def test_nab(tmp_path: Path) -> None:
    """Windows that touch stay two, rows on probation are not called normal, and times are kept."""
    first = nab_table("realX/a.csv", [-1, -1, 0, 0, 1, -1], 2)
    second = nab_table("realY/b.csv", [-1, -1, -1], 1)
    pq.write_table(pa.concat_tables([first, second]), tmp_path / "nab_dev.parquet")
    a, b = load_benchmark("nab", tmp_path)
    assert (a.name, a.group, a.channels, a.prefix, a.probation) == ("realX/a.csv", "realX", ("value",), 0, 2)
    assert a.windows_W2.tolist() == [[2, 3], [4, 4]]
    assert a.label_T.tolist() == [False, False, True, True, True, False]
    assert a.values_TC.tolist() == [[10.0], [11.0], [12.0], [13.0], [14.0], [15.0]]
    assert a.time_T[:2].tolist() == [NINE_AM_MS, NINE_AM_MS + 300_000]
    assert (b.name, b.group, b.probation, b.windows_W2.shape) == ("realY/b.csv", "realY", 1, (0, 2))


def skab_table(name: str, anomalies: list[int], fitted: int) -> pa.Table:
    rows = len(anomalies)
    return pa.table({
        "series_id": [name] * rows, "group": [str(Path(name).parent)] * rows, "row": pa.array(range(rows), pa.int32()),
        "timestamp": stamps(rows, 1), "Current": [0.5 * t for t in range(rows)],
        "Pressure": [None if t == 1 else 7.0 for t in range(rows)], "anomaly": pa.array(anomalies, pa.int8()),
        "changepoint": pa.array([0] * rows, pa.int8()), "leaderboard_test": [t >= fitted for t in range(rows)],
    })  # fmt: skip


def test_skab(tmp_path: Path) -> None:
    """Sensors are all columns that say nothing else; a missing value is NaN; the leaderboard's prefix is normal."""
    path = tmp_path / "other name.parquet"
    tables = [skab_table("anomaly-free/anomaly-free", [0, 0, 0], 3), skab_table("valve1/0", [0, 0, 0, 1, 1], 2)]
    pq.write_table(pa.concat_tables(tables), path)
    free, valve = load_benchmark("skab", path)
    assert (free.prefix, free.windows_W2.tolist()) == (3, [])
    assert (valve.name, valve.group, valve.channels) == ("valve1/0", "valve1", ("Current", "Pressure"))
    assert (valve.prefix, valve.windows_W2.tolist()) == (2, [[3, 4]])
    assert valve.values_TC[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert np.isnan(valve.values_TC[:, 1]).tolist() == [False, True, False, False, False]


def smd_table(name: str, part: str, rows: int, anomalies: set[int]) -> pa.Table:
    return pa.table({
        "series_id": pa.array([name] * rows).dictionary_encode(), "part": pa.array([part] * rows).dictionary_encode(),
        "row": pa.array(range(rows), pa.int32()),
        "v00": pa.array([float(t) for t in range(rows)], pa.float32()), "v01": pa.array([0.25] * rows, pa.float32()),
        "is_anomaly": pa.array([int(t in anomalies) for t in range(rows)], pa.int8()),
    })  # fmt: skip


def test_smd_puts_the_test_part_behind_the_train_part(tmp_path: Path) -> None:
    """Also where the file has them the other way round; the train part is the prefix."""
    parts = [smd_table("machine-1-6", "test", 3, {1}), smd_table("machine-1-6", "train", 4, set())]
    pq.write_table(pa.concat_tables(parts, promote_options="permissive").unify_dictionaries(), tmp_path / "smd.parquet")
    (machine,) = load_benchmark("smd", tmp_path)
    assert (machine.name, machine.prefix, machine.windows_W2.tolist()) == ("machine-1-6", 4, [[5, 5]])
    assert machine.values_TC[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0]
    assert machine.values_TC.dtype == np.float64
    assert machine.time_T.tolist() == [0, 1000, 2000, 3000, 4000, 5000, 6000]


def test_smd_without_a_part_is_refused(tmp_path: Path) -> None:
    pq.write_table(smd_table("machine-1-6", "test", 3, {1}), tmp_path / "smd.parquet")
    with pytest.raises(TrainingError, match=r"machine-1-6: parts \['test'\]: expected train and test"):
        load_benchmark("smd", tmp_path)


def test_tsbad(tmp_path: Path) -> None:
    """Group and prefix are in the name; a folder above the files will do; one column may come without a second axis."""
    folder = tmp_path / "tsbad_m_dev"
    folder.mkdir()
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    np.savez(folder / "063_SMD_id_7_Facility_tr_2_1st_3.npz", x=x, y=np.array([0, 0, 0, 1, 1], np.int8))
    np.savez(folder / "002_CATS_id_1_Sensor_tr_1_1st_2.npz", x=x[:3, 0], y=np.array([0, 0, 1], np.int8))
    cats, smd = load_benchmark("tsbad", tmp_path)
    assert (cats.group, cats.prefix, cats.values_TC.shape, cats.windows_W2.tolist()) == ("CATS", 1, (3, 1), [[2, 2]])
    assert (smd.name, smd.group, smd.prefix) == ("063_SMD_id_7_Facility_tr_2_1st_3", "SMD", 2)
    assert smd.values_TC.tolist() == x.astype(np.float64).tolist()
    assert smd.windows_W2.tolist() == [[3, 4]]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"benchmark 'yahoo': expected one of nab, skab, smd, tsbad"):
        load_benchmark("yahoo", tmp_path)
    with pytest.raises(TrainingError, match=r"nowhere: no such file"):
        load_benchmark("nab", tmp_path / "nowhere")
    with pytest.raises(TrainingError, match=r"\[\]: expected one file nab\*\.parquet"):
        load_benchmark("nab", tmp_path)
    (tmp_path / "skab.parquet").write_bytes(b"text")
    with pytest.raises(TrainingError, match=r"skab\.parquet: .*expected a Parquet file"):
        load_benchmark("skab", tmp_path)
    whole = nab_table("realX/a.csv", [-1, -1, 0], 1)
    pq.write_table(whole.drop_columns(["value"]), tmp_path / "nab.parquet")
    with pytest.raises(TrainingError, match="no column value"):
        load_benchmark("nab", tmp_path)
    pq.write_table(whole.take([0, 2, 1]), tmp_path / "nab.parquet")
    with pytest.raises(TrainingError, match=r"realX/a\.csv: rows out of order: expected 0 to 2"):
        load_benchmark("nab", tmp_path)
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 1)))
    with pytest.raises(TrainingError, match=r"data\.npz: expected a name like"):
        load_benchmark("tsbad", tmp_path)
    (tmp_path / "data.npz").rename(tmp_path / "001_MSL_id_1_Sensor_tr_1_1st_1.npz")
    with pytest.raises(TrainingError, match="expected arrays x"):
        load_benchmark("tsbad", tmp_path)


def test_a_series_whose_parts_do_not_fit_is_refused() -> None:
    values, time, label = np.zeros((3, 1)), np.arange(3), np.zeros(3, bool)
    with pytest.raises(TrainingError, match=r"a: values of shape \(3, 1\): expected rows × 2 channels"):
        Series("a", "g", ("x", "y"), values, time, label, 0, runs_of(label))
    with pytest.raises(TrainingError, match="a: 2 labels: expected one for each of 3 rows"):
        Series("a", "g", ("x",), values, time, label[:2], 0, runs_of(label))
    with pytest.raises(TrainingError, match="a: prefix of 4 rows: expected 0 to 3"):
        Series("a", "g", ("x",), values, time, label, 4, runs_of(label))
    with pytest.raises(TrainingError, match="a: a value is infinite"):
        Series("a", "g", ("x",), values + np.inf, time, label, 0, runs_of(label))


@pytest.mark.parametrize(
    ("label", "runs"),
    [([], []), ([0, 0], []), ([1], [[0, 0]]), ([1, 1, 0, 1], [[0, 1], [3, 3]]), ([0, 1, 1, 1], [[1, 3]])],
)
def test_runs(label: list[int], runs: list[list[int]]) -> None:
    assert runs_of(np.array(label, bool)).tolist() == runs
