"""A history on disk, read by clock days: the rows, the order and the windows of one in memory, in constant memory."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import training.replay
import training.stored
from models.clock import DAY_MS, HOUR_MS, from_iso
from models.features.encoded import Encoded
from models.pipeline.load import load_pipeline
from training.archive import OFFSET, PARTITION, Archive, Kind, Rows
from training.errors import HistoryError
from training.replay import History, load_history, replay
from training.source import Source
from training.stored import open_history

START_MS = from_iso("2026-03-01T00:00:00Z")
KINDS: tuple[Kind, ...] = ("events", "labels")


def table(archive: Archive, kind: Kind, partition: int, offset_M: Any, time_M: Any, **columns: Any) -> pa.Table:
    """Rows with these columns; the others are null, but for the ids, which say where a row is from."""
    schema, count = archive.schemas[kind], len(offset_M)
    ids = [f"{partition}-{offset}" for offset in offset_M]
    given = {PARTITION: np.full(count, partition), OFFSET: offset_M, archive.time_columns[kind]: time_M}
    given |= {"transaction_id" if kind == "events" else "event_id": ids} | columns
    arrays = [
        pa.array(given[field.name]).cast(field.type) if field.name in given else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.table(arrays, schema=schema)


def write(archive: Archive, kind: Kind, rows: list[pa.Table]) -> None:
    progress = archive.progress()
    batches = [Rows(int(t[PARTITION][0].as_py()), t, int(t[OFFSET][-1].as_py()) + 1) for t in rows]
    archive.append(kind, batches, progress)


def ordered(source: Source, kind: Kind, **bounds: Any) -> list[tuple[int, int, int]]:
    """(clock, partition, offset) of all rows as they come."""
    found: list[tuple[int, int, int]] = []
    for block in source.blocks(kind, **bounds):
        assert len(block) == len(block.table) > 0
        place = (block.table[name].to_pylist() for name in (PARTITION, OFFSET))
        found += zip(block.clock_M.tolist(), *place, strict=True)
    return found


def assert_alike(archive: Archive, bounds: list[int]) -> None:
    """Whatever is asked of the history in memory and of the one on disk, the answers are the same."""
    whole, stored = load_history(archive), open_history(archive)
    for kind in KINDS:
        rows = ordered(whole, kind)
        assert rows == sorted(rows)
        assert ordered(stored, kind) == rows
        assert stored.last_clock_ms(kind) == whole.last_clock_ms(kind)
        for low, high in itertools.pairwise(bounds):
            inside = [row for row in rows if low <= row[0] < high]
            assert ordered(stored, kind, from_ms=low, until_ms=high) == inside
            assert ordered(whole, kind, from_ms=low, until_ms=high) == inside
            assert ordered(stored.known_by(high), kind, from_ms=low) == inside
            assert stored.most_rows(kind, low, high) >= len(inside)
    assert stored.first_event_ms() == whole.first_event_ms()
    assert stored.end_ms() == whole.end_ms()
    assert stored.frauds() == whole.frauds()
    for low, high in itertools.pairwise(bounds):
        assert stored.known_by(high).frauds(low) == whole.known_by(high).frauds(low)
        assert stored.known_by(high).count_events(low, high) == whole.known_by(high).count_events(low, high)
        assert stored.known_by(high).last_clock_ms("events") == whole.known_by(high).last_clock_ms("events")


@pytest.mark.parametrize("block", [1, 40, 65_536])
def test_days_one_after_another_are_the_whole(tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Late events, one from days ahead, three partitions, parts written twice and cut differently: nothing moves."""
    monkeypatch.setattr(training.stored, "BLOCK", block)
    monkeypatch.setattr(training.replay, "BLOCK", max(block, 7))
    archive, rng = Archive(tmp_path, load_pipeline("payments")), np.random.default_rng(1)
    for kind in KINDS:
        for partition in range(3):
            time_M = START_MS + np.sort(rng.integers(0, 9 * DAY_MS, 120))
            time_M[rng.random(120) < 0.2] -= 30 * HOUR_MS
            time_M[60 + partition] += 3 * DAY_MS
            offset_M = np.sort(rng.choice(500, 120, replace=False))
            said = {} if kind == "events" else {
                "event_id": [f"e{n}" for n in rng.integers(0, 60, 120)], "fraud": rng.random(120) < 0.2,
            }  # fmt: skip
            rows = table(archive, kind, partition, offset_M, time_M, **said)
            write(archive, kind, [rows.slice(0, 50), rows.slice(50)])
            archive._write_by_day(kind, Rows(partition, rows.slice(30, 40), 0))
    assert len(load_history(archive).frauds()) > 10
    assert_alike(archive, [START_MS + n * DAY_MS // 2 for n in (0, 3, 4, 11, 30)])


Stream = list[tuple[int, bool]]  # hours since the start, and a verdict
ROW = st.tuples(st.integers(0, 150), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    streams=st.lists(st.lists(ROW, min_size=1, max_size=25), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 24), max_size=3), repeated=st.integers(0, 24), block=st.integers(1, 60),
    bounds=st.lists(st.integers(0, 160), min_size=2, max_size=4),
)  # fmt: skip
def test_any_stream_reads_alike(
    streams: list[Stream], cuts: list[int], repeated: int, block: int, bounds: list[int]
) -> None:
    """Whatever order times come in and however parts are cut, a history on disk is the one in memory."""
    pipeline, before = load_pipeline("payments"), training.stored.BLOCK
    with tempfile.TemporaryDirectory() as folder:
        archive = Archive(Path(folder), pipeline)
        for kind in KINDS:
            for partition, stream in enumerate(streams):
                time_M = START_MS + np.array([hour for hour, _ in stream]) * HOUR_MS
                said = {} if kind == "events" else {
                    "event_id": [f"e{n % 4}" for n in range(len(stream))], "fraud": [fraud for _, fraud in stream],
                }  # fmt: skip
                rows = table(archive, kind, partition, np.arange(len(stream)), time_M, **said)
                borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
                write(archive, kind, [rows.slice(a, b - a) for a, b in itertools.pairwise(borders)])
                if again := rows.slice(repeated, 5):
                    archive._write_by_day(kind, Rows(partition, again, 0))
        try:
            training.stored.BLOCK = block
            assert_alike(archive, sorted(START_MS + hour * HOUR_MS for hour in bounds))
        finally:
            training.stored.BLOCK = before


def test_only_parts_with_wanted_rows_are_opened(tmp_path: Path) -> None:
    """Days before and after a range may be gone from the disk; a part of an earlier day with late rows may not."""
    archive = Archive(tmp_path, load_pipeline("payments"))
    hours = [1, 30, 50, 20, 80, 100]  # the fourth is of the first day and comes on the third
    for offset, hour in enumerate(hours):
        time_M = np.array([START_MS + hour * HOUR_MS])
        write(archive, "events", [table(archive, "events", 0, np.array([offset]), time_M)])
    stored = open_history(archive)
    needed = {"part-0-2-2.parquet", "part-0-3-3.parquet"}
    for part in archive.folder.glob("events/date=*/part-*.parquet"):
        if part.name not in needed:
            part.write_bytes(b"no Parquet")
    third = {"from_ms": START_MS + 2 * DAY_MS, "until_ms": START_MS + 3 * DAY_MS}
    assert [offset for _, _, offset in ordered(stored, "events", **third)] == [2, 3]
    (block,) = stored.blocks("events", **third, columns=["card_id"])
    assert block.table.column_names == [PARTITION, OFFSET, "timestamp", "card_id"]
    with pytest.raises(pa.ArrowInvalid):
        ordered(stored, "events")


def test_a_part_out_of_place_is_named(tmp_path: Path) -> None:
    """A folder or file by another name is an error, not rows that are passed over."""
    archive = Archive(tmp_path, load_pipeline("payments"))
    with pytest.raises(HistoryError, match="no parts: run `python -m training history`"):
        open_history(archive)
    for name in ("date=spring/part-0-0-1.parquet", "date=2026-03-01/part-zero.parquet"):
        part = archive.folder / "events" / name
        part.parent.mkdir(parents=True)
        part.touch()
        with pytest.raises(HistoryError, match=r"part-.*: expected"):
            open_history(archive)
        part.unlink()


def payments(archive: Archive, days: int, a_day: int) -> None:
    """Events of a hundred cards at some merchants, and a verdict on each two days later; one part a day."""
    rng = np.random.default_rng(2)
    for day in range(days):
        offset_M = np.arange(day * a_day, (day + 1) * a_day)
        time_M = START_MS + day * DAY_MS + np.sort(rng.integers(0, DAY_MS, a_day))
        cards = [f"c{n}" for n in rng.integers(0, 100, a_day)]
        merchants = [f"m{n}" for n in rng.integers(0, 20, a_day)]
        amount_M = rng.lognormal(3, 1, a_day).astype(np.float32)
        events = table(archive, "events", 0, offset_M, time_M, card_id=cards, merchant_id=merchants, amount=amount_M)
        said = {"fraud": rng.random(a_day) < 0.02, "profile.merchant": merchants, "value.amount": amount_M}
        labels = table(archive, "labels", 0, offset_M, time_M + 2 * DAY_MS, **said)
        write(archive, "events", [events])
        write(archive, "labels", [labels])


def windows(source: Source, **bounds: Any) -> dict[str, bytes]:
    found = {}
    for part in replay(source, lambda batch: np.ones(len(batch), dtype=bool), **bounds):
        for i, event_id in enumerate(part.batch.event_id):
            found[event_id] = b"".join(getattr(part.encoded, name)[i].tobytes() for name in Encoded.__slots__)
    return found


@pytest.fixture(scope="module")
def ten_days(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    archive = Archive(tmp_path_factory.mktemp("history"), load_pipeline("payments"))
    payments(archive, 10, 300)
    return archive


@pytest.mark.parametrize("block", [1, 1000])
def test_windows_from_disk_are_those_from_memory(
    ten_days: Archive, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, in any blocks, of the whole and from a time within a day to another."""
    monkeypatch.setattr(training.stored, "BLOCK", block)
    whole, stored = load_history(ten_days), open_history(ten_days)
    assert windows(stored) == windows(whole)
    bounds = {"from_ms": START_MS + 5 * DAY_MS // 2, "until_ms": START_MS + 13 * DAY_MS // 2}
    later = windows(stored, **bounds)
    assert later == windows(whole, **bounds)
    assert 1000 < len(later) < 1400


def test_a_later_beginning_is_an_empty_store_at_that_time(ten_days: Archive) -> None:
    """A replay from a time equals one of a history that has nothing before; it differs from one of the whole."""
    whole, from_ms = load_history(ten_days), START_MS + 4 * DAY_MS
    events, labels = whole.event_clock_M >= from_ms, whole.label_clock_M >= from_ms
    rest = History(
        whole.pipeline, whole.events.filter(pa.array(events)), whole.labels.filter(pa.array(labels)),
        whole.event_clock_M[events], whole.label_clock_M[labels],
    )  # fmt: skip
    found = windows(open_history(ten_days), from_ms=from_ms)
    assert found == windows(rest)
    assert found != {name: window for name, window in windows(whole).items() if name in found}


def test_progress_ends_at_its_total(ten_days: Archive) -> None:
    """Of a history on disk the total is not known before; what is reported never passes it, and reaches it."""
    told: list[tuple[int, int]] = []
    bounds = {"from_ms": START_MS + 5 * DAY_MS // 2, "until_ms": START_MS + 13 * DAY_MS // 2}
    list(replay(open_history(ten_days), lambda b: np.zeros(len(b), bool), report=lambda *at: told.append(at), **bounds))
    assert all(done <= total for done, total in told)
    assert told[-1][0] == told[-1][1]


def test_memory_does_not_grow_with_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the days: what Arrow holds while a history on disk is replayed stays; of one in memory it grows."""
    monkeypatch.setattr(training.stored, "BLOCK", 1500)
    peaks: dict[str, list[int]] = {"disk": [], "memory": []}
    for days in (8, 32):
        archive = Archive(tmp_path / str(days), load_pipeline("payments"))
        payments(archive, days, 400)
        for where, load in (("disk", open_history), ("memory", load_history)):
            before = pa.total_allocated_bytes()
            peaks[where].append(0)

            def look(batch: Any, before: int = before, peak: list[int] = peaks[where]) -> Any:
                peak[-1] = max(peak[-1], pa.total_allocated_bytes() - before)
                return np.zeros(len(batch), dtype=bool)

            source: Source = load(archive)
            source.frauds()
            source.count_events()
            assert not list(replay(source, look))
            del source
    assert peaks["disk"][1] < 1.3 * peaks["disk"][0]
    assert peaks["memory"][1] > 2.5 * peaks["memory"][0]
    assert peaks["disk"][1] < peaks["memory"][1] / 3
