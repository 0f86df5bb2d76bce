"""Bytewax: a dataflow from Kafka to Kafka with its own connectors, by event or by the batch its source emits.

`flat_map` is the way its documentation shows; `flat_map_batch` hands the mapper what the source took from Kafka at
once, up to 1,000 events: the best a user of it can do.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main

from benchmarks.peers.job import Answer, Job


def build(job: Job, by_batch: bool) -> Dataflow:
    """The dataflow of one worker in one thread."""
    brokers = [job.spec.brokers]
    flow = Dataflow("scoring")
    source = op.input("events", flow, KafkaSource(brokers, [job.spec.events_topic]))

    def one(message: Any) -> Iterator[KafkaSinkMessage]:
        yield from _messages(job, job.one(message.key, message.value, message.timestamp[1]))

    def many(messages: list[Any]) -> Iterator[KafkaSinkMessage]:
        columns = [m.key for m in messages], [m.value for m in messages], [m.timestamp[1] for m in messages]
        for answer in job.many(*columns):
            yield from _messages(job, answer)

    answers = op.flat_map_batch("score", source, many) if by_batch else op.flat_map("score", source, one)
    op.output("answers", answers, KafkaSink(brokers, None))
    return flow


def _messages(job: Job, answer: Answer) -> Iterator[KafkaSinkMessage]:
    yield KafkaSinkMessage(answer.key, answer.score, topic=job.spec.scores_topic)
    if answer.alert is not None:
        yield KafkaSinkMessage(answer.key, answer.alert, topic=job.spec.alerts_topic)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cli_main(build(Job.from_command_line(), sys.argv[2] == "batch"))
