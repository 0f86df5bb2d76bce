"""Which chunk may be processed next, whatever Faust delivers: twice, not at all, or from before a seek."""

from __future__ import annotations

import random
from collections import deque

import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from stream.source import GONE_S, SEEK_PATIENCE_S, Source, Verdict
from stream.store.keys import Position
from stream.transport import Chunk


def chunk(*offsets: int) -> Chunk:
    """A chunk of records at these offsets, all of one partition."""
    records = [ConsumerRecord("t.events", 3, o, 1000 + o, 0, b"k", b"v", None, 1, 1, ()) for o in offsets]
    return Chunk(TP("t.events", 3), records)


def offsets(part: Chunk) -> list[int]:
    return [record.offset for record in part.records]


class Clock:
    """Moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(clock: Clock) -> Source:
    """Just taken over at offset 10, long enough ago that the seek of that has shown its effect."""
    source = Source("3", clock=clock)
    assert source.rewind(Position(10, 5, 1)) == 10
    clock.now += 2 * SEEK_PATIENCE_S
    return source


def store(source: Source, part: Chunk) -> None:
    source.advance(Position(part.offset + 1, 5, 2))


def test_what_follows_is_processed(source: Source) -> None:
    """Chunk after chunk, from the position on."""
    for offset in (10, 13, 16):
        verdict, part = source.admit(chunk(offset, offset + 1, offset + 2))
        assert (verdict, offsets(part)) == (Verdict.PROCESS, [offset, offset + 1, offset + 2])
        store(source, part)
    assert (source.next_offset, source.held) == (19, Position(19, 5, 2))


def test_a_first_chunk_of_a_source_without_a_position(clock: Clock) -> None:
    """What Redis never heard of begins at offset 0."""
    source = Source("3", clock=clock)
    assert source.rewind(None) == 0
    assert source.admit(chunk(0, 1))[0] is Verdict.PROCESS
    assert source.held is None


def test_what_was_processed_is_dropped(source: Source) -> None:
    """A chunk that comes again counts once; of one that overlaps only the rest is let through."""
    assert source.admit(chunk(8, 9))[0] is Verdict.DROP
    assert source.admit(chunk(0))[0] is Verdict.DROP
    verdict, part = source.admit(chunk(8, 9, 10, 11))
    assert (verdict, offsets(part)) == (Verdict.PROCESS, [10, 11])


def test_a_batch_may_be_tried_again(source: Source) -> None:
    """What was admitted and not stored is admitted again, whole or in parts."""
    whole = chunk(10, 11, 12)
    for part in (whole, whole, whole.halves()[0]):
        assert source.admit(part)[0] is Verdict.PROCESS
    assert source.admit(chunk(10, 11, 12))[0] is Verdict.PROCESS


def test_a_lost_chunk_is_fetched_again(source: Source) -> None:
    """A chunk behind a hole is answered with a seek, and what comes of the seek closes the hole."""
    assert source.admit(chunk(20, 21))[0] is Verdict.SEEK
    assert source.admit(chunk(22, 23))[0] is Verdict.DROP, "one seek is enough"
    for wanted in (chunk(10, *range(11, 20)), chunk(20, 21), chunk(22, 23)):
        assert source.admit(wanted)[0] is Verdict.PROCESS
        store(source, wanted)


def test_a_real_hole_is_believed_when_it_shows_again(source: Source) -> None:
    """A topic that is compacted has holes: after one look back its records are processed."""
    behind = chunk(20, 21)
    assert source.admit(behind)[0] is Verdict.SEEK
    assert source.admit(chunk(22))[0] is Verdict.DROP
    assert source.admit(behind)[0] is Verdict.PROCESS


def test_another_hole_is_not_the_one_that_was_looked_at(source: Source) -> None:
    """Only the very hole that the seek was for is believed: a wider one has lost more, a narrower one is news."""
    assert source.admit(chunk(20, 21))[0] is Verdict.SEEK
    assert source.admit(chunk(25, 26))[0] is Verdict.DROP
    assert source.admit(chunk(19, 20, 21))[0] is Verdict.SEEK
    assert source.admit(chunk(20, 21))[0] is Verdict.DROP, "19 exists"
    assert source.admit(chunk(19, 20, 21))[0] is Verdict.PROCESS


def test_a_hole_inside_a_chunk_is_the_topics(source: Source) -> None:
    """Records of one fetch are complete, whatever their offsets."""
    verdict, part = source.admit(chunk(10, 15, 30))
    assert (verdict, offsets(part)) == (Verdict.PROCESS, [10, 15, 30])


def test_a_believed_hole_stays_believed_until_something_is_stored(source: Source) -> None:
    """A batch behind a hole that fails may be tried again and cut in halves without another look at the hole."""
    behind = chunk(20, 21, 22, 23)
    source.admit(behind)
    assert source.admit(behind)[0] is Verdict.PROCESS
    first, second = behind.halves()
    assert source.admit(behind)[0] is Verdict.PROCESS
    assert source.admit(first)[0] is Verdict.PROCESS
    store(source, first)
    assert source.admit(second)[0] is Verdict.PROCESS


def test_a_hole_that_was_disproved_is_not_believed(source: Source) -> None:
    """Once the record in the hole came, the hole never was one, even if that record was not stored."""
    assert source.admit(chunk(20, 21))[0] is Verdict.SEEK
    assert source.admit(chunk(10))[0] is Verdict.PROCESS
    assert source.admit(chunk(20, 21))[0] is Verdict.SEEK


def test_a_seek_that_shows_no_effect_is_repeated(source: Source, clock: Clock) -> None:
    """Until then chunks are dropped in silence, after it one more seek is asked for."""
    assert source.admit(chunk(20))[0] is Verdict.SEEK
    clock.now += 0.9 * SEEK_PATIENCE_S
    assert source.admit(chunk(21))[0] is Verdict.DROP
    clock.now += 0.2 * SEEK_PATIENCE_S
    assert source.admit(chunk(22))[0] is Verdict.SEEK
    assert source.admit(chunk(23))[0] is Verdict.DROP


def test_a_hole_over_a_record_that_was_seen_is_not_believed(source: Source, clock: Clock) -> None:
    """However often copies of later chunks come, from before one seek or another, 15 is not jumped over."""
    assert source.admit(chunk(15))[0] is Verdict.SEEK
    for _ in range(5):
        assert source.admit(chunk(16, 17))[0] is Verdict.DROP
        clock.now += 2 * SEEK_PATIENCE_S
        assert source.admit(chunk(18))[0] is Verdict.SEEK
    assert source.admit(chunk(15, 16))[0] is Verdict.PROCESS


def test_a_record_that_was_seen_and_is_gone_holds_nothing_up(source: Source, clock: Clock) -> None:
    """A topic may delete what was fetched and not processed; after a while the wider hole is believed."""
    assert source.admit(chunk(15))[0] is Verdict.SEEK
    started = clock.now
    verdict = Verdict.SEEK
    while verdict is not Verdict.PROCESS:
        clock.now += 2 * SEEK_PATIENCE_S
        verdict = source.admit(chunk(100, 101))[0]
        assert clock.now - started < 3 * GONE_S
    assert clock.now - started > GONE_S


def test_after_a_rewind_nothing_is_left_of_before(source: Source) -> None:
    """Set back, the source goes by the new position and believes no old hole."""
    source.admit(chunk(20, 21))
    assert source.rewind(Position(5, 4, 9)) == 5
    assert (source.next_offset, source.held) == (5, Position(5, 4, 9))
    assert source.admit(chunk(20, 21))[0] is Verdict.SEEK
    verdict, part = source.admit(chunk(4, 5, 6))
    assert (verdict, offsets(part)) == (Verdict.PROCESS, [5, 6])
    assert source.rewind(None) == 0
    assert source.admit(chunk(5, 6))[0] is Verdict.SEEK
    assert source.rewind(Position(0, 4, 9)) == 0
    assert source.admit(chunk(5, 6))[0] is Verdict.SEEK


def test_the_last_record_of_a_topic_behind_a_hole_is_not_left_lying(source: Source) -> None:
    """Right after a rewind too: nothing else may come that would make anybody look again."""
    source.rewind(Position(10, 5, 1))
    assert source.admit(chunk(30))[0] is Verdict.SEEK, "from before the rewind"
    assert source.admit(chunk(11))[0] is Verdict.SEEK
    assert source.admit(chunk(11))[0] is Verdict.PROCESS


def test_progress_is_when_something_was_stored(source: Source, clock: Clock) -> None:
    """Neither dropping nor seeking nor a rewind passes for progress."""
    source.advance(Position(12, 5, 2))
    stored = clock.now
    clock.now += 30
    source.admit(chunk(0))
    source.admit(chunk(40))
    source.rewind(Position(11, 5, 1))
    assert source.progress_s == stored


class Faust:
    """A topic with holes, read through a queue; a seek leaves what is already in the queue in it."""

    def __init__(self, topic: list[int], rng: random.Random) -> None:
        self.topic, self.rng = topic, rng
        self.at = 0
        self.queue: deque[Chunk] = deque()
        self.fresh = False  # nothing was fetched since the last seek

    def seek(self, offset: int) -> None:
        self.at, self.fresh = offset, True

    def fetch(self, may_lose: bool) -> None:
        found = [o for o in self.topic if o >= self.at][: self.rng.randint(1, 6)]
        if found and len(self.queue) < 8:
            self.at = found[-1] + 1
            if self.fresh or not (may_lose and self.rng.random() < 0.3):
                self.queue.append(chunk(*found))
            self.fresh = False


@given(
    gaps=st.lists(st.sampled_from([1, 1, 1, 1, 2, 9]), min_size=1, max_size=60),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_every_record_once_and_in_order(gaps: list[int], seed: int) -> None:
    """Chunks are lost, come from before a seek, fail and are cut in halves: each record still comes once, in order."""
    topic = [sum(gaps[: i + 1]) - 1 for i in range(len(gaps))]
    rng, clock = random.Random(seed), Clock()
    source, faust = Source("0", clock=clock), Faust(topic, rng)
    faust.seek(source.rewind(None))
    processed: list[int] = []

    def handle(part: Chunk, may_fail: bool) -> None:
        verdict, admitted = source.admit(part)
        if verdict is Verdict.SEEK:
            faust.seek(source.next_offset)
        elif verdict is Verdict.PROCESS:
            if may_fail and rng.random() < 0.4:  # as a lane does: again, in halves
                for half in admitted.halves() if len(admitted) > 1 else (admitted,):
                    handle(half, may_fail=len(half) > 1)
            else:
                processed.extend(offsets(admitted))
                source.advance(Position(admitted.offset + 1))

    def deliver(steps: int, faults: bool) -> None:
        for _ in range(steps):
            clock.now += rng.choice([0.0, 0.01, 0.3, 1.1])
            if faust.queue and rng.random() < 0.5:
                handle(faust.queue.popleft(), faults)
            else:
                faust.fetch(faults)
            if faults and rng.random() < 0.03:  # fenced off, or taken over again
                faust.seek(source.rewind(source.held))

    deliver(rng.randint(0, 150), faults=True)
    assert processed == topic[: len(processed)]
    for _ in range(4):  # a chunk lost at the very end shows when a later one comes, or when reading starts anew
        deliver(300, faults=False)
        if processed == topic:
            break
        faust.seek(source.rewind(source.held))
    assert processed == topic
