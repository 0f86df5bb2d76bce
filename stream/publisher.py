"""What the worker sends: scores, alerts and dead letters, acknowledged by all replicas before it goes on.

Scores of a batch go out as ready-made record batches, a tenth of the cost of sending them one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer

from stream.kafka import client_options, partition_for
from stream.settings import Settings

__all__ = ["Publisher"]

MAX_BATCH_BYTES = 512 * 1024  # half of what Apache Kafka takes unless told otherwise
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
        producer, pending = self._running(), []
        builder = producer.create_batch()
        for key, value in records:
            if builder.append(key=key, value=value, timestamp=None) is None:  # full
                builder.close()
                pending.append(await producer.send_batch(builder, topic, partition=partition))
                builder = producer.create_batch()
                builder.append(key=key, value=value, timestamp=None)
        builder.close()
        pending.append(await producer.send_batch(builder, topic, partition=partition))
        return pending

    async def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[Header] = ()) -> Any:
        """Queue one record; returns what to await for its acknowledgement."""
        producer = self._running()
        partition = None
        if key is not None:
            partition = partition_for(key, len(await producer.partitions_for(topic)))
        return await producer.send(topic, key=key, value=value, partition=partition, headers=list(headers))

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
