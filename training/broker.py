"""Kafka as training uses it: a consumer that belongs to no group, and one message sent for certain.

The border at which kafka-python's exceptions become this project's.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from training.errors import HistoryError
from training.settings import Settings

__all__ = ["no_broker", "open_consumer", "read_topic", "send"]

FETCH_WAIT_MS = 10  # some brokers sleep half of it on every empty fetch
POLL_MS = 200
START_MS = 10_000
SEND_S = 15.0


def open_consumer(settings: Settings) -> Any:
    """A consumer without a group: it commits nothing and is assigned partitions by hand. Raises HistoryError."""
    try:
        return KafkaConsumer(
            **settings.kafka_options(),
            group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", allow_auto_create_topics=False,
            fetch_max_wait_ms=FETCH_WAIT_MS, max_poll_records=5000, max_partition_fetch_bytes=4 << 20,
            bootstrap_timeout_ms=START_MS,
        )  # fmt: skip
    except KafkaError as error:
        raise no_broker(settings, error) from error


def read_topic(settings: Settings, topic: str, until_idle_s: float) -> Iterator[Any]:
    """Every record of a topic, each partition in order, until none came for `until_idle_s` seconds.

    Raises HistoryError when the broker or the topic is not there.
    """
    consumer = open_consumer(settings)
    try:
        numbers = consumer.partitions_for_topic(topic)
        if not numbers:
            raise HistoryError(f"topic {topic}: the broker does not have it")
        partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        heard = time.monotonic()
        while time.monotonic() - heard < until_idle_s:
            fetched = consumer.poll(timeout_ms=POLL_MS)
            for records in fetched.values():
                yield from records
            if fetched:  # after they were used: the time that took is not idleness
                heard = time.monotonic()
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        consumer.close()


def send(settings: Settings, topic: str, key: bytes, value: bytes) -> int:
    """Send one record and wait until every replica has it; returns its offset. Raises HistoryError."""
    try:
        producer = KafkaProducer(**settings.kafka_options(), acks="all", bootstrap_timeout_ms=START_MS)
    except KafkaError as error:
        raise no_broker(settings, error) from error
    try:
        return int(producer.send(topic, key=key, value=value).get(timeout=SEND_S).offset)
    except KafkaError as error:
        raise no_broker(settings, error) from error
    finally:
        producer.close(timeout=SEND_S)


def no_broker(settings: Settings, error: KafkaError) -> HistoryError:
    """The error for a broker that is away, or has gone."""
    return HistoryError(f"LEPTON_KAFKA_BROKERS = {settings.kafka_brokers}: {error!r}")
