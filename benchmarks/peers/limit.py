"""The limit: fetch, decode each event into an object, and produce a message of a score's size for it; nothing else.

aiokafka's `getmany`, one msgspec decoder, and ready-made record batches. What it costs is what no worker on aiokafka
can be cheaper than.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.peers.spec import Spec

PARTITIONS = 4
PAYLOAD = json.dumps({
    "schema": 1, "pipeline": "bench-payments", "event_id": "e0000000", "entity": "entity-0000000", "score": 0.123456789,
    "event_time": "2026-06-01T01:01:00.000Z", "probability": 0.123456789, "alert": False,
    "model": "20261123T125637-abcdef",
}).encode()  # fmt: skip


class Payment(msgspec.Struct, gc=False):
    """The fields of a payment, as the codec reads them."""

    transaction_id: str
    timestamp: str
    card_id: str
    merchant_id: str
    amount: float
    device_id: str | None = None
    merchant_category: str | None = None
    channel: str | None = None
    latitude: float | None = None
    longitude: float | None = None
    card_present: bool | None = None


async def run(spec: Spec) -> None:
    """Write what the counted events cost, and end."""
    decode = msgspec.json.Decoder(Payment).decode
    consumer = AIOKafkaConsumer(bootstrap_servers=spec.brokers, fetch_max_wait_ms=5, auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=spec.brokers, max_batch_size=512 * 1024, linger_ms=2)
    await consumer.start()
    await producer.start()
    consumer.assign([TopicPartition(spec.events_topic, p) for p in range(PARTITIONS)])
    done, began = 0, (0.0, 0.0, 0)
    pending: list[Any] = []
    while done < spec.events:
        for tp, records in (await consumer.getmany(timeout_ms=200, max_records=2048)).items():
            objects = [decode(record.value) for record in records]
            batch = producer.create_batch()
            for record, _ in zip(records, objects, strict=True):
                batch.append(key=record.key, value=PAYLOAD, timestamp=None)
            batch.close()
            pending.append(await producer.send_batch(batch, spec.scores_topic, partition=tp.partition))
            before, done = done, done + len(records)
            if before <= spec.warm_up < done:
                began = (time.process_time(), time.monotonic(), done)
    await asyncio.gather(*pending)
    cpu_s, clock_s, first = began
    facts = {"events": done - first, "cpu_s": time.process_time() - cpu_s, "clock_s": time.monotonic() - clock_s}
    Path(spec.result).write_text(json.dumps(facts), encoding="utf-8")
    await consumer.stop()
    await producer.stop()


if __name__ == "__main__":
    asyncio.run(run(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Spec)))
