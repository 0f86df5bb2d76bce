"""Replay rebuilds what the worker saw: same windows as applying the records in their order, and nothing from later."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import training.replay
from models.clock import DAY_MS, HOUR_MS, from_iso
from models.codec import Codec
from models.features.encoded import Encoded
from models.features.memory import MemoryStore
from models.pipeline.load import load_pipeline
from models.pipeline.spec import Pipeline
from training.archive import Archive
from training.replay import History, load_history, replay
from training.rows import Records, RowMaker

START_MS = from_iso("2026-03-01T00:00:00Z")
PARTITIONS = 3


@pytest.fixture
def stream() -> tuple[Pipeline, dict[int, Records], dict[int, Records]]:
    """Events and labels of 40 days on three partitions, with late and repeated events, as records."""
    pipeline = load_pipeline("payments")
    codec, rng = Codec(pipeline), np.random.default_rng(5)
    rows: dict[int, list[tuple[int, bytes]]] = {p: [] for p in range(PARTITIONS)}
    labels: dict[int, list[tuple[int, bytes]]] = {p: [] for p in range(PARTITIONS)}
    times = START_MS + np.sort(rng.integers(0, 40 * DAY_MS, size=600))
    for n, time in enumerate(times.tolist()):
        card = int(rng.integers(0, 12))
        late = int(rng.integers(0, 2 * HOUR_MS)) if n % 10 == 0 else 0
        merchant = f"m{rng.integers(0, 4)}"
        amount = float(rng.lognormal(3, 1))
        event = codec.encode_event({
            "transaction_id": f"t{n}", "timestamp": time - late, "card_id": f"c{card}", "merchant_id": merchant,
            "amount": amount, "channel": "chip" if n % 3 else None,
        })  # fmt: skip
        rows[card % PARTITIONS] += [(time, event)] * (2 if n % 50 == 0 else 1)
        arrival = time + int(rng.integers(DAY_MS, 7 * DAY_MS))
        said = {"card_id": f"c{card}", "amount": amount} if n % 5 else {}
        label = codec.encode_label(f"t{n}", arrival, n % 9 == 0, {"merchant_id": merchant} | said)
        labels[n % PARTITIONS].append((arrival, label))
    return pipeline, _records(rows), _records({p: sorted(r) for p, r in labels.items()})


def _records(rows: dict[int, list[tuple[int, bytes]]]) -> dict[int, Records]:
    return {
        p: Records(p, np.arange(len(r)), np.array([t for t, _ in r], dtype=np.int64), [v for _, v in r], None)
        for p, r in rows.items()
    }


def history_of(root: Path, pipeline: Pipeline, events: dict[int, Records], labels: dict[int, Records]) -> History:
    archive, maker = Archive(root, pipeline), RowMaker(pipeline)
    progress = archive.open_to_write()
    archive.append("events", [maker.rows("events", r) for r in events.values()], progress)
    archive.append("labels", [maker.rows("labels", r) for r in labels.values()], progress)
    assert not maker.skipped
    return load_history(archive)


def one_by_one(pipeline: Pipeline, events: dict[int, Records], labels: dict[int, Records]) -> dict[str, Encoded]:
    """Too simple to be wrong: every record by itself, in the order of its partition's clock."""
    codec, store, queue = Codec(pipeline), MemoryStore(pipeline), []
    for p, records in events.items():
        clock = 0
        for value, append in zip(records.values, records.append_M.tolist(), strict=True):
            batch = codec.decode([value], np.array([append])).batch
            clock = max(clock, int(batch.time_M[0]))
            queue.append((clock, 1, p, len(queue), batch))
    for p, records in labels.items():
        clock = 0
        for value, append in zip(records.values, records.append_M.tolist(), strict=True):
            verdict = codec.decode_labels([value], np.array([append])).batch
            clock = max(clock, int(verdict.time_M[0]))
            queue.append((clock, 0, p, len(queue), verdict))
    windows = {}
    for clock, kind, _, _, batch in sorted(queue, key=lambda q: q[:4]):
        if kind == 0:
            store.learn(batch, np.array([clock]))
            continue
        step = store.step(batch, np.array([clock]))
        if len(step.applied_A):
            windows[batch.event_id[0]] = step.encoded
    return windows


@pytest.mark.parametrize("chunk", [7, 4096])
def test_replay_equals_the_records_one_by_one(
    tmp_path: Path, stream: tuple[Pipeline, dict[int, Records], dict[int, Records]], chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whatever the chunk, each event comes once, with the window that applying records singly gives, to the bit."""
    monkeypatch.setattr(training.replay, "CHUNK", chunk)
    history = history_of(tmp_path, *stream)
    expected = one_by_one(*stream)
    seen = []
    for part in replay(history, lambda batch: np.ones(len(batch), dtype=bool)):
        for i, event_id in enumerate(part.batch.event_id):
            seen.append(event_id)
            for name in ("x_BLF", "codes_BLK", "mask_BL", "context_BC", "verdicts_BJSG"):
                np.testing.assert_array_equal(getattr(part.encoded, name)[i], getattr(expected[event_id], name)[0])
    assert sorted(seen) == sorted(expected)
    assert len(seen) == 600
    ratio_BS = np.concatenate([encoded.verdicts_BJSG[:, 0, :, 5] for encoded in expected.values()])
    assert (ratio_BS[-50:] != 0).mean() > 0.6, "merchants have a past, and most labels said an amount"


def test_what_comes_later_changes_nothing_before(
    tmp_path: Path, stream: tuple[Pipeline, dict[int, Records], dict[int, Records]]
) -> None:
    """Cutting the history at a time leaves the windows before it as they are: nothing is seen early."""
    history = history_of(tmp_path, *stream)
    end_ms = START_MS + 25 * DAY_MS

    def windows(source: History) -> dict[str, bytes]:
        found = {}
        for part in replay(source, lambda batch: np.ones(len(batch), dtype=bool), end_ms):
            for i, event_id in enumerate(part.batch.event_id):
                found[event_id] = part.encoded.context_BC[i].tobytes() + part.encoded.x_BLF[i].tobytes()
        return found

    whole, cut = windows(history), windows(history.known_by(end_ms))
    assert len(cut) > 300
    assert whole == cut


def test_labels_that_arrived_move_the_profiles(
    tmp_path: Path, stream: tuple[Pipeline, dict[int, Records], dict[int, Records]]
) -> None:
    """Without labels the same events see no fraud at their merchant; with them some do."""
    pipeline, events, labels = stream
    column = MemoryStore(pipeline).layout.inputs.context.index("merchant.frauds.7d")

    def frauds(root: Path, given: dict[int, Records]) -> float:
        history = history_of(root, pipeline, events, given)
        every = replay(history, lambda batch: np.ones(len(batch), dtype=bool))
        return float(sum(part.encoded.context_BC[:, column].sum() for part in every))

    assert frauds(tmp_path / "with", labels) > 0
    assert frauds(tmp_path / "without", {}) == 0


def test_the_last_verdict_to_arrive_counts(tmp_path: Path) -> None:
    """A fraud that is cleared later is none, and one that is found later is."""
    pipeline = load_pipeline("payments")
    codec = Codec(pipeline)
    verdicts = [("a", 1, True), ("b", 1, False), ("c", 1, True), ("a", 3, False), ("b", 2, True)]
    rows = [(START_MS + h, codec.encode_label(i, START_MS + h, f, {})) for i, h, f in verdicts]
    event = codec.encode_event(
        {"transaction_id": "a", "timestamp": START_MS, "card_id": "c", "merchant_id": "m", "amount": 1.0}
    )
    history = history_of(tmp_path, pipeline, _records({0: [(START_MS, event)]}), _records({0: rows}))
    assert history.frauds() == {"b", "c"}
    # the second verdict on b stands behind the one on a in their partition, so it is known no earlier
    assert history.known_by(START_MS + 3).frauds() == {"a", "c"}
