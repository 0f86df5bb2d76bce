"""Files for the benchmark's own program, line by line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from training.anomaly.nab_files import nab_path, write_nab_files
from training.anomaly.series import Series, runs_of
from training.errors import TrainingError

START_MS = 1_424_987_273_000  # 2015-02-26 21:47:53 UTC


def series(name: str, values: list[float]) -> Series:
    rows = len(values)
    label_T = np.arange(rows) == 1
    time_T = START_MS + np.arange(rows, dtype=np.int64) * 300_000
    return Series(name, "g", ("value",), np.array(values)[:, None], time_T, label_T, 0, runs_of(label_T), 1)


def test_a_file_for_each_series_in_the_benchmarks_layout(tmp_path: Path) -> None:
    """Timestamps as the data files have them, and numbers that read back as the same."""
    third = 1 / 3
    paths = write_nab_files(
        tmp_path, "lepton",
        [(series("realTweets/UPS.csv", [3.0, 0.1, float("nan")]), np.array([0.0, third, 1.0])),
         (series("realAdExchange/cpc.csv", [7.5]), np.array([0.25], np.float32))],
    )  # fmt: skip
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "lepton/realTweets/lepton_UPS.csv", "lepton/realAdExchange/lepton_cpc.csv",
    ]  # fmt: skip
    assert paths[0].read_bytes() == (
        b"timestamp,value,anomaly_score\n"
        b"2015-02-26 21:47:53,3.0,0.0\n"
        b"2015-02-26 21:52:53,0.1,0.3333333333333333\n"
        b"2015-02-26 21:57:53,,1.0\n"
    )
    assert paths[1].read_text().splitlines()[1] == "2015-02-26 21:47:53,7.5,0.25"
    with paths[0].open() as file:
        assert float(list(csv.DictReader(file))[1]["anomaly_score"]) == third


def test_labels_are_added_when_asked_for(tmp_path: Path) -> None:
    (path,) = write_nab_files(tmp_path, "d", [(series("a/b.csv", [1.0, 2.0, 3.0]), np.zeros(3))], labels=True)
    lines = path.read_text().splitlines()
    assert lines[0] == "timestamp,value,anomaly_score,label"
    assert [line[-1] for line in lines[1:]] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (np.zeros(2), r"a/b\.csv: scores of shape \(2,\): expected \(3,\)"),
        (np.array([0.0, 1.5, 0.0]), r"a/b\.csv: score of row 1 = 1\.5: expected 0 to 1"),
        (np.array([0.0, 0.0, np.nan]), r"a/b\.csv: score of row 2 = nan"),
    ],
)
def test_bad_scores_are_refused(tmp_path: Path, score: NDArray[np.float64], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        write_nab_files(tmp_path, "lepton", [(series("a/b.csv", [1.0, 2.0, 3.0]), score)])
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.parametrize("name", ["valve1/0", "b.csv", "a/b/c.csv", "../b.csv", "/a/b.csv"])
def test_only_names_of_the_benchmark_become_paths(name: str) -> None:
    with pytest.raises(TrainingError, match=r"expected <category>/<file>\.csv"):
        nab_path(Path("results"), "lepton", name)


@pytest.mark.parametrize("detector", ["", "..", "a/b", ".hidden"])
def test_only_names_of_folders_become_detectors(detector: str) -> None:
    with pytest.raises(TrainingError, match="expected letters, digits"):
        nab_path(Path("results"), detector, "a/b.csv")


def test_a_series_of_many_channels_is_refused(tmp_path: Path) -> None:
    label_T = np.zeros(2, bool)
    many = Series("a/b.csv", "g", ("x", "y"), np.zeros((2, 2)), np.arange(2), label_T, 0, runs_of(label_T))
    with pytest.raises(TrainingError, match="2 channels: expected one"):
        write_nab_files(tmp_path, "lepton", [(many, np.zeros(2))])
