"""Topics to Parquet: each record once over restarts, from a real broker; promotion reaches the models topic."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from kafka import KafkaProducer

from models.clock import DAY_MS, from_iso, to_iso
from models.codec import Codec
from models.errors import RegistryError
from models.messages import Score, encode
from models.pipeline.spec import Pipeline
from stream.kafka import ensure_topics
from stream.local import LocalServices
from stream.settings import Settings as WorkerSettings
from training.archive import OFFSET, PARTITION, Archive
from training.broker import read_topic, send
from training.errors import HistoryError
from training.history import collect
from training.publish import promote
from training.settings import Settings

START_MS = from_iso("2026-03-01T00:00:00Z")


@pytest.fixture
def broker(settings: WorkerSettings, pipeline: Pipeline, services: LocalServices) -> Settings:
    """Training's settings for the session's broker, on which the pipeline's topics exist."""
    ensure_topics(settings, pipeline)
    return Settings(kafka_brokers=services.kafka_brokers, pipeline=pipeline.name)


def produce(settings: Settings, pipeline: Pipeline, numbers: range) -> None:
    """Payments of five cards with their labels and scores, and one undecodable record among each but the labels."""
    codec = Codec(pipeline)
    producer = KafkaProducer(**settings.kafka_options(), linger_ms=20)
    for n in numbers:
        card, time = f"c{n % 5}", START_MS + n * DAY_MS // 4
        event = codec.encode_event(
            {"transaction_id": f"t{n}", "timestamp": time, "card_id": card, "merchant_id": "m", "amount": 1.0 + n}
        )
        producer.send(pipeline.topic("events"), key=card.encode(), value=event)
        label = codec.encode_label(f"t{n}", time + DAY_MS, n % 7 == 0, {"merchant_id": "m"})
        producer.send(pipeline.topic("labels"), key=f"t{n}".encode(), value=label)
        score = Score(pipeline=pipeline.name, event_id=f"t{n}", entity=card, event_time=to_iso(time), score=n / 100,
                      probability=n / 200, alert=n % 9 == 0, model="20260301T000000-abcdef")  # fmt: skip
        producer.send(pipeline.topic("scores"), key=card.encode(), value=encode(score))
    for kind in ("events", "scores"):
        producer.send(pipeline.topic(kind), key=b"c", value=b"not json")
    producer.flush()
    producer.close()


def test_collecting_resumes_where_it_ended(tmp_path: Path, broker: Settings, pipeline: Pipeline) -> None:
    """Two runs hold each record once, in offset order, and a run with nothing new adds nothing."""
    produce(broker, pipeline, range(60))
    first = collect(broker, pipeline, tmp_path, until_idle_s=1.0)
    assert first.rows == {"events": 60, "labels": 60, "scores": 60}
    assert first.skipped == {"json": 1, "score.format": 1}
    produce(broker, pipeline, range(60, 100))
    second = collect(broker, pipeline, tmp_path, until_idle_s=1.0)
    assert second.rows == {"events": 40, "labels": 40, "scores": 40}
    assert collect(broker, pipeline, tmp_path, until_idle_s=0.5).rows == {"events": 0, "labels": 0, "scores": 0}

    archive = Archive(tmp_path, pipeline)
    events, labels = archive.read("events"), archive.read("labels")
    assert sorted(events["transaction_id"].to_pylist()) == sorted(f"t{n}" for n in range(100))
    assert sorted(labels["event_id"].to_pylist()) == sorted(f"t{n}" for n in range(100))
    at = list(zip(events[PARTITION].to_pylist(), events[OFFSET].to_pylist(), strict=True))
    assert at == sorted(set(at))
    scores = archive.read("scores").to_pylist()
    assert sorted(row["event_id"] for row in scores) == sorted(f"t{n}" for n in range(100))
    row = next(row for row in scores if row["event_id"] == "t45")
    assert (row["entity"], row["alert"], row["model"]) == ("c0", True, "20260301T000000-abcdef")
    assert (row["score"], row["probability"]) == (pytest.approx(0.45), pytest.approx(0.225))
    assert archive.progress().skipped == {"json": 2, "score.format": 2}
    assert (tmp_path / pipeline.name / "events" / "date=2026-03-01").is_dir()


def test_a_broker_or_topic_that_is_not_there_is_named(
    tmp_path: Path, broker: Settings, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which address or topic was tried."""
    missing = msgspec.structs.replace(
        pipeline, pipeline=msgspec.structs.replace(pipeline.pipeline, name=f"{pipeline.name}-x")
    )
    with pytest.raises(HistoryError, match=rf"{missing.name}\.events"):
        collect(broker, missing, tmp_path, until_idle_s=0.5)
    monkeypatch.setattr("training.broker.START_MS", 500)
    nowhere = Settings(kafka_brokers="127.0.0.1:1")
    with pytest.raises(HistoryError, match=r"LEPTON_KAFKA_BROKERS = 127\.0\.0\.1:1"):
        collect(nowhere, pipeline, tmp_path, until_idle_s=0.5)


def test_reading_a_topic_gives_what_was_sent(broker: Settings, pipeline: Pipeline) -> None:
    """A message that was acknowledged is there for the next reader."""
    offset = send(broker, pipeline.topic("models"), b"k", b"v")
    records = list(read_topic(broker, pipeline.topic("models"), 0.5))
    assert [(r.offset, r.key, r.value) for r in records] == [(offset, b"k", b"v")]


def test_promoting_what_was_never_published_changes_nothing(
    tmp_path: Path, broker: Settings, pipeline: Pipeline
) -> None:
    """A refused promotion sends no message to the workers."""
    with pytest.raises(RegistryError):
        promote(broker, tmp_path / "registry", pipeline, "20260301T000000-abcdef", why="test")
    assert list(read_topic(broker, pipeline.topic("models"), 0.5)) == []
