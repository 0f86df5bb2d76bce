"""The same job by our worker, by other frameworks, and by nothing but fetch, decode and produce: in one run.

Same broker, Redis, events, features and weights; one process each, on the core the worker had. Each has its own keys
in Redis, filled with the same past, and topics of its own with the first events of the worker's backlog: peers are
slow, so they get fewer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from kafka import KafkaAdminClient

from benchmarks.harness import ROOT, Report, expect, on_core, progress
from benchmarks.options import DEFAULTS, Options
from benchmarks.peers.environment import peer_python
from benchmarks.peers.spec import Result, Spec
from benchmarks.rig import Rig
from benchmarks.throughput import OBJECTIVE_MS, TAIL, WARM_UP
from benchmarks.topics import Sender, read_all
from benchmarks.workloads import uniform
from models.errors import LeptonError
from stream.kafka import kafka_python_options

__all__ = ["peers"]

EVENTS, QUICK, LIMIT = 150_000, 20_000, 60_000
TOLERANCE = 1e-5  # of a peer's score: torch on one row rounds otherwise than on a block
PATIENCE_S = 90.0
CHUNK = 2000  # keys set at once


@dataclass(frozen=True, slots=True)
class Peer:
    """How one of them is run: its module, its arguments, and how many events it gets."""

    name: str
    module: str
    arguments: tuple[str, ...]
    events: int
    quick: int
    own_environment: bool = True
    scores: bool = True


PEERS = (
    Peer("plain Faust, by event", "plain_faust", (), 6000, 1500, own_environment=False),
    Peer("Quix Streams, by event", "quix", (), 6000, 1500),
    Peer("Bytewax, by event", "bytewax_flow", ("event",), 6000, 1500),
    Peer("Bytewax, by batch", "bytewax_flow", ("batch",), LIMIT, QUICK),
    Peer("fetch, decode, produce", "limit", (), LIMIT, QUICK, own_environment=False, scores=False),
)


def peers(*, options: Options = DEFAULTS) -> None:
    """Our worker, plain Faust, Quix Streams, Bytewax, and the limit: CPU an event for the same job."""
    report, events = Report("peers: the same job, side by side"), options.size(EVENTS, QUICK)
    python: Path | None = None
    try:
        python = peer_python()
    except LeptonError as error:
        progress(f"Quix Streams and Bytewax are left out: {error}")
    with Rig.ready(uniform, pin=options.pin, seed=options.seed, settings={"latency_objective_ms": OBJECTIVE_MS}) as rig:
        rig.send(events)
        progress("Lepton …")
        with rig.worker() as worker:
            stretch = rig.stretch(worker, int(events * WARM_UP), int(events * (1 - TAIL)))
            rig.wait_stored(events, worker)
        stretch.report(report, "Lepton")
        rig.check(report, "Lepton")
        for peer in PEERS:
            interpreter = python if peer.own_environment else Path(sys.executable)
            if interpreter is None:
                report.add(peer.name, "left out: not installed")
                continue
            progress(f"{peer.name} …")
            result = _run(rig, peer, interpreter, options, report)
            cpu_us = result.cpu_s / result.events * 1e6
            report.add(f"{peer.name}: process", cpu_us, "µs CPU an event")
            report.add(f"{peer.name}: rate by the clock", result.events / result.clock_s, "events/s")
            if peer.scores:
                report.add(f"{peer.name}: CPU against Lepton's", cpu_us / stretch.cpu_us(), "times")
            else:
                report.add(f"Lepton's CPU against: {peer.name}", stretch.cpu_us() / cpu_us, "times")
    report.finish("peers", options.json)


def _run(rig: Rig, peer: Peer, python: Path, options: Options, report: Report) -> Result:
    """One peer from start to end; its answers are checked."""
    wanted = options.size(peer.events, peer.quick)
    tag = f"{peer.module}-{'-'.join(peer.arguments) or 'plain'}".replace("_", "-")
    spec = Spec(
        pipeline=str(rig.workload.path), bundle=str(rig.bundle), redis_port=rig.settings.redis_port,
        brokers=rig.settings.kafka_brokers, prefix=f"{tag}:", events_topic=f"{tag}.events",
        scores_topic=f"{tag}.scores", alerts_topic=f"{tag}.alerts", warm_up=int(wanted * WARM_UP), events=wanted,
        result=str(rig.folder / f"{tag}.json"),
    )  # fmt: skip
    _create_topics(rig, [spec.events_topic, spec.scores_topic, spec.alerts_topic])
    asyncio.run(Sender(rig.settings, spec.events_topic).backlog(rig.first(wanted)))
    if peer.scores:
        _fill(rig, spec.prefix)
    path = rig.folder / f"{tag}-spec.json"
    path.write_bytes(msgspec.json.encode(spec))
    _process(rig, peer, python, path)
    result = msgspec.json.decode(Path(spec.result).read_bytes(), type=Result)
    if peer.scores:
        _check(rig, peer, spec, wanted, report)
    return result


def _process(rig: Rig, peer: Peer, python: Path, spec: Path) -> None:
    """Run it until it ends by itself. Raises LeptonError when it left no result."""
    log = rig.folder / f"{spec.stem}.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [str(python), "-m", f"benchmarks.peers.{peer.module}", str(spec), *peer.arguments]
    with on_core(rig.core), log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        pass  # said below, with its log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if not (rig.folder / f"{spec.stem.removesuffix('-spec')}.json").is_file():
        tail = log.read_text(errors="replace")[-1500:]
        raise LeptonError(f"{peer.name} ended with code {process.returncode} and no result: {tail}")


def _create_topics(rig: Rig, topics: list[str]) -> None:
    admin = KafkaAdminClient(**kafka_python_options(rig.settings))
    wanted = {"num_partitions": rig.settings.partitions, "replication_factor": rig.settings.replication_factor}
    admin.create_topics(dict.fromkeys(topics, wanted), wait_for_metadata=True)
    admin.close()


def _fill(rig: Rig, prefix: str) -> None:
    """The past under the peer's own keys, as its job writes them."""
    workload, past = rig.workload, rig.past
    states = [past.memory.state(name).tobytes() for name in workload.names(np.arange(workload.templates))]
    names = workload.names(np.arange(workload.entities))
    values = {f"{prefix}s:{name}": states[n % workload.templates] for n, name in enumerate(names)}
    for profile, keys in past.profile_keys().items():
        values |= {f"{prefix}p:{profile}:{key}": past.memory.profile(profile, key).tobytes() for key in keys}
    items: list[tuple[str, Any]] = list(values.items())
    for a in range(0, len(items), CHUNK):
        rig.client.mset(dict(items[a : a + CHUNK]))


def _check(rig: Rig, peer: Peer, spec: Spec, wanted: int, report: Report) -> None:
    """One score for each event, and those of the templates are what memory says."""
    records = asyncio.run(read_all(rig.settings, spec.scores_topic, wanted))
    scores = {message["event_id"]: message["score"] for message in (msgspec.json.decode(r.value) for r in records)}
    right = len(scores) == len(records) == wanted
    expect(right, f"{peer.name}: {len(records)} scores for {len(scores)} of {wanted} events: expected one each")
    both = rig.reference().keys() & scores.keys()
    off = max((abs(rig.reference()[event_id] - scores[event_id]) for event_id in both), default=float("nan"))
    expect(off <= TOLERANCE, f"{peer.name}: a score is off by {off:.2g}: expected at most {TOLERANCE:g}")
    report.add(f"{peer.name}: events with exactly one score", len(scores))
    report.add(f"{peer.name}: greatest difference of {len(both)} scores", off)
