"""Quix Streams: a function applied to each value of a dataframe, answers to two topics.

It hands over one event at a time; there are windows, but no batches of events as they come.
"""

from __future__ import annotations

import tempfile
from typing import Any

from quixstreams import Application

from benchmarks.peers.job import Answer, Job


def main() -> None:
    """Run until the job ends the process."""
    job = Job.from_command_line()
    app = Application(
        broker_address=job.spec.brokers, consumer_group=f"{job.spec.prefix}group", auto_offset_reset="earliest",
        loglevel="ERROR", auto_create_topics=False, use_changelog_topics=False, state_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    events, scores, alerts = (
        app.topic(name, key_deserializer="bytes", value_deserializer="bytes", key_serializer="bytes",
                  value_serializer="bytes")
        for name in (job.spec.events_topic, job.spec.scores_topic, job.spec.alerts_topic)
    )  # fmt: skip

    def score(value: bytes, key: bytes, timestamp: int, _headers: Any) -> Answer:
        return job.one(key, value, timestamp)

    answers = app.dataframe(events).apply(score, metadata=True)
    answers.apply(lambda answer: answer.score).to_topic(scores)
    answers.filter(lambda answer: answer.alert is not None).apply(lambda answer: answer.alert).to_topic(alerts)
    app.run()


if __name__ == "__main__":
    main()
