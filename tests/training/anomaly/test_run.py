"""`evaluate --protocol` on small benchmarks of the four forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.anomaly.detect import surprise_of
from training.anomaly.run import run
from training.anomaly.series import load_benchmark
from training.cli import app
from training.errors import TrainingError

ROWS, BEGIN, END = 1200, 900, 960


def values(seed: int, channels: int) -> np.ndarray:
    """Noise about a wave, with a jump of all channels where the anomaly is."""
    random = np.random.default_rng(seed)
    values_TC = np.sin(np.arange(ROWS) / 20)[:, None] + 0.1 * random.normal(size=(ROWS, channels))
    values_TC[BEGIN:END] += 4.0
    return values_TC


@pytest.fixture
def nab(tmp_path: Path) -> Path:
    rows = np.arange(ROWS)
    window_T = np.where((rows >= BEGIN) & (rows < END), 0, -1)
    pq.write_table(pa.table({
        "series_id": ["realX/a.csv"] * ROWS, "category": ["realX"] * ROWS, "row": pa.array(rows, pa.int32()),
        "timestamp": pa.array(rows * 300_000_000 + 1_396_342_800_000_000, pa.timestamp("us")),
        "value": values(0, 1)[:, 0], "window_id": pa.array(window_T, pa.int16()), "probation": rows < 180,
    }), tmp_path / "nab_dev.parquet")  # fmt: skip
    return tmp_path


@pytest.fixture
def tsbad(tmp_path: Path) -> Path:
    rows = np.arange(ROWS)
    folder = tmp_path / "tsbad_m"
    folder.mkdir()
    np.savez(folder / "001_X_id_1_Sensor_tr_500_1st_900.npz", x=values(1, 3), y=(rows >= BEGIN) & (rows < END))
    return folder


def test_nab_finds_the_jump_and_writes_its_files(nab: Path) -> None:
    """An onset with the jump's first row is a perfect score; the file holds the onsets, and NAB's columns."""
    facts = run("nab", nab, nab / "out")
    assert all(figure > 80 for figure in facts["figures"].values())
    assert facts["files"] == 1
    lines = (nab / "out/results/lepton/realX/lepton_a.csv").read_text().splitlines()
    assert lines[0] == "timestamp,value,anomaly_score"
    written_T = [float(line.split(",")[2]) for line in lines[1:]]
    assert written_T == surprise_of(load_benchmark("nab", nab)[0]).onset_T.tolist()


def test_tsbad_and_its_command(tsbad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["evaluate", str(tsbad), "--protocol", "tsbad", "--json"], result_action="return_value")
    facts = json.loads(capsys.readouterr().out)
    assert facts["figures"]["VUS-PR"] > 0.7
    assert facts["by series"]["001_X_id_1_Sensor_tr_500_1st_900"]["VUS-PR"] == facts["figures"]["VUS-PR"]


def test_no_data_and_no_files_to_write(tsbad: Path) -> None:
    with pytest.raises(TrainingError, match="--protocol nab: expected a file or a folder"):
        run("nab", None, None)
    with pytest.raises(TrainingError, match="expected with --protocol nab, whose result files it writes"):
        run("tsbad", tsbad, tsbad)
