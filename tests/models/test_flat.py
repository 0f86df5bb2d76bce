"""The fast way of decoding: it says what the general one says, or nothing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import Codec, Decoded
from models.columns import distinct
from models.events import EventBatch
from models.flat import FlatReader
from models.flat.group import group
from models.pipeline.load import load_pipeline, parse_pipeline

NOW_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
GOOD: dict[str, Any] = {
    "id": "t1", "at": "2024-01-01T00:00:00Z", "who": "c1", "shop": "m1", "level": 12.5, "kind": "books",
    "lat": 45.5, "lon": 9.25, "open": True, "note": "unread",
}  # fmt: skip
TIMES = {"iso8601": '"2024-01-01T00:00:00Z"', "ms": "1704067200000", "s": "1704067200.5"}


def with_unit(unit: str) -> Codec:
    """A pipeline with a field of every type."""
    return Codec(
        parse_pipeline(
            f"""
            [pipeline]
            name = "flat"
            entity = "who"
            event_id = "id"
            time = "at"
            [fields]
            id = {{ type = "id" }}
            at = {{ type = "time", unit = "{unit}" }}
            who = {{ type = "entity" }}
            shop = {{ type = "entity", required = false }}
            level = {{ type = "number", min = -100, max = 1e6, required = false }}
            kind = {{ type = "category", required = false }}
            place = {{ type = "geo", latitude = "lat", longitude = "lon", required = false }}
            open = {{ type = "boolean", required = false }}
            free = {{ type = "number", source = "Größe", required = false }}
            [profiles.shop]
            key = "shop"
            """,
            "flat.toml",
        )
    )


CODECS = {unit: with_unit(unit) for unit in TIMES}


def as_text(members: dict[str, Any]) -> bytes:
    return json.dumps(members, ensure_ascii=False).encode("utf-8", "surrogatepass")


def unusual(unit: str) -> bytes:
    """A good event, with an escape that makes the fast way give up the whole batch."""
    return as_text(GOOD | {"at": json.loads(TIMES[unit])}).replace(b'"t1"', b'"\\u0074"')


def in_general(codec: Codec, values: list[bytes], append_ms: list[int], keys: list[bytes]) -> Decoded:
    """What the general way makes of these records: another one is decoded with them, and left out again."""
    value = unusual(codec.time_unit)
    decoded = codec.decode([*values, value], np.array([*append_ms, 2 * NOW_MS]), [*keys, b"c1"])
    assert decoded.good[-1] == len(values)
    kept = np.arange(len(decoded.good) - 1)
    batch = decoded.batch.take(kept)
    shared = {name: distinct(texts) for name, texts in batch.profile_keys.items()}
    return Decoded(batch, decoded.good[:-1], decoded.bad, distinct(batch.entity), shared)


def assert_same(a: Decoded, b: Decoded) -> None:
    assert a.good.tolist() == b.good.tolist()
    assert a.bad == b.bad
    assert_same_batch(a.batch, b.batch)
    assert a.entities.texts == b.entities.texts
    assert a.entities.place_M.tolist() == b.entities.place_M.tolist()
    assert a.profile_keys.keys() == b.profile_keys.keys()
    for name, keys in a.profile_keys.items():
        assert keys.texts == b.profile_keys[name].texts
        assert keys.place_M.tolist() == b.profile_keys[name].place_M.tolist()


def assert_same_batch(a: EventBatch, b: EventBatch) -> None:
    assert (a.event_id, a.entity, a.profile_keys) == (b.event_id, b.entity, b.profile_keys)
    for name in ("time_M", "id_hash_M", "values_MV", "hashes_MK"):
        x, y = getattr(a, name), getattr(b, name)
        assert (x.dtype, x.shape, x.flags.c_contiguous) == (y.dtype, y.shape, y.flags.c_contiguous)
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(np.signbit(a.values_MV), np.signbit(b.values_MV))


def reader_of(codec: Codec) -> FlatReader:
    return codec._flat


def is_fast(codec: Codec, *values: bytes) -> bool:
    return reader_of(codec).read(values, np.full(len(values), NOW_MS)) is not None


NUMBERS = """
    0 -0 -0.0 0.0 1e5 1E+2 1e-7 5e-324 1e22 1e23 -1e-400 1e400 01 1. .5 1e -1 - +1 0x1 1e05 NaN -0e1 0e-1 1e0003 1e00003
    9007199254740993 0.1234567890123456789 123456789012345678 1234567890123456789 1e6 1000000.0000001 -100 -100.00001
    179769313486231580793e289 0.30000000000000004 4.35 2.675e0
    """
numbers = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(-90, 90).map(repr),
    st.decimals(-1000, 1000, places=6).map(str),
    st.sampled_from(NUMBERS.split()),
)
texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "x" * 8, "x" * 256, "x" * 257, "é" * 128, "é" * 129, "a\nb", 'a"b', "a\\b", "\x7f", "7", "c1"]
    ),
).map(lambda text: json.dumps(text, ensure_ascii=False))
clocks = st.one_of(
    st.datetimes().map(lambda d: d.isoformat()),
    st.datetimes().map(lambda d: d.isoformat(timespec="milliseconds") + "Z"),
    st.tuples(st.datetimes(), st.integers(-30, 30), st.integers(0, 70)).map(
        lambda t: f"{t[0].isoformat()}{t[1]:+03d}:{t[2]:02d}"
    ),
    st.from_regex(
        r"(19[67]\d|20[0-3]\d|2[01]00)-(0\d|1[0-3])-([0-2]\d|3[0-2])[Tt ]([01]\d|2[0-5]):[0-6]\d:[0-6]\d"
        r"(\.\d{0,8})?(Z|z|[+-]\d\d:?\d\d|)",
        fullmatch=True,
    ),
).map(json.dumps)
others = st.sampled_from(["null", "true", "false", "{}", "[]", '{"a": [1]}', "nul", "", " 1 ", "tru", "falsey"])
anything = numbers | texts | clocks | others
values_of = {
    "id": texts | numbers, "who": texts | numbers, "shop": texts, "level": numbers, "kind": texts, "lat": numbers,
    "lon": numbers, "open": others, "note": anything, "Größe": numbers, "x": anything,
}  # fmt: skip


@st.composite
def objects(draw: st.DrawFn, unit: str) -> bytes:
    """Mostly a good event with some members replaced, left out, repeated or in another order."""
    members = [(name, json.dumps(value)) for name, value in GOOD.items()]
    members[1] = ("at", TIMES[unit])
    for name in draw(st.lists(st.sampled_from([*values_of, "at"]), max_size=3)):
        usual = clocks if name == "at" and unit == "iso8601" else numbers if name == "at" else values_of[name]
        members.append((name, draw(usual | anything if draw(st.integers(0, 4)) == 0 else usual)))
    for _ in range(draw(st.integers(0, 2))):
        members.pop(draw(st.integers(0, len(members) - 1)))
    if draw(st.booleans()):
        members = draw(st.permutations(members))
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\r\n", "\t: ")]))
    body = comma.join(f'"{name}"{colon}{value}' for name, value in members)
    text = draw(st.sampled_from(["{%s}", "{%s}", "{ %s } ", " {%s}\n"])) % body
    return text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("unit", TIMES)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_both_ways_give_the_same(unit: str, data: st.DataObject) -> None:
    """Every batch decodes to the same events, groups and refusals, whichever way it is read."""
    values = data.draw(st.lists(objects(unit), min_size=1, max_size=4))
    append = data.draw(st.lists(st.sampled_from([NOW_MS, 0, 2 * NOW_MS, 2**62]), min_size=4, max_size=4))[: len(values)]
    keys = data.draw(st.lists(st.sampled_from([b"c1", b"c1", b"c1", b"7"]), min_size=4, max_size=4))[: len(values)]
    codec = CODECS[unit]
    assert_same(codec.decode(values, np.array(append), keys), in_general(codec, values, append, keys))


@given(
    cut=st.integers(0, 200), length=st.integers(0, 3), put=st.binary(max_size=3) | st.sampled_from([b'"', b"\n", b"}{"])
)
@settings(max_examples=150, deadline=None)
def test_damaged_records(cut: int, length: int, put: bytes) -> None:
    """Bytes that are lost, changed or put in are judged alike, and the records beside them are not touched."""
    good = as_text(GOOD)
    values = [good, good[:cut] + put + good[cut + length :], good]
    codec = CODECS["iso8601"]
    append, keys = [NOW_MS] * 3, [b"c1"] * 3
    assert_same(codec.decode(values, np.array(append), keys), in_general(codec, values, append, keys))


@pytest.mark.parametrize(
    "values",
    [
        [b'{"id":"a","at":', b'"2024-01-01T00:00:00Z","who":"c1"}'],
        [b'{"id":"a\xc3', b'\xa9","at":"2024-01-01T00:00:00Z","who":"c1"}'],
        [as_text(GOOD) + as_text(GOOD), as_text(GOOD)],
        [as_text(GOOD) + b"," + as_text(GOOD)],
        [b"", as_text(GOOD)],
        [as_text(GOOD), b"}"],
    ],
)
def test_a_record_ends_where_it_ends(values: list[bytes]) -> None:
    """Halves of an event in two records are no event, and two events in one record are none."""
    codec = CODECS["iso8601"]
    append, keys = [NOW_MS] * len(values), [b"c1"] * len(values)
    decoded = codec.decode(values, np.array(append), keys)
    assert len(decoded.batch) == sum(value == as_text(GOOD) for value in values)
    assert_same(decoded, in_general(codec, values, append, keys))


@pytest.mark.parametrize("unit", TIMES)
def test_ordinary_events_are_read_fast(unit: str) -> None:
    """What producers mostly write is taken: with and without spaces, in any order, with members left out or unread."""
    event = GOOD | {"at": json.loads(TIMES[unit]), "Größe": -1.5e-3}
    compact = json.dumps(event, separators=(",", ":")).encode()
    backwards = as_text(dict(reversed(event.items())))
    short = as_text({name: event[name] for name in ("who", "at", "id")})
    numbered = as_text(event | {"id": 7, "who": 8, "shop": 9, "kind": 10, "open": 0})
    nothing = as_text(event | dict.fromkeys(("shop", "level", "kind", "lat", "lon", "open", "note")))
    assert is_fast(CODECS[unit], as_text(event), backwards, short, numbered, nothing, as_text(event | {"who": "é"}))
    assert is_fast(CODECS[unit], compact.replace(b"\\u00f6\\u00df", "öß".encode()))
    assert not is_fast(CODECS[unit], unusual(unit))


@pytest.mark.parametrize(
    "at",
    ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z", "2024-01-01T00:00:00.123456+00:00", "2023-12-31T23:00:00-01:00"],
)
def test_common_forms_of_time_are_read_fast(at: str) -> None:
    """With or without fractions, in UTC or with an offset."""
    assert is_fast(CODECS["iso8601"], as_text(GOOD | {"at": at}))


@given(days=st.integers(0, 47_481), ms=st.integers(0, 86_399_999))
@settings(max_examples=150, deadline=None)
def test_every_day_from_1970_to_2099(days: int, ms: int) -> None:
    """Leap years and the ends of months included."""
    stamp = np.datetime64(max(days * 86_400_000 + ms, 1), "ms")
    found = reader_of(CODECS["iso8601"]).read([as_text(GOOD | {"at": f"{stamp}Z"})], np.array([2**62]))
    assert found is not None
    assert found.batch.time_M.tolist() == [stamp.astype(int)]


def test_payments_are_read_fast() -> None:
    """The pipeline that ships with the project has no field that keeps it from the fast way."""
    codec = Codec(load_pipeline("payments"))
    row = {"transaction_id": "t", "timestamp": NOW_MS, "card_id": "c", "merchant_id": "m", "amount": 1.25}
    assert is_fast(codec, codec.encode_event(row))


@given(texts=st.lists(st.none() | st.text(max_size=20) | st.sampled_from(["a", "b", "a" * 8, "a" * 9]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_grouping(texts: list[str | None]) -> None:
    """Equal texts have one place, in order of appearance; the missing have none."""
    encoded = [(text or "").encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)])
    buffer = np.frombuffer(b"".join(encoded) + b"\n" * 16, np.uint8)
    found_MX = np.array(
        [[0, start, -1 if text is None else len(raw)] for text, start, raw in zip(texts, ends, encoded, strict=False)],
        dtype=np.int64,
    ).reshape(-1, 3)
    place_GM, bounds_U2 = np.empty((1, len(texts)), np.int64), np.empty((len(texts), 2), np.int64)
    count_G = np.empty(1, np.int64)
    group(buffer, found_MX, np.array([1]), place_GM, bounds_U2, count_G)
    expected = distinct(texts)
    assert place_GM[0].tolist() == expected.place_M.tolist()
    assert [bytes(buffer[a:b]).decode() for a, b in bounds_U2[: count_G[0]].tolist()] == expected.texts
