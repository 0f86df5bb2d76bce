"""Topics, partitions and connection options."""

from __future__ import annotations

import asyncio
import random
import ssl

import kafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faust.auth import SASLCredentials, SSLCredentials
from kafka import KafkaAdminClient, KafkaConsumer
from kafka.partitioner import murmur2

from models.errors import SettingsError
from models.pipeline.spec import Pipeline
from stream.kafka import (
    TOPICS,
    client_options,
    ensure_topics,
    faust_credentials,
    kafka_python_options,
    partition_for,
)
from stream.settings import Settings, load_settings


def test_partition_is_that_of_every_kafka_client() -> None:
    """`partition_for` agrees with kafka-python's partitioner and with values of the Java client."""
    rng = random.Random(5)
    keys = [rng.randbytes(rng.randrange(40)) for _ in range(500)] + ["käse".encode(), b""]
    for key in keys:
        assert partition_for(key, 7) == (murmur2(key) & 0x7FFFFFFF) % 7
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2: -973932308 and -790332482 as unsigned
    assert [partition_for(key, 1 << 31) for key in (b"21", b"foobar")] == [
        -973932308 & 0x7FFFFFFF,
        -790332482 & 0x7FFFFFFF,
    ]


def test_topics_are_created_once(settings: Settings, pipeline: Pipeline) -> None:
    """All topics exist afterwards with the right number of partitions, and a second call changes nothing."""
    ensure_topics(settings, pipeline)
    ensure_topics(settings.model_copy(update={"partitions": 9}), pipeline)
    admin = KafkaAdminClient(**kafka_python_options(settings))
    try:
        found = admin.describe_topics([pipeline.topic(kind) for kind in TOPICS])
    finally:
        admin.close()
    partitions = {topic["name"]: len(topic["partitions"]) for topic in found}
    assert partitions == {pipeline.topic(kind): 1 if kind == "models" else 4 for kind in TOPICS}


def test_absent_broker_is_named(pipeline: Pipeline) -> None:
    """Without a broker the error names the setting and its value."""
    with pytest.raises(SettingsError, match=r"LEPTON_KAFKA_BROKERS = '127\.0\.0\.1:1': expected a broker that answers"):
        ensure_topics(load_settings(kafka_brokers="127.0.0.1:1"), pipeline, patience_s=1)


def test_sasl_and_tls_reach_all_clients() -> None:
    """The same settings become the options of aiokafka, kafka-python and Faust."""
    settings = load_settings(
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_mechanism="SCRAM-SHA-512",
        kafka_sasl_username="u",
        kafka_sasl_password="p",
        kafka_brokers="a:1, b:2",
    )
    for options in (client_options(settings), kafka_python_options(settings)):
        assert options["bootstrap_servers"] == ["a:1", "b:2"]
        assert options["security_protocol"] == "SASL_SSL"
        assert isinstance(options["ssl_context"], ssl.SSLContext)
        assert options["ssl_context"].verify_mode is ssl.CERT_REQUIRED
        assert (options["sasl_mechanism"], options["sasl_plain_username"], options["sasl_plain_password"]) == (
            "SCRAM-SHA-512", "u", "p",
        )  # fmt: skip
    sasl = faust_credentials(settings)
    assert isinstance(sasl, SASLCredentials)
    assert (sasl.username, sasl.password, sasl.protocol.value) == ("u", "p", "SASL_SSL")
    assert isinstance(faust_credentials(load_settings(kafka_security_protocol="SSL")), SSLCredentials)
    assert faust_credentials(load_settings()) is None


@pytest.mark.parametrize("compression", ["gzip", "lz4", "snappy", "zstd"])
def test_compressed_records_can_be_read(settings: Settings, pipeline: Pipeline, compression: str) -> None:
    """Producers choose the compression: the worker's client and the history's read every one of Kafka's."""
    ensure_topics(settings, pipeline)
    topic, value = pipeline.topic("events"), b"{}" * 500
    asyncio.run(_produce(settings, topic, compression, value))
    assert asyncio.run(_consume(settings, topic)) == value
    consumer = KafkaConsumer(**kafka_python_options(settings), auto_offset_reset="earliest", consumer_timeout_ms=20_000)
    consumer.assign([kafka.TopicPartition(topic, 0)])
    assert next(iter(consumer)).value == value
    consumer.close()


async def _produce(settings: Settings, topic: str, compression: str, value: bytes) -> None:
    producer = AIOKafkaProducer(**client_options(settings), compression_type=compression)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, partition=0)
    finally:
        await producer.stop()


async def _consume(settings: Settings, topic: str) -> bytes:
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        return (await asyncio.wait_for(consumer.getone(), 20)).value
    finally:
        await consumer.stop()
