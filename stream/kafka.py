"""How this project's Kafka clients are set up: connection options, topics, and which partition a key has.

Sends and receives nothing itself. Options are for aiokafka (`client_options`), for kafka-python
(`kafka_python_options`) and for Faust (`faust_credentials`); all three come from the same settings.
"""

from __future__ import annotations

import contextlib
import ssl
from functools import lru_cache
from typing import Any

from aiokafka.partitioner import murmur2
from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError

from models.errors import SettingsError, shorten
from models.pipeline.spec import Pipeline
from stream.settings import Settings

__all__ = [
    "TOPICS",
    "broker_addresses",
    "client_options",
    "ensure_topics",
    "faust_credentials",
    "kafka_python_options",
    "no_broker",
    "partition_for",
]

TOPICS = ("events", "labels", "alerts", "scores", "dead-letter", "models", "ingest")


def broker_addresses(settings: Settings) -> list[str]:
    """The brokers as host:port."""
    return [broker.strip() for broker in settings.kafka_brokers.split(",")]


def client_options(settings: Settings) -> dict[str, Any]:
    """Connection options of AIOKafkaConsumer and AIOKafkaProducer."""
    options: dict[str, Any] = {
        "bootstrap_servers": broker_addresses(settings),
        "security_protocol": settings.kafka_security_protocol,
        "ssl_context": _ssl_context(settings),
    }
    return options | _sasl(settings)


def kafka_python_options(settings: Settings) -> dict[str, Any]:
    """Connection options of kafka-python's consumer, producer and admin client."""
    options: dict[str, Any] = {
        "bootstrap_servers": broker_addresses(settings),
        "security_protocol": settings.kafka_security_protocol,
    }
    context = _ssl_context(settings)
    if context is not None:
        options["ssl_context"] = context
    return options | _sasl(settings)


def faust_credentials(settings: Settings) -> Any:
    """What Faust's `broker_credentials` setting takes; None for a plain connection."""
    # A second to import, and only a worker needs it.
    from faust.auth import SASLCredentials, SSLCredentials  # noqa: PLC0415

    context = _ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL"):
        sasl = _sasl(settings)
        return SASLCredentials(
            username=sasl["sasl_plain_username"],
            password=sasl["sasl_plain_password"],
            mechanism=sasl["sasl_mechanism"],
            ssl_context=context,
        )
    return SSLCredentials(context=context) if context is not None else None


def ensure_topics(settings: Settings, pipeline: Pipeline, patience_s: float = 15) -> None:
    """Create the pipeline's topics that do not exist yet; those that do stay as they are.

    `.models` is compacted and has one partition, the others `settings.partitions`. Several processes may
    call it at once. Raises SettingsError when no broker answers within `patience_s`.
    """
    try:
        admin = KafkaAdminClient(**kafka_python_options(settings), bootstrap_timeout_ms=round(patience_s * 1000))
    except KafkaError as error:
        raise no_broker(settings, error) from error
    try:
        existing = set(admin.list_topics())
        for kind in TOPICS:
            topic = pipeline.topic(kind)
            if topic not in existing:
                _create(admin, topic, kind, settings)
    finally:
        admin.close()


def _create(admin: KafkaAdminClient, topic: str, kind: str, settings: Settings) -> None:
    wanted: dict[str, Any] = {
        "num_partitions": 1 if kind == "models" else settings.partitions,
        "replication_factor": settings.replication_factor,
    }
    if kind == "models":
        wanted["configs"] = {"cleanup.policy": "compact"}
    with contextlib.suppress(TopicAlreadyExistsError):  # another process was faster
        admin.create_topics({topic: wanted}, wait_for_metadata=True)


def no_broker(settings: Settings, error: Exception) -> SettingsError:
    """The error for a client that could not connect."""
    brokers = shorten(settings.kafka_brokers)
    return SettingsError(f"LEPTON_KAFKA_BROKERS = {brokers}: expected a broker that answers ({type(error).__name__})")


@lru_cache(maxsize=65_536)  # entities come back; pure-Python hashing costs some µs
def partition_for(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner (murmur2) gives a record with this key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _sasl(settings: Settings) -> dict[str, Any]:
    if not settings.kafka_security_protocol.startswith("SASL") or settings.kafka_sasl_password is None:
        return {}
    return {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_sasl_username,
        "sasl_plain_password": settings.kafka_sasl_password.get_secret_value(),
    }


def _ssl_context(settings: Settings) -> ssl.SSLContext | None:
    if "SSL" not in settings.kafka_security_protocol.split("_"):
        return None
    context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
    if settings.kafka_ssl_certfile is not None:
        context.load_cert_chain(settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
    return context
