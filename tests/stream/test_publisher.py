"""Ready-made record batches: what is sent arrives, in order, compressed or not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.record.default_records import DefaultRecordBatch

from models.pipeline.spec import Pipeline
from stream.kafka import ensure_topics
from stream.publisher import Publisher, filled_batches
from tests.conftest import MakeSettings
from tests.support import read_topic

RECORDS = [(f"k{i}".encode(), b'{"score":%d,"text":"%s"}' % (i, b"x" * 300)) for i in range(4000)]


@pytest.mark.parametrize(("name", "attribute"), [(None, 0), ("gzip", 1), ("snappy", 2), ("lz4", 3), ("zstd", 4)])
def test_batches_arrive_in_every_compression(
    make_settings: MakeSettings, pipeline: Pipeline, name: str | None, attribute: int
) -> None:
    """More records than a record batch holds are read again as they were, whatever the setting."""
    settings = make_settings(kafka_compression=name, partitions=1)
    ensure_topics(settings, pipeline)
    topic = pipeline.topic("scores")

    async def run() -> list[Any]:
        publisher = Publisher(settings)
        await publisher.start()
        try:
            sent = [bytes(batch._build()) for batch in filled_batches(publisher._running(), RECORDS)]
            assert {DefaultRecordBatch(batch).compression_type for batch in sent} == {attribute}
            pending = await publisher.send_batch(topic, 0, RECORDS)
            assert len(pending) > 1
            await publisher.acknowledged(pending)
        finally:
            await publisher.stop()
        return await read_topic(settings, topic, lambda records: len(records) >= len(RECORDS), 30)

    assert [(record.key, record.value) for record in asyncio.run(run())] == RECORDS
