"""Files become rows, and rows reach the topics in order, at a pace, and no further ahead than was stated."""

from __future__ import annotations

import asyncio
import csv
import datetime
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kafka import KafkaConsumer, TopicPartition

from models.clock import DAY_MS, HOUR_MS, from_iso, to_iso
from models.codec import Codec
from models.errors import LeptonError
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from models.simulate import Simulated, simulate
from stream.kafka import ensure_topics, kafka_python_options, partition_for
from stream.redis import connect
from stream.replay import Offsets, Pace, publish, wait_stored
from stream.replay_file import Rows, read_file
from stream.settings import Settings
from stream.store.keys import Position, event_tag, label_tag, position_key

START = from_iso("2026-01-01")
HEADER = ["transaction_id", "timestamp", "customer", "merchant_id", "amount", "card_present", "is_fraud"]
TABLE = [  # not in order of time; the last row has no time
    ["t2", "2026-01-02T00:00:00Z", "007", "m1", "12.5", "true", "1"],
    ["t1", "2026-01-01 00:00:00", "007", "", "3", "", "0"],
    ["t3", "2026-01-02T00:00:00+00:00", "8", "m1", "much", "no", ""],
    ["t4", "soon", "8", "m1", "1", "no", "1"],
]
RENAME = {"customer": "card_id"}


@pytest.fixture
def payments() -> Pipeline:
    return load_pipeline("payments")


@pytest.fixture(scope="module")
def world() -> Simulated:
    return simulate(seed=3, customers=40, merchants=20, days=8)


def _csv(path: Path, rows: list[list[str]] = TABLE) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return path


def test_csv_in_order_of_time(tmp_path: Path, payments: Pipeline) -> None:
    """Rows come in event-time order, ties as they stood, with text unwrapped and bad values left for the worker."""
    read = read_file(_csv(tmp_path / "x.csv"), payments, columns=RENAME)
    assert read.skipped == 1
    assert read.labels is None
    rows = read.events.read(0, 3)
    assert [row["transaction_id"] for row in rows] == ["t1", "t2", "t3"]
    assert [row["timestamp"] for row in rows] == [START, START + DAY_MS, START + DAY_MS]
    assert [row["card_id"] for row in rows] == ["007", "007", "8"]
    assert [row["amount"] for row in rows] == [3.0, 12.5, "much"]
    assert [row["card_present"] for row in rows] == [None, True, False]
    assert rows[0]["merchant_id"] is None
    assert json.loads(Codec(payments).encode_event(rows[1]))["timestamp"] == "2026-01-02T00:00:00.000Z"


def test_formats_agree(tmp_path: Path, payments: Pipeline) -> None:
    """The same rows in CSV, JSONL and Parquet are the same events and labels."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "transaction_id": [1, 2, 3],
            "timestamp": pandas.to_datetime([START, START + 2000, START + 1000], unit="ms", utc=True),
            "card_id": [5, 6, 5],
            "merchant_id": pandas.array([9, None, 9], dtype="Float64"),
            "amount": [1.5, None, 2.0],
            "latitude": [50.5, None, 51.0],
            "longitude": [8.5, None, 9.0],
            "fraud": [0, 1, 0],
        }
    )
    frame.to_parquet(tmp_path / "x.parquet")
    text = frame.astype({"merchant_id": "Int64"})
    text["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    text.to_csv(tmp_path / "x.csv", index=False)
    text.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    encode = Codec(payments).encode_event
    outcomes = []
    for name in ("x.parquet", "x.csv", "x.jsonl"):
        read = read_file(tmp_path / name, payments, labels="fraud", label_delay_ms=DAY_MS)
        assert read.labels is not None
        events = [
            {k: v if isinstance(v, float) else str(v) for k, v in json.loads(encode(row)).items()}
            for row in read.events.read(0, 3)
        ]
        labels = [(str(r["event_id"]), r["time"] - START - DAY_MS, r["fraud"]) for r in read.labels.read(0, 3)]
        outcomes.append((events, labels))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    events, labels = outcomes[0]
    assert [event["transaction_id"] for event in events] == ["1", "3", "2"]
    assert events[0]["merchant_id"] == "9"  # an integer, although gaps make its column one of floats
    assert set(events[2]) == {"transaction_id", "timestamp", "card_id"}  # missing values are left out
    assert labels == [("1", 0, False), ("3", 1000, False), ("2", 2000, True)]


def test_labels_skip_rows_without_verdict_and_can_be_cut(tmp_path: Path, payments: Pipeline) -> None:
    """Labels arrive after the delay, only where there is a verdict, and a range cuts events and arrivals alike."""
    read = read_file(_csv(tmp_path / "x.csv"), payments, columns=RENAME, labels="is_fraud", label_delay_ms=DAY_MS)
    assert read.labels is not None
    assert [(row["event_id"], row["fraud"]) for row in read.labels.read(0, 9)] == [("t1", False), ("t2", True)]
    (label,) = read.labels.read(1, 2)
    (event,) = (row for row in read.events.read(0, 9) if row["transaction_id"] == label["event_id"])
    assert label["merchant_id"] == "m1"
    assert (label["card_id"], label["amount"]) == (event["card_id"], event["amount"])
    second_day = (START + DAY_MS, START + 2 * DAY_MS)
    assert [row["transaction_id"] for row in read.events.between(*second_day).read(0, 9)] == ["t2", "t3"]
    assert [row["event_id"] for row in read.labels.between(*second_day).read(0, 9)] == ["t1"]


@pytest.mark.parametrize(
    ("name", "text", "case"),
    [
        ("x.csv", "a,b\n1,2\n", ({}, ["x.csv", "'transaction_id'", "a, b"])),
        ("x.csv", "a\n", ({"columns": {"a": "nonsense"}}, ["a=nonsense", "card_id"])),
        (
            "x.csv",
            "transaction_id,timestamp,card_id,merchant_id,amount\n1,yesterday,1,1,1\n",
            ({}, ["'yesterday'", "iso"]),
        ),
        ("x.csv", "transaction_id,timestamp,card_id,merchant_id,amount\n", ({"labels": "no"}, ["'no'", "card_id"])),
        (
            "x.csv",
            "transaction_id,timestamp,card_id,merchant_id,amount,f\n1,2026-01-01,1,1,1,maybe\n",
            ({"labels": "f"}, ["f = 'maybe'", "true, false"]),
        ),
        ("x.csv", "", ({}, ["column names"])),
        ("x.csv", 'transaction_id\n"' + "x\n" * 100_000, ({}, ["x.csv", "CSV", "quotes"])),
        ("x.jsonl", '{"a": 1}\n[1]\n', ({}, ["line 2", "object"])),
        ("x.jsonl", '{"a": ' + "[" * 5000 + "]" * 5000 + "}", ({}, ["line 1", "object"])),
        ("x.parquet", "nonsense", ({}, ["x.parquet", "Parquet"])),
        ("x.xlsx", "", ({}, ["x.xlsx", ".csv, .jsonl"])),
    ],
)
def test_unusable_files_are_named(
    tmp_path: Path, payments: Pipeline, name: str, text: str, case: tuple[dict[str, Any], list[str]]
) -> None:
    """An error names the file, what was found and what was expected."""
    options, words = case
    (tmp_path / name).write_text(text)
    with pytest.raises(LeptonError) as caught:
        read_file(tmp_path / name, payments, **options)
    for word in words:
        assert word in str(caught.value)


def test_parquet_without_a_date_is_named(tmp_path: Path, payments: Pipeline) -> None:
    """A time of day is no moment; that is told as of a text that is none."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"transaction_id": "t", "card_id": "c", "merchant_id": "m", "amount": 1.0}
    for at in (datetime.time(1, 2), datetime.timedelta(hours=1)):
        parquet.write_table(pa.Table.from_pylist([row | {"timestamp": at}]), tmp_path / "x.parquet")
        with pytest.raises(LeptonError, match="first row: expected a time"):
            read_file(tmp_path / "x.parquet", payments)


def _read_topic(settings: Settings, topic: str, count: int) -> dict[int, list[Any]]:
    """The records by partition once `count` have come."""
    consumer = KafkaConsumer(**kafka_python_options(settings), auto_offset_reset="earliest", fetch_max_wait_ms=5)
    consumer.assign([TopicPartition(topic, p) for p in range(settings.partitions)])
    found: dict[int, list[Any]] = {p: [] for p in range(settings.partitions)}
    deadline = time.monotonic() + 20
    while sum(map(len, found.values())) < count and time.monotonic() < deadline:
        for tp, records in consumer.poll(timeout_ms=200).items():
            found[tp.partition] += records
    consumer.close()
    return found


def test_rows_reach_their_partitions_in_order(settings: Settings, pipeline: Pipeline, world: Simulated) -> None:
    """Every row is on its topic once, under its entity, in the key's partition, in order; offsets are reported."""
    ensure_topics(settings, pipeline)
    events, labels = Rows.of_columns(world.events, "timestamp"), Rows.of_columns(world.labels, "time")
    done = asyncio.run(publish(settings, pipeline, events, labels))
    assert (done.events, done.labels, done.unusable) == (len(events), len(labels), 0)
    codec = Codec(pipeline)
    found = _read_topic(settings, pipeline.topic("events"), len(events))
    ids = []
    for partition, records in found.items():
        assert done.next_offsets["events", partition] == len(records)
        decoded = codec.decode([r.value for r in records], np.array([r.timestamp for r in records]))
        assert not decoded.bad
        assert (np.diff(decoded.batch.time_M) >= 0).all()
        assert [r.key.decode() for r in records] == decoded.batch.entity
        assert {partition_for(r.key, settings.partitions) for r in records} == {partition}
        ids += decoded.batch.event_id
    assert sorted(ids) == sorted(world.events["transaction_id"].tolist())
    found = _read_topic(settings, pipeline.topic("labels"), len(labels))
    records = [record for part in found.values() for record in part]
    decoded_labels = codec.decode_labels([r.value for r in records], np.array([r.timestamp for r in records]))
    assert not decoded_labels.bad
    assert sorted(decoded_labels.batch.event_id) == sorted(world.labels["event_id"].tolist())
    assert [r.key.decode() for r in records] == decoded_labels.batch.event_id


def test_rows_without_entity_are_counted(settings: Settings, pipeline: Pipeline, world: Simulated) -> None:
    """A row that cannot be keyed, or that JSON cannot carry, is counted and the others go out."""
    ensure_topics(settings, pipeline)
    rows = [dict(row) for row in world.event_rows()][:5]
    rows[1]["card_id"] = None
    rows[3]["location.latitude"] = rows[3]["location.longitude"] = "north"
    done = asyncio.run(publish(settings, pipeline, Rows.of(rows, "timestamp")))
    assert (done.events, done.unusable) == (3, 2)


def test_rate_is_kept(settings: Settings, pipeline: Pipeline, world: Simulated) -> None:
    """At 100 events a second the last of 60 goes out no earlier than 0.5 s, and not much later."""
    ensure_topics(settings, pipeline)
    start = time.monotonic()
    events = Rows.of_columns(world.events, "timestamp").between(None, None)
    sixty = Rows(events.time_ms[:60], events.read)
    seen: list[int] = []
    asyncio.run(publish(settings, pipeline, sixty, pace=Pace(rate=100), on_progress=lambda p: seen.append(p.events)))
    assert 0.5 < time.monotonic() - start < 5
    assert seen == sorted(seen)
    assert len(seen) >= 30


class PositionKeeper(threading.Thread):
    """Reads both topics and moves the positions in Redis, as a worker that scores nothing."""

    def __init__(self, settings: Settings, pipeline: Pipeline) -> None:
        super().__init__(daemon=True)
        self.pipeline = pipeline
        self.codec, self.redis = Codec(pipeline), connect(settings)
        self.consumer = KafkaConsumer(
            **kafka_python_options(settings), auto_offset_reset="earliest", fetch_max_wait_ms=5
        )
        topics = (pipeline.topic("events"), pipeline.topic("labels"))
        self.consumer.assign([TopicPartition(t, p) for t in topics for p in range(settings.partitions)])
        self.polls: list[list[int]] = []  # clocks of what was not stored yet, at every poll
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            clocks: list[int] = []
            for tp, records in self.consumer.poll(timeout_ms=20, max_records=100_000).items():
                values, append_ms = [r.value for r in records], np.array([r.timestamp for r in records])
                if tp.topic == self.pipeline.topic("events"):
                    tag, times = event_tag(tp.partition), self.codec.decode(values, append_ms).batch.time_M
                else:
                    tag, times = label_tag(tp.partition), self.codec.decode_labels(values, append_ms).batch.time_M
                clocks += times.tolist()
                position = Position(next_offset=records[-1].offset + 1)
                self.redis.set(position_key(self.pipeline.name, tag), position.pack())
            if clocks:
                self.polls.append(clocks)
        self.consumer.close()


def test_followed_rows_stay_within_the_skew(settings: Settings, pipeline: Pipeline, world: Simulated) -> None:
    """Whatever is unstored at one moment lies within the skew, over partitions, events and labels together."""
    ensure_topics(settings, pipeline)
    events, labels = Rows.of_columns(world.events, "timestamp"), Rows.of_columns(world.labels, "time")
    keeper = PositionKeeper(settings, pipeline)
    keeper.start()
    skew_ms = 6 * HOUR_MS
    pace = Pace(follow=True, skew_ms=skew_ms, patience_s=20)
    done = asyncio.run(publish(settings, pipeline, events, labels, pace=pace))
    asyncio.run(wait_stored(settings, pipeline, done.next_offsets, 20))
    keeper.ended.set()
    keeper.join()
    assert sum(map(len, keeper.polls)) == len(events) + len(labels)
    assert max(max(clocks) - min(clocks) for clocks in keeper.polls) < skew_ms
    assert len(keeper.polls) > 10


def test_without_a_worker_following_ends(settings: Settings, pipeline: Pipeline, world: Simulated) -> None:
    """When nothing is stored, replay ends with the partition and the offsets, and has sent no more than two slices."""
    ensure_topics(settings, pipeline)
    events = Rows.of_columns(world.events, "timestamp")
    seen: list[Offsets] = []
    pace = Pace(follow=True, skew_ms=6 * HOUR_MS, patience_s=0.5)
    with pytest.raises(LeptonError, match=rf"no progress for 0\.5 s: partition \d of {pipeline.name}\.events"):
        asyncio.run(
            publish(settings, pipeline, events, pace=pace, on_progress=lambda p: seen.append(dict(p.next_offsets)))
        )
    two_slices = np.searchsorted(events.time_ms, (events.time_ms[0] // (3 * HOUR_MS) + 4) * 3 * HOUR_MS)
    assert 0 < sum(seen[-1].values()) <= two_slices
    assert to_iso(int(events.time_ms[0])).startswith("2026-01-01")
