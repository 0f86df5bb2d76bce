"""Send dead-lettered records back to where they came from, once what refused them is mended.

A dead letter keeps the original key and bytes; its headers say the reason and the topic. How far redriving has
come is the committed offset of the group `<pipeline>-redrive`; how far one reason that was redriven by itself is
ahead of that, the one of `<pipeline>-redrive-<reason>`. Order per record: send, acknowledged, commit. So a crash
repeats at most what was sent since the last commit, which the event's id makes harmless, and loses nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from models.errors import LeptonError
from models.pipeline.spec import Pipeline
from stream.kafka import kafka_python_options, no_broker
from stream.settings import Settings

__all__ = ["Redriven", "redrive"]

POLL_MS = 200
BATCH = 500  # records between two commits
PATIENCE_S = 30.0  # for the broker's first answer about a partition
SOURCES = ("events", "labels", "ingest")


@dataclass(slots=True)
class Redriven:
    """What was (or, in a dry run, would be) sent back, by reason; `foreign` letters name no topic of the pipeline."""

    reasons: Counter[str] = field(default_factory=Counter)
    foreign: int = 0

    @property
    def total(self) -> int:
        return sum(self.reasons.values())


@dataclass(slots=True)
class _Progress:
    """Of one dead-letter partition. `end` is the highwater when first seen: what fails again is not chased."""

    position: int  # next record to look at
    end: int | None = None


def redrive(
    settings: Settings, pipeline: Pipeline, reason: str | None = None, limit: int | None = None, dry_run: bool = False
) -> Redriven:
    """Send back dead letters that were there when the command began.

    reason: only those with this reason code. limit: at most so many. dry_run: count, send and commit nothing.
    Raises LeptonError when the topic is missing or the broker does not answer.
    """
    options = kafka_python_options(settings) | {"bootstrap_timeout_ms": round(PATIENCE_S * 1000)}
    group = f"{pipeline.name}-redrive"
    with ExitStack() as stack:
        try:
            admin = stack.enter_context(closing(KafkaAdminClient(**options)))
            producer = stack.enter_context(closing(KafkaProducer(**options, acks="all")))
            consumer = stack.enter_context(closing(KafkaConsumer(
                **options, group_id=f"{group}-{reason}" if reason else group, enable_auto_commit=False,
                auto_offset_reset="earliest", fetch_max_wait_ms=settings.fetch_max_wait_ms,
            )))  # fmt: skip
        except KafkaError as error:
            raise no_broker(settings, error) from error
        return _Run(pipeline, group, admin, consumer, producer, reason, limit, dry_run).run()


@dataclass(slots=True)
class _Run:
    pipeline: Pipeline
    group: str
    admin: Any
    consumer: Any
    producer: Any
    reason: str | None
    limit: int | None
    dry_run: bool
    done: Redriven = field(default_factory=Redriven)
    _offsets: dict[str, dict[TopicPartition, int]] = field(default_factory=dict)

    def run(self) -> Redriven:
        topic = self.pipeline.topic("dead-letter")
        partitions = self.consumer.partitions_for_topic(topic)
        if not partitions:
            raise LeptonError(f"topic {topic} does not exist: expected the pipeline's topics")
        for tp in (TopicPartition(topic, p) for p in sorted(partitions)):
            self._one_partition(tp)
            if self._full:
                break
        return self.done

    @property
    def _full(self) -> bool:
        return self.limit is not None and self.done.total >= self.limit

    def _one_partition(self, tp: TopicPartition) -> None:
        self.consumer.assign([tp])
        handled = self._committed(self.group, tp)
        if self.reason:
            handled = max(handled, self._committed(f"{self.group}-{self.reason}", tp))
        progress = _Progress(handled)
        self.consumer.seek(tp, handled)
        deadline = time.monotonic() + PATIENCE_S
        while not self._full:
            records = self.consumer.poll(timeout_ms=POLL_MS, max_records=BATCH).get(tp, [])
            if progress.end is None:  # the broker's own end_offsets may lie; the fetch's highwater does not
                progress.end = self.consumer.highwater(tp)
                if progress.end is None and time.monotonic() > deadline:
                    raise LeptonError(f"{tp.topic} partition {tp.partition}: expected an answer in {PATIENCE_S:g} s")
            self._batch(tp, progress, records)
            if not self.dry_run and records:
                self.consumer.commit({tp: OffsetAndMetadata(progress.position, "", -1)})
            if progress.end is not None and max(progress.position, self.consumer.position(tp)) >= progress.end:
                return

    def _batch(self, tp: TopicPartition, progress: _Progress, records: list[Any]) -> None:
        sources = {self.pipeline.topic(kind) for kind in SOURCES}
        sent = []
        for record in records:
            if self._full or (progress.end is not None and record.offset >= progress.end):
                break
            progress.position = record.offset + 1
            headers = {name: (value or b"").decode(errors="replace") for name, value in record.headers}
            reason = headers.get("lepton-reason", "")
            if self.reason is None:
                if record.offset < self._committed(f"{self.group}-{reason}", tp):
                    continue  # was redriven when its reason was
            elif self.reason != reason:
                continue
            if headers.get("lepton-topic") not in sources:
                self.done.foreign += 1
                continue
            self.done.reasons[reason] += 1
            if not self.dry_run:
                sent.append(self._send(record, headers))
        for future in sent:
            future.get(timeout=PATIENCE_S)  # raises when the broker refused it: nothing is committed then

    def _send(self, record: Any, headers: dict[str, str]) -> Any:
        """A keyed record goes where its key belongs, one without a key to the partition it was in."""
        partition = headers.get("lepton-partition", "")
        known = self.producer.partitions_for(headers["lepton-topic"]) or set()
        same = int(partition) if record.key is None and partition.isdigit() and int(partition) in known else None
        return self.producer.send(headers["lepton-topic"], value=record.value, key=record.key, partition=same)

    def _committed(self, group: str, tp: TopicPartition) -> int:
        """Where this group stood when the command began; 0 for one that never was."""
        if group not in self._offsets:
            found = self.admin.list_group_offsets(group)[group]
            self._offsets[group] = {key: value.offset for key, value in found.items()}
        return max(0, self._offsets[group].get(tp, 0))
