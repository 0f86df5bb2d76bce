"""What the worker sends: scores, alerts and dead letters, acknowledged by all replicas before it goes on.

Scores of a batch go out as ready-made record batches, a tenth of the cost of sending them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer

from models.messages import dead_letter_headers
from models.records import BadRecord
from stream.kafka import client_options, partition_for
from stream.settings import Settings

if TYPE_CHECKING:  # replay publishes without loading Faust
    from faust.types import TP

__all__ = ["Publisher", "filled_batches"]

MAX_BATCH_BYTES = 512 * 1024  # half of what Apache Kafka takes unless told otherwise
MAX_RECORD_BYTES = 2 * MAX_BATCH_BYTES - 4096  # of key and value; the rest is for headers
MAX_HASHED_BYTES = 1024  # of a key: no entity is longer, and hashing a megabyte would stall the worker
REQUEST_TIMEOUT_MS = 15_000

Header = tuple[str, bytes]


class Publisher:
    """An aiokafka producer with acks=all; started and stopped by the worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        producer = AIOKafkaProducer(
            **client_options(self._settings),
            acks="all",
            compression_type=self._settings.kafka_compression,
            linger_ms=self._settings.kafka_linger_ms,
            max_batch_size=MAX_BATCH_BYTES,
            max_request_size=2 * MAX_BATCH_BYTES,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        await producer.start()
        self._producer = producer

    async def stop(self) -> None:
        """Send what waits, then close."""
        if self._producer is not None:
            await self._producer.stop()
            self._producer = None

    async def send_batch(self, topic: str, partition: int, records: Sequence[tuple[bytes, bytes]]) -> list[Any]:
        """Queue (key, value) records for one partition; returns what to await for their acknowledgement."""
        producer = self._running()
        return [
            await producer.send_batch(batch, topic, partition=partition) for batch in filled_batches(producer, records)
        ]

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> Any:
        """Queue one record; returns what to await for its acknowledgement.

        A record that only just came in has no room for the headers of a dead letter: its value is cut, and the
        header `lepton-cut` says how long it was.
        """
        producer = self._running()
        key, value, headers = _cut(key, value, headers)
        partition = None
        if key is not None:
            partition = partition_for(key[:MAX_HASHED_BYTES], len(await producer.partitions_for(topic)))
        return await producer.send(topic, key=key, value=value, partition=partition, headers=list(headers))

    async def send_dead_letters(
        self, topic: str, source: TP, records: Sequence[Any], bad: Sequence[BadRecord]
    ) -> list[Any]:
        """Queue the refused ones of a source partition's records, as they came; returns what to await."""
        pending = []
        for refused in bad:
            record = records[refused.index]
            headers = dead_letter_headers(refused.reason, refused.detail, source.topic, source.partition, record.offset)
            pending.append(await self.send(topic, record.key, record.value, headers))
        return pending

    @staticmethod
    async def acknowledged(pending: Sequence[Any]) -> None:
        """Wait for all of them. Raises KafkaError when one was not taken."""
        if pending:
            results = await asyncio.gather(*pending, return_exceptions=True)
            for result in results:
                if isinstance(result, BaseException):
                    raise result

    def _running(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise ConnectionError("the producer is not started: expected a running worker")
        return self._producer


def filled_batches(producer: AIOKafkaProducer, records: Iterable[tuple[bytes, bytes]]) -> Iterator[Any]:
    """The (key, value) records in order, in as few closed record batches as hold them; at least one record."""
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(key=key, value=value, timestamp=None) is None:  # full
            batch.close()
            yield batch
            batch = producer.create_batch()
            batch.append(key=key, value=value, timestamp=None)
    batch.close()
    yield batch


def _cut(
    key: bytes | None, value: bytes | None, headers: Sequence[Header]
) -> tuple[bytes | None, bytes | None, Sequence[Header]]:
    """The record, no larger than brokers take, and with a value when it has no key: aiokafka wants one of them."""
    if key is None and value is None:
        value = b""
    size = len(key or b"") + len(value or b"")
    if size <= MAX_RECORD_BYTES:
        return key, value, headers
    key = None if key is None else key[:MAX_RECORD_BYTES]
    room = MAX_RECORD_BYTES - len(key or b"")
    return key, None if value is None else value[:room], [*headers, ("lepton-cut", str(size).encode())]
