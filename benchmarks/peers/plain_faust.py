"""Plain Faust as its documentation shows it: one agent, one event at a time, answers through Faust's producer.

redis-py is called without asyncio, which costs half as much CPU a call; nothing else waits in this process.
"""

from __future__ import annotations

import sys
from typing import Any

import faust

from benchmarks.peers.job import Job

job = Job.from_command_line()
app = faust.App(
    job.spec.prefix.strip(":"), broker=f"kafka://{job.spec.brokers}", store="memory://", web_enabled=False,
    consumer_auto_offset_reset="earliest", topic_allow_declare=False, topic_disable_leader=True,
    broker_session_timeout=6, broker_heartbeat_interval=1.5, producer_linger=0.02,
)  # fmt: skip
raw: dict[str, Any] = {
    "key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw",
}  # fmt: skip
events = app.topic(job.spec.events_topic, **raw)
scores = app.topic(job.spec.scores_topic, **raw)
alerts = app.topic(job.spec.alerts_topic, **raw)


@app.agent(events)
async def score(stream: Any) -> None:
    """Every event by itself."""
    async for event in stream.events():
        answer = job.one(event.key, event.value, int(event.message.timestamp * 1000))
        await scores.send(key=answer.key, value=answer.score)
        if answer.alert is not None:
            await alerts.send(key=answer.key, value=answer.alert)


if __name__ == "__main__":
    sys.argv = sys.argv[:1]
    faust.Worker(app, loglevel="ERROR", redirect_stdouts=False, quiet=True).execute_from_commandline()
