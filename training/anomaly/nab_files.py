"""Scores as files of the Numenta Anomaly Benchmark, for its own program to score.

The layout is the one that the benchmark's wiki ("NAB Entry Points") describes for scores that were made elsewhere:
`results/<detector>/<category>/<detector>_<file>.csv`, with a line for each line of the data file. Beside them the
program wants the detector's name in its `config/thresholds.json`, which its `scripts/create_new_detector.py` writes;
then `python run.py -d <detector> --optimize --score --normalize`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from models.errors import shorten
from training.anomaly.series import Series
from training.errors import TrainingError

__all__ = ["nab_path", "write_nab_files"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")  # of a detector: it becomes part of paths
COLUMNS = ("timestamp", "value", "anomaly_score")


def nab_path(results: Path, detector: str, series: str) -> Path:
    """Where the benchmark looks for a series' scores. series: `<category>/<file>.csv`, as the benchmark names it.

    >>> nab_path(Path("results"), "lepton", "realTweets/Twitter_volume_UPS.csv").as_posix()
    'results/lepton/realTweets/lepton_Twitter_volume_UPS.csv'
    """
    if NAME.fullmatch(detector) is None:
        raise TrainingError(f"detector {shorten(detector)}: expected letters, digits and _ . - for a folder's name")
    name = PurePosixPath(series)
    if len(name.parts) != 2 or name.suffix != ".csv" or ".." in name.parts:
        raise TrainingError(f"series {shorten(series)}: expected <category>/<file>.csv")
    return results / detector / name.parent / f"{detector}_{name.name}"


def write_nab_files(
    results: Path,
    detector: str,
    scored: Iterable[tuple[Series, NDArray[np.floating]]],
    *,
    labels: bool = False,
) -> list[Path]:
    """One file for each series and its scores, in [0, 1], one for each row. Returns the paths, in the order given.

    results: the benchmark's folder of that name. labels: adds the column `label`, 1 within anomaly windows, which the
    files that the benchmark ships have, too. Files that are there are replaced. Raises TrainingError for a series that
    is none of the benchmark's and for bad scores; those before it are written.
    """
    paths = []
    for series, score_T in scored:
        path = nab_path(results, detector, series.name)
        lines = _lines(series, score_T, labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
        paths.append(path)
    return paths


def _lines(series: Series, score_T: NDArray[np.floating], labels: bool) -> list[str]:
    _check(series, score_T)
    time_T = np.char.replace(np.datetime_as_string(series.time_T.astype("datetime64[ms]"), unit="s"), "T", " ")
    # repr gives the shortest text that reads back as the same number, so that no threshold moves.
    value_T = ["" if math.isnan(value) else repr(value) for value in series.values_TC[:, 0].tolist()]
    columns = [time_T.tolist(), value_T, [repr(score) for score in np.asarray(score_T, np.float64).tolist()]]
    if labels:
        columns.append([str(int(label)) for label in series.label_T.tolist()])
    header = ",".join((*COLUMNS, "label") if labels else COLUMNS)
    return [header, *(",".join(row) for row in zip(*columns, strict=True))]


def _check(series: Series, score_T: NDArray[np.floating]) -> None:
    if len(series.channels) != 1:
        raise TrainingError(f"{series.name}: {len(series.channels)} channels: expected one, as all of NAB have")
    if score_T.shape != (len(series),):
        raise TrainingError(f"{series.name}: scores of shape {score_T.shape}: expected ({len(series)},)")
    outside_T = ~((score_T >= 0.0) & (score_T <= 1.0))  # NaN, too
    if outside_T.any():
        row = int(outside_T.argmax())
        raise TrainingError(f"{series.name}: score of row {row} = {score_T[row]}: expected 0 to 1")
