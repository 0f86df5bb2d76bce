"""The history on disk: each record once, whatever happens to the writer; a file imports as a stream would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from models.clock import DAY_MS, from_iso
from models.codec import Codec, columns_to_batch
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from training.archive import OFFSET, PARTITION, Archive, milliseconds
from training.errors import HistoryError
from training.history import import_file
from training.rows import Records, RowMaker
from training.tables import Mapped, read_file

START_MS = from_iso("2026-03-01T00:00:00Z")


def payment(number: int, time_ms: int) -> dict[str, object]:
    """One payment with every kind of field, some of them missing on odd ones."""
    row: dict[str, object] = {
        "transaction_id": f"t{number}", "timestamp": time_ms, "card_id": f"c{number % 3}",
        "merchant_id": f"m{number % 2}", "amount": 10.1 + number,
    }  # fmt: skip
    if number % 2 == 0:
        row |= {"channel": "chip", "location.latitude": 48.1, "location.longitude": 11.5, "card_present": True}
    return row


def records(pipeline: Pipeline, partition: int, offsets: range) -> Records:
    """Records of a partition, half a day apart."""
    codec = Codec(pipeline)
    times = np.array([START_MS + o * DAY_MS // 2 for o in offsets], dtype=np.int64)
    rows = [payment(o, t) for o, t in zip(offsets, times.tolist(), strict=True)]
    return Records(partition, np.array(offsets, dtype=np.int64), times, [codec.encode_event(r) for r in rows],
                   [str(r["card_id"]).encode() for r in rows])  # fmt: skip


def test_rows_come_back_as_the_worker_decodes_them(tmp_path: Path) -> None:
    """Reading the history gives the very batch that decoding the records gives: values, hashes and keys."""
    pipeline = load_pipeline("payments")
    archive, maker = Archive(tmp_path, pipeline), RowMaker(pipeline)
    block = records(pipeline, 2, range(7))
    archive.append("events", [maker.rows("events", block)], archive.open_to_write())
    table = archive.read("events")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    columns["timestamp"] = milliseconds(table["timestamp"])
    batch = columns_to_batch(maker.layout, columns)
    expected = maker.codec.decode(block.values, block.append_M).batch
    assert batch.event_id == expected.event_id
    assert batch.profile_keys == expected.profile_keys
    np.testing.assert_array_equal(batch.values_MV, expected.values_MV)
    np.testing.assert_array_equal(batch.hashes_MK, expected.hashes_MK)
    np.testing.assert_array_equal(batch.time_M, expected.time_M)


def test_bad_records_are_counted_and_left_out(tmp_path: Path) -> None:
    """What the worker dead-letters is not trained on, and the reader learns how many there were."""
    pipeline = load_pipeline("payments")
    maker = RowMaker(pipeline)
    block = records(pipeline, 0, range(4))
    values = [block.values[0], b"{", None, block.values[3]]
    keys = [b"c0", b"c1", b"c2", b"not the card"]
    rows = maker.rows("events", Records(0, block.offset_M, block.append_M, values, keys))
    assert rows.table[OFFSET].to_pylist() == [0]
    assert rows.next_offset == 4
    assert maker.skipped == {"json": 1, "empty": 1, "key": 1}


def test_an_event_with_an_unreadable_member_nobody_reads_is_kept() -> None:
    """What the worker scores is in the history, too: a number too large for any float stands where no field looks."""
    pipeline = load_pipeline("payments")
    block = records(pipeline, 0, range(2))
    values = [block.values[0][:-1] + b',"note":1e999}', block.values[1]]
    maker = RowMaker(pipeline)
    rows = maker.rows("events", Records(0, block.offset_M, block.append_M, values, None))
    expected = RowMaker(pipeline).rows("events", block)
    assert rows.table.equals(expected.table)
    assert maker.skipped == {}


def test_a_crash_between_parts_and_progress_leaves_each_row_once(tmp_path: Path) -> None:
    """Parts written without their progress are fetched again, cut differently, and no row appears twice."""
    pipeline = load_pipeline("payments")
    archive, maker = Archive(tmp_path, pipeline), RowMaker(pipeline)
    progress = archive.open_to_write()
    archive.append("events", [maker.rows("events", records(pipeline, 0, range(3)))], progress)
    lost = archive.progress()
    archive.append("events", [maker.rows("events", records(pipeline, 0, range(3, 9)))], lost)
    archive._save(progress)  # as if the process had died before it wrote the second progress
    # a reader that comes before the writer has tidied up sees each row once as well
    archive._write_by_day("events", maker.rows("events", records(pipeline, 0, range(3, 5))))
    assert archive.read("events")[OFFSET].to_pylist() == list(range(9))

    again = Archive(tmp_path, pipeline)
    resumed = again.open_to_write()
    assert resumed.next_offset["events"] == {0: 3}
    assert again.read("events")[OFFSET].to_pylist() == [0, 1, 2]
    again.append("events", [maker.rows("events", records(pipeline, 0, range(3, 7)))], resumed)
    again.append("events", [maker.rows("events", records(pipeline, 1, range(2)))], resumed)
    table = again.read("events")
    assert list(zip(table[PARTITION].to_pylist(), table[OFFSET].to_pylist(), strict=True)) == [
        *((0, o) for o in range(7)), (1, 0), (1, 1),
    ]  # fmt: skip


def test_a_history_of_another_format_is_refused(tmp_path: Path) -> None:
    """A progress file this version cannot read is an error that names it, not an empty history."""
    archive = Archive(tmp_path, load_pipeline("payments"))
    archive.folder.mkdir()
    (archive.folder / "progress.json").write_text('{"format": 2}')
    with pytest.raises(HistoryError, match=r"progress\.json: format = 2: expected 1"):
        archive.open_to_write()
    with pytest.raises(HistoryError, match="python -m training history"):
        archive.read("events")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_file_imports_in_event_time_order_with_its_labels(tmp_path: Path, suffix: str) -> None:
    """Unordered rows, columns of other names and numbers as identifiers become the history of a stream."""
    file = tmp_path / f"export{suffix}"
    frame = pd.DataFrame({
        "tx": [3, 1, 2], "timestamp": ["2026-03-03T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-02 12:00:00"],
        "card_id": ["c", "a", "b"], "merchant_id": [9, 7, 8], "amount": [3.5, 1.5, 2.5], "is_fraud": [0, 1, None],
        "merchant_category": pd.array([None, 5812, 4111], "Int64"),
        "latitude": [None, 1.0, 2.0], "longitude": [None, 3.0, 4.0],
    })  # fmt: skip
    writers = {".csv": lambda: frame.to_csv(file, index=False), ".parquet": lambda: frame.to_parquet(file),
               ".jsonl": lambda: frame.to_json(file, orient="records", lines=True)}  # fmt: skip
    writers[suffix]()
    pipeline = load_pipeline("payments")
    mapped = Mapped(
        read_file(file), pipeline, labels="is_fraud", label_delay_ms=DAY_MS, columns={"tx": "transaction_id"}
    )
    result = import_file(pipeline, tmp_path / "history", mapped)
    assert result.rows == {"events": 3, "labels": 2, "scores": 0}
    assert result.skipped == {}
    archive = Archive(tmp_path / "history", pipeline)
    events, labels = archive.read("events"), archive.read("labels")
    assert events["transaction_id"].to_pylist() == ["1", "2", "3"]
    assert events["merchant_id"].to_pylist() == ["7", "8", "9"]
    assert events["merchant_category"].to_pylist() == ["5812", "4111", None]
    assert events["location.longitude"].to_pylist() == [3.0, 4.0, None]
    assert labels["event_id"].to_pylist() == ["1", "3"]
    assert labels["fraud"].to_pylist() == [True, False]
    assert labels["profile.merchant"].to_pylist() == ["7", "9"]
    assert milliseconds(labels["label_time"]).tolist() == [START_MS + DAY_MS, START_MS + 3 * DAY_MS]
    with pytest.raises(HistoryError, match="a history already"):
        import_file(pipeline, tmp_path / "history", mapped)


def test_a_missing_column_is_named_with_what_the_file_has() -> None:
    """The message is enough to write the --columns option."""
    frame = pd.DataFrame({"transaction_id": [1], "timestamp": ["2026-03-01"], "card_id": ["a"], "shop": ["x"]})
    with pytest.raises(HistoryError, match=r"merchant_id.*the file has transaction_id, timestamp, card_id, shop"):
        Mapped(frame, load_pipeline("payments"))


def test_labels_keep_their_amounts_and_older_histories_have_none(tmp_path: Path) -> None:
    """A column that parts from before lack is read as missing, beside parts that have it."""
    pipeline = load_pipeline("payments")
    archive, maker = Archive(tmp_path, pipeline), RowMaker(pipeline)
    values = [maker.codec.encode_label(f"t{i}", START_MS + i, True, {"amount": 0.1 + i} if i else {}) for i in range(2)]
    progress = archive.open_to_write()
    for first in (0, 2):
        offset_M = np.arange(first, first + 2)
        rows = maker.rows("labels", Records(0, offset_M, np.full(2, START_MS + 9), values, None))
        archive.append("labels", [rows], progress)
    (older, _) = sorted((archive.folder / "labels").glob("date=*/part-*.parquet"))
    pq.write_table(pq.read_table(older, partitioning=None).drop_columns(["value.amount", "profile.card"]), older)
    table = archive.read("labels")
    assert table["value.amount"].to_pylist() == [None, None, None, 1.1]
    assert table["event_id"].to_pylist() == ["t0", "t1"] * 2
