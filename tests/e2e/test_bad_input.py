"""Bad input: every bad record is dead-lettered once with its reason and its bytes, every good one is scored once."""

# ruff: noqa: ARG005, all spoilers are called with the same arguments

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.clock import DAY_MS, now_ms, to_iso
from models.codec import MAX_BYTES, REASONS, Codec
from models.pipeline import load_pipeline
from models.pipeline.spec import Pipeline
from models.simulate import simulate
from stream.kafka import ensure_topics, partition_for
from stream.redrive import redrive
from stream.replay import Offsets, wait_stored
from stream.settings import Settings
from tests.support import Worker, publish_model, read_settled, send_records, simulated_windows

Event = dict[str, Any]
LARGEST = 2**20 - 200  # just what a producer with default settings may send: dead letters have headers, too
LIMIT = 50  # of the amount, in the pipeline file that is too strict
FLAT_MIB = 40  # that memory may grow by between a third of a run and its end


@dataclass(frozen=True)
class Sent:
    """A record as it was sent. reason: None for a good one, "?" where a mutation decides."""

    key: bytes | None
    value: bytes | None
    reason: str | None


def _dump(event: Event) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode()


def _with(**changes: Any) -> Callable[[Event, random.Random], bytes]:
    return lambda event, _: _dump(event | changes)


def _without(name: str) -> Callable[[Event, random.Random], bytes]:
    return lambda event, _: _dump({k: v for k, v in event.items() if k != name})


def _huge(event: Event, rng: random.Random) -> bytes:
    size = LARGEST if rng.random() < 0.1 else rng.randint(MAX_BYTES + 1, MAX_BYTES + 5000)
    return _dump(event | {"note": "x" * (size - len(_dump(event | {"note": ""})))})


BAD: list[tuple[str, Callable[[Event, random.Random], bytes | None]]] = [
    ("empty", lambda event, rng: b""),
    ("empty", lambda event, rng: None),  # under its key, or under none
    ("json", lambda event, rng: _dump(event)[: rng.randint(1, 60)]),
    ("json", lambda event, rng: _dump(event).replace(b":", b"=")),
    ("json", lambda event, rng: _dump(event) + b"}"),
    ("json", lambda event, rng: _dump(event | {"amount": float("nan")})),
    ("json", lambda event, rng: _dump(event | {"amount": float("-inf")})),
    ("json", lambda event, rng: json.dumps(event).encode("utf-16-le")),
    ("encoding", lambda event, rng: json.dumps(event).encode("utf-16")),
    ("encoding", lambda event, rng: _dump(event | {"merchant_id": "café"}).decode().encode("latin-1")),
    ("encoding", lambda event, rng: _dump(event)[:-1] + b', "nobody reads\xff": 1}'),
    ("schema", lambda event, rng: b"[" * 5000 + b"]" * 5000),
    ("schema", lambda event, rng: _dump(event | {"note": None}).replace(b"null", b"[" * 5000 + b"]" * 5000)),
    ("schema", lambda event, rng: b"[1, 2, 3]"),
    ("schema", lambda event, rng: b"null"),
    ("schema", _with(amount="12.50")),
    ("schema", _with(amount=None)),
    ("schema", _with(amount=[1])),
    ("schema", _with(card_present="yes")),
    ("schema", _with(card_present=2)),
    ("schema", _with(timestamp=17)),
    ("schema", _with(timestamp="yesterday")),
    ("schema", _with(merchant_id="")),
    ("schema", _with(merchant_id="m" * 300)),
    ("schema", _with(latitude=None, longitude=1.0)),
    ("schema", _without("transaction_id")),
    ("schema", _without("card_id")),
    ("schema", _without("amount")),
    ("schema", _without("timestamp")),
    ("range", _with(amount=-1)),
    ("range", _with(amount=1e39)),
    ("range", _with(latitude=91.0, longitude=0.0)),
    ("time", _with(timestamp="1901-01-01T00:00:00Z")),
    ("time", _with(timestamp="9999-12-31T23:59:59Z")),
    ("future", lambda event, rng: _dump(event | {"timestamp": to_iso(now_ms() + DAY_MS)})),
    ("key", lambda event, rng: _dump(event)),  # under a key of its own
    ("size", _huge),
]


def _mutated(event: Event, rng: random.Random) -> bytes:
    """A few bytes changed, cut out or doubled."""
    data = bytearray(_dump(event))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + rng.randint(1, 8)]
            case _:
                data[at:at] = data[at : at + rng.randint(1, 8)]
    return bytes(data)


def _traffic(pipeline: Pipeline, count: int, seed: int) -> list[Sent]:
    """So many bad records, a third of them mutated good ones, and as many good ones, shuffled."""
    rng, codec = random.Random(seed), Codec(pipeline)
    rows = list(simulate(seed=seed, customers=500, merchants=60, days=8).event_rows())
    out = []
    for number in range(2 * count):
        row = rows[number % len(rows)] | {"transaction_id": str(uuid.UUID(int=rng.getrandbits(128)))}
        event = json.loads(codec.encode_event(row))
        key = event["card_id"].encode()
        if number % 2:
            out.append(Sent(key, _dump(event), None))
        elif rng.random() < 1 / 3:
            out.append(Sent(key, _mutated(event, rng), "?"))
        else:
            reason, spoil = BAD[number // 2 % len(BAD)]
            if reason == "empty" and rng.random() < 0.3:
                key = None
            if reason == "key":
                key = rng.choice([None, b"", b"somebody-new", rng.randbytes(20_000)])
            out.append(Sent(key, spoil(event, rng), reason))
    rng.shuffle(out)
    return out


def test_bad_records_among_good_ones(pipeline: Pipeline, settings: Settings, tmp_path: Path) -> None:
    """3,000 fuzzed records: each dead-lettered once, the good ones scored once, and redriving mended ones works."""
    asyncio.run(_run(pipeline, settings, tmp_path, 3_000))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_bad_records_among_good_ones_at_length(pipeline: Pipeline, settings: Settings, tmp_path: Path) -> None:
    """100,000 fuzzed records; memory stays flat."""
    asyncio.run(_run(pipeline, settings, tmp_path, 100_000))


async def _run(pipeline: Pipeline, settings: Settings, folder: Path, count: int) -> None:
    simulated = simulate(seed=3, customers=200, merchants=60, days=10)
    ensure_topics(settings, pipeline)
    publish_model(pipeline, settings.registry, simulated_windows(pipeline, simulated), folder=folder / "bundle")
    memory, sent = [], {}
    with Worker(settings, folder / "worker.log") as worker:
        for part in range(6):  # one after another, to look at memory in between
            sent |= await _send_and_wait(pipeline, settings, _traffic(pipeline, count // 6, seed=part))
            memory.append(worker.memory_mib())
        letters = await read_settled(settings, pipeline.topic("dead-letter"))
        await _until_counted(worker, len(letters))
        assert worker.metric("lepton_batch_retries_total") == 0
        assert worker.stop() == 0
    scores = await read_settled(settings, pipeline.topic("scores"))
    reasons = _check(pipeline, sent, letters, scores)
    print(f"\n{len(sent)} records, {len(letters)} bad: {dict(reasons)}; MiB: {[round(m) for m in memory]}")
    assert memory[-1] - memory[1] < FLAT_MIB, f"memory grows: {memory}"


async def _until_counted(worker: Worker, letters: int) -> None:
    """Batches are counted after they are stored."""
    deadline = time.monotonic() + 10
    while (refused := worker.metric("lepton_dead_letters_total")) != letters:
        assert time.monotonic() < deadline, f"{refused} dead letters counted: expected {letters}"
        await asyncio.sleep(0.1)


async def _send_and_wait(pipeline: Pipeline, settings: Settings, traffic: list[Sent]) -> dict[tuple[int, int], Sent]:
    """Send everything and wait until it is stored; returns the records by (partition, offset)."""
    metadata = await send_records(settings, pipeline.topic("events"), [(s.key, s.value) for s in traffic])
    sent = {(m.partition, m.offset): s for m, s in zip(metadata, traffic, strict=True)}
    ends: Offsets = {("events", p): max(o for q, o in sent if q == p) + 1 for p in {p for p, _ in sent}}
    await wait_stored(settings, pipeline, ends)
    return sent


def _check(
    pipeline: Pipeline, sent: dict[tuple[int, int], Sent], letters: list[Any], scores: list[Any]
) -> Counter[str]:
    """Each record is in one of the two topics, once. Returns the dead letters by reason."""
    codec, now = Codec(pipeline), np.array([now_ms()])
    scored = Counter(json.loads(record.value)["event_id"] for record in scores)
    reasons: Counter[str] = Counter()
    refused, cuts = set(), 0
    for record in letters:
        headers = {name: value.decode() for name, value in record.headers}
        assert headers["lepton-topic"] == pipeline.topic("events")
        origin = int(headers["lepton-partition"]), int(headers["lepton-offset"])
        assert origin not in refused, f"{origin} is dead-lettered twice"
        refused.add(origin)
        was = sent[origin]
        cut = len(record.value or b"") if "lepton-cut" in headers else None
        assert (record.key, record.value or None) == (was.key, (was.value or b"")[:cut] or None)
        assert cut is None or cut > 2**20 - 10_000
        cuts += cut is not None
        assert headers["lepton-reason"] in REASONS, f"{headers} {record.value[:300]!r}"
        assert was.reason in (headers["lepton-reason"], "?"), f"{was.reason}: {headers} {record.value[:200]!r}"
        assert headers["lepton-detail"]
        reasons[headers["lepton-reason"]] += 1
    for origin, record in sent.items():
        if origin in refused:
            continue
        assert record.reason in (None, "?"), f"a bad record was not refused: {record}"
        event_id = codec.decode([record.value], now).batch.event_id[0]
        assert scored.pop(event_id, 0) == 1
    assert not scored, "scores of events that nobody sent, or of refused ones"
    assert set(reasons) == set(REASONS)
    assert cuts > 0
    return reasons


def test_mended_records_are_redriven(pipeline: Pipeline, settings: Settings, tmp_path: Path) -> None:
    """Records that a too strict pipeline file refused are scored after the file is mended and they are redriven."""
    asyncio.run(_mended(pipeline, settings, tmp_path))


async def _mended(pipeline: Pipeline, settings: Settings, folder: Path) -> None:
    simulated = simulate(seed=4, customers=100, merchants=60, days=3)
    codec = Codec(pipeline)
    rows = list(simulated.event_rows())
    large = sum(_is_large(row) for row in rows)
    ensure_topics(settings, pipeline)
    publish_model(pipeline, settings.registry, simulated_windows(pipeline, simulated), folder=folder / "bundle")
    strict = _strict_copy(settings, folder)
    publish_model(
        load_pipeline(strict), folder / "strict-registry", simulated_windows(pipeline, simulated),
        folder=folder / "strict-bundle",
    )  # fmt: skip
    records = [(str(row["card_id"]).encode(), codec.encode_event(row)) for row in rows]
    metadata = await send_records(settings, pipeline.topic("events"), records)
    ends: Offsets = {}
    for m in metadata:
        ends["events", m.partition] = max(ends.get(("events", m.partition), 0), m.offset + 1)
    with Worker(settings, folder / "strict.log", pipeline=str(strict), registry=folder / "strict-registry") as worker:
        await wait_stored(settings, pipeline, ends)
        assert worker.stop() == 0
    assert len(await read_settled(settings, pipeline.topic("dead-letter"))) == large
    done = await asyncio.to_thread(redrive, settings, pipeline)
    assert done.reasons == {"range": large}
    again = Counter(partition_for(str(r["card_id"]).encode(), settings.partitions) for r in rows if _is_large(r))
    with Worker(settings, folder / "mended.log") as worker:
        await wait_stored(settings, pipeline, {key: end + again[key[1]] for key, end in ends.items()})
        assert worker.stop() == 0
    scores = await read_settled(settings, pipeline.topic("scores"))
    found = Counter(json.loads(record.value)["event_id"] for record in scores)
    assert found == Counter(str(row["transaction_id"]) for row in rows)


def _is_large(row: Event) -> bool:
    return float(row["amount"]) > LIMIT


def _strict_copy(settings: Settings, folder: Path) -> Path:
    """The pipeline under the same name, with a limit that many payments break."""
    text = Path(settings.pipeline).read_text(encoding="utf-8").replace("max = 10_000_000", f"max = {LIMIT}")
    path = folder / "strict.toml"
    path.write_text(text, encoding="utf-8")
    return path
