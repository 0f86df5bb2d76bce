"""A batch of several partitions comes to what each of them comes to by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from faust.types import TP

from models.codec import Codec
from models.columns import distinct
from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from stream.scoring import Batch, Share, decode_batch
from stream.stepping import advance, writes_of
from stream.store.keys import Position
from stream.store.redis_store import Stored
from stream.store.values import ProfileFormat
from tests.stream.batches import START_MS, random_columns

SOURCES = [TP("events", p) for p in range(3)]
HELD = {SOURCES[0]: Position(10, START_MS, 4), SOURCES[1]: None, SOURCES[2]: Position(0, START_MS - 1000, 1)}


def _share(codec: Codec, tp: TP, rng: np.random.Generator, count: int, broken: int | None = None) -> Share:
    """Cards are drawn from the same few for each partition, so that they share some."""
    columns, held = random_columns(rng, count), HELD[tp]
    first = held.next_offset if held else 0
    records = []
    for i in range(count):
        row = {name: values[i] for name, values in columns.items()}
        value = b"{" if i == broken else codec.encode_event(row | {"transaction_id": f"{tp.partition}-{i}"})
        records.append(
            SimpleNamespace(offset=first + i, timestamp=START_MS * 2, key=row["card_id"].encode(), value=value)
        )
    return Share(str(tp.partition), records, held)


def _advanced(codec: Codec, shares: dict[TP, Share]) -> Batch:
    layout = codec.layout
    batch = decode_batch(codec, shares)
    rings = {
        name: layout.empty_profiles(profile, len(batch.profile_keys[name]))
        for name, profile in layout.pipeline.profiles.items()
    }
    advance(layout, batch, Stored({}, layout.empty_states(len(batch.entities)), rings))
    return batch


def _written(batch: Batch, layout: Layout) -> list[Any]:
    formats = {name: ProfileFormat(layout, name, profile) for name, profile in layout.pipeline.profiles.items()}
    return [
        (w.tag, w.expected, w.position, list(w.entities), None if w.states is None else w.states.tobytes(),
         w.outbox.number, sorted(w.outbox.items))
        for w in writes_of(batch, formats)
    ]  # fmt: skip


def test_entities_of_two_partitions_keep_their_own_states(pipeline: Pipeline) -> None:
    """A producer with its own partitioner may send a card to two partitions: each has a state of it."""
    codec, rng = Codec(pipeline), np.random.default_rng(3)
    shares = {tp: _share(codec, tp, rng, 12, broken=5 if tp.partition == 1 else None) for tp in SOURCES}
    whole = _advanced(codec, shares)
    assert len(set(whole.entities)) < len(whole.entities), "no card is in two partitions: this shows nothing"
    alone = [_advanced(codec, {tp: share}) for tp, share in shares.items()]
    assert _written(whole, codec.layout) == [write for batch in alone for write in _written(batch, codec.layout)]
    for (tp, part), single in zip(whole.parts.items(), alone, strict=True):
        (own,) = single.parts.values()
        assert part.position == own.position
        assert whole.bad(part) == single.bad(own)
        assert len(whole.bad(part)) == (tp.partition == 1)
        np.testing.assert_array_equal(whole.clock_M[part.events], single.clock_M)
        assert whole.outcome is not None
        assert single.outcome is not None
        np.testing.assert_array_equal(
            whole.outcome.applied_A[part.windows] - part.events.start, single.outcome.applied_A
        )
        # of the shared profiles they see each other's events only once a bucket has closed: windows alone must agree
        np.testing.assert_array_equal(whole.outcome.encoded.x_BLF[part.windows], single.outcome.encoded.x_BLF)


def test_partitions_that_share_no_entity_need_no_second_look(pipeline: Pipeline) -> None:
    """The usual case: the entities stand as they were read, partition by partition."""
    codec, rng = Codec(pipeline), np.random.default_rng(4)
    shares = {}
    for tp in SOURCES:
        share = _share(codec, tp, rng, 7)
        for record in share.records:
            card = f"{tp.partition}-{record.key.decode()}".encode()
            record.value, record.key = record.value.replace(record.key, card), card
        shares[tp] = share
    batch = decode_batch(codec, shares)
    assert batch.entities is batch.decoded.entities.texts
    for tp, part in batch.parts.items():
        cards = [record.key.decode() for record in shares[tp].records]
        assert batch.entities[part.entities] == distinct(cards).texts
        assert [batch.entities[n] for n in batch.owner_M[part.events]] == cards


def test_a_batch_may_lack_good_records(pipeline: Pipeline) -> None:
    """All records of one partition are refused: its position moves on, and nothing else."""
    codec, rng = Codec(pipeline), np.random.default_rng(5)
    shares = {SOURCES[0]: _share(codec, SOURCES[0], rng, 1, broken=0), SOURCES[1]: _share(codec, SOURCES[1], rng, 3)}
    batch = _advanced(codec, shares)
    refused, good = batch.parts.values()
    assert refused.position == Position(11, START_MS, 5)
    assert refused.windows == slice(0, 0)
    assert good.windows == slice(0, 3)
    assert len(batch.bad(refused)) == 1
    assert batch.bad(good) == []
