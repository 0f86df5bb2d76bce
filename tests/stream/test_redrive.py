"""Dead letters go back where they came from, each once, whatever was filtered or bounded before."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from models.errors import LeptonError
from models.pipeline.spec import Pipeline
from stream.kafka import ensure_topics, kafka_python_options, partition_for
from stream.redrive import redrive
from stream.settings import Settings


def _bury(settings: Settings, pipeline: Pipeline, letters: list[tuple[bytes | None, str, str]]) -> None:
    """(key, reason, topic kind) each; the value is its number."""
    producer = KafkaProducer(**kafka_python_options(settings), acks="all")
    for number, (key, reason, kind) in enumerate(letters):
        headers = [
            ("lepton-reason", reason.encode()),
            ("lepton-detail", b"x"),
            ("lepton-topic", pipeline.topic(kind).encode() if kind else b"another.topic"),
            ("lepton-partition", b"2"),
            ("lepton-offset", b"7"),
        ]
        producer.send(
            pipeline.topic("dead-letter"), value=b"%d" % number, key=key, headers=headers, partition=number % 4
        )
    producer.flush()
    producer.close()


def _sent(settings: Settings, topic: str) -> list[tuple[int, bytes | None, bytes]]:
    """(partition, key, value) of all records, in order of value."""
    consumer = KafkaConsumer(**kafka_python_options(settings), auto_offset_reset="earliest", fetch_max_wait_ms=5)
    consumer.assign([TopicPartition(topic, p) for p in range(4)])
    found, quiet_until = [], time.monotonic() + 0.6
    while time.monotonic() < quiet_until:
        for tp, records in consumer.poll(timeout_ms=100).items():
            found += [(tp.partition, r.key, r.value) for r in records]
            quiet_until = time.monotonic() + 0.6
    consumer.close()
    return sorted(found, key=lambda r: int(r[2]))


LETTERS: list[tuple[bytes | None, str, str]] = [
    (b"card-1", "json", "events"),
    (b"card-2", "schema", "events"),
    (None, "json", "events"),
    (b"tx-1", "schema", "labels"),
    (b"card-1", "json", ""),  # names no topic of the pipeline
    (b"card-3", "schema", "events"),
]


@pytest.fixture
def buried(settings: Settings, pipeline: Pipeline) -> Settings:
    ensure_topics(settings, pipeline)
    _bury(settings, pipeline, LETTERS)
    return settings


def test_all_go_back_once(buried: Settings, pipeline: Pipeline) -> None:
    """Original key and bytes reach the original topic, by key or else by partition; a second run sends nothing."""
    done = redrive(buried, pipeline)
    assert (done.reasons, done.foreign) == ({"json": 2, "schema": 3}, 1)
    assert redrive(buried, pipeline).total == 0
    assert _sent(buried, pipeline.topic("events")) == [
        (partition_for(b"card-1", 4), b"card-1", b"0"),
        (partition_for(b"card-2", 4), b"card-2", b"1"),
        (2, None, b"2"),
        (partition_for(b"card-3", 4), b"card-3", b"5"),
    ]
    assert [value for _, _, value in _sent(buried, pipeline.topic("labels"))] == [b"3"]


def test_reasons_one_after_another(buried: Settings, pipeline: Pipeline) -> None:
    """What was redriven by reason is not sent again, and what was passed over is not forgotten."""
    assert redrive(buried, pipeline, reason="schema").reasons == {"schema": 3}
    assert redrive(buried, pipeline, reason="schema").total == 0
    _bury(buried, pipeline, [(b"card-9", "schema", "events")])
    assert redrive(buried, pipeline).reasons == {"json": 2, "schema": 1}
    assert redrive(buried, pipeline, reason="json").total == 0
    values = [value for _, _, value in _sent(buried, pipeline.topic("events"))]
    assert sorted(values) == [b"0", b"0", b"1", b"2", b"5"]  # 0 is also the later one's number


def test_bounded_and_dry_runs(buried: Settings, pipeline: Pipeline) -> None:
    """A dry run counts and moves nothing; bounded runs add up to all, each record once."""
    assert redrive(buried, pipeline, dry_run=True).total == 5
    assert redrive(buried, pipeline, limit=2, dry_run=True).total == 2
    assert [redrive(buried, pipeline, limit=2).total for _ in range(4)] == [2, 2, 1, 0]
    assert [value for _, _, value in _sent(buried, pipeline.topic("events"))] == [b"0", b"1", b"2", b"5"]


def test_missing_topic_is_named(settings: Settings, pipeline: Pipeline) -> None:
    """Without a dead-letter topic the error names it."""
    with pytest.raises(LeptonError, match=f"{pipeline.name}.dead-letter does not exist"):
        redrive(settings, pipeline)


def test_command_prints_json(buried: Settings) -> None:
    """`python -m stream redrive --json` prints counts for programs."""
    command = [sys.executable, "-m", "stream", "redrive", "--pipeline", buried.pipeline, "--dry-run", "--json"]
    variables = {"LEPTON_KAFKA_BROKERS": buried.kafka_brokers, "PATH": ""}
    out = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=variables).stdout
    assert json.loads(out) == {"sent": 5, "reasons": {"json": 2, "schema": 3}, "foreign": 1, "dry_run": True}
