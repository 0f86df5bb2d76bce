"""Bytes to columns and back: every way in which a record is refused, and that nothing else is."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import MAX_BYTES, REASONS, BadRecord, Codec, Decoded
from models.errors import EventError
from models.events import EventBatch
from models.hashing import hash32, hash64
from models.pipeline.load import load_pipeline, parse_pipeline

NOW_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z
APPEND_MS = np.array([NOW_MS], dtype=np.int64)

GOOD: dict[str, Any] = {
    "transaction_id": "t1", "timestamp": "2024-01-01T00:00:00Z", "card_id": "c1", "merchant_id": "m1", "amount": 12.5,
    "device_id": "d1", "merchant_category": "books", "channel": "web", "latitude": 45.5, "longitude": 9.25,
    "card_present": True,
}  # fmt: skip
# An escape of half a pair of surrogates, and the three bytes a careless encoder makes of it.
LONE_HIGH, LONE_LOW, RAW_SURROGATE = '"\\ud83d"', '"\\ude00x"', b'"\xed\xa0\xbd"'


@pytest.fixture(scope="module")
def payments() -> Codec:
    return Codec(load_pipeline("payments"))


def with_unit(unit: str) -> Codec:
    """A small pipeline whose time is in this unit and whose one number has no limits."""
    return Codec(
        parse_pipeline(
            f"""
            [pipeline]
            name = "units"
            entity = "who"
            event_id = "id"
            time = "at"
            [fields]
            id = {{ type = "id" }}
            at = {{ type = "time", unit = "{unit}" }}
            who = {{ type = "entity", source = "Who" }}
            level = {{ type = "number", required = false }}
            """,
            "units.toml",
        )
    )


def event(**changes: Any) -> bytes:
    """The good event with other members; None leaves one out."""
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not None}).encode()


def raw(member: str, text: str | bytes) -> bytes:
    """The good event with this text as the value of a member."""
    text = text.encode() if isinstance(text, str) else text
    return event(**{member: "PLACE"}).replace(b'"PLACE"', text)


def decode_one(codec: Codec, value: bytes | None, key: bytes | None = None) -> Decoded:
    return codec.decode([value], APPEND_MS, None if key is None else [key])


def refusal(codec: Codec, value: bytes | None) -> BadRecord:
    decoded = decode_one(codec, value)
    assert len(decoded.batch) == len(decoded.good) == 0
    assert len(decoded.bad) == 1
    return decoded.bad[0]


BAD: dict[str, list[tuple[bytes | None, str]]] = {
    "empty": [(None, "expected a JSON object"), (b"", "expected a JSON object")],
    "size": [(event(note="x" * MAX_BYTES), f"at most {MAX_BYTES}"), (b" " * (MAX_BYTES + 1), str(MAX_BYTES + 1))],
    "encoding": [
        (raw("channel", b'"\xff\xfe"'), "expected UTF-8"),
        (raw("channel", RAW_SURROGATE), "expected UTF-8"),
        (raw("note", b'"\xff"'), "expected UTF-8"),  # also where no field reads it
        (json.dumps(GOOD).encode("utf-16"), "byte 0"),
        (event(card_id="café").decode("unicode_escape").encode("latin-1"), "expected UTF-8"),
    ],
    "json": [
        (b"{", "truncated"),
        (b" ", "truncated"),
        (b"{'amount': 1}", "malformed"),
        (b"\xef\xbb\xbf" + event(), "byte 0"),  # a byte order mark
        (event() + b"x", "trailing"),
        (event() + event(), "trailing"),
        (raw("amount", "NaN"), "malformed"),
        (raw("amount", "-Infinity"), "malformed"),
        (raw("amount", "01"), "malformed"),
        (raw("channel", LONE_LOW), "surrogate"),
        (raw("channel", LONE_HIGH), "surrogate"),
        (raw("channel", b'"a\nb"'), "malformed"),
    ],
    "schema": [
        (b"null", "object"),
        (b"[]", "object"),
        (b'"text"', "object"),
        (b"[" * 30_000, "object"),
        (event(transaction_id=None), "transaction_id"),
        (raw("merchant_id", "null"), "merchant_id"),
        (event(transaction_id=True), "transaction_id"),
        (event(transaction_id=7.5), "transaction_id"),
        (event(card_id=""), "card_id"),
        (event(card_id="x" * 257), "card_id"),
        (event(card_id=2**63), "card_id"),
        (event(device_id=""), "device_id"),
        (event(channel=["web"]), "channel"),
        (event(channel="x" * 257), "channel"),
        (event(amount="12.5"), "amount"),
        (event(amount=True), "amount"),
        (raw("amount", "1" * 400), "amount"),
        (raw("amount", "1e400"), "amount"),
        (raw("amount", "[" * 20_000 + "]" * 20_000), "amount"),
        (raw("note", "[" * 20_000 + "]" * 20_000), "recursion"),
        (raw("note", '{"a":' * 9_000 + "1" + "}" * 9_000), "recursion"),
        (event(card_present=2), "card_present"),
        (event(card_present="true"), "card_present"),
        (event(timestamp="yesterday"), "timestamp"),
        (event(timestamp="2024-02-30T00:00:00Z"), "timestamp"),
        (event(timestamp=NOW_MS), "timestamp"),
        (event(latitude=None), "location"),
        (raw("longitude", "null"), "location"),
    ],
    "range": [
        (event(amount=-0.01), "amount = -0.01: expected a number from 0.0 to 10000000.0"),
        (event(amount=1e300), "amount = 1e+300"),
        (event(latitude=90.001), "location.latitude"),
        (event(longitude=-180.5), "location.longitude"),
    ],
    "time": [
        (event(timestamp="1970-01-01T00:00:00Z"), "1970 to 2100"),
        (event(timestamp="1969-12-31T23:59:59Z"), "1970 to 2100"),
        (event(timestamp="0001-01-01T00:00:00+14:00"), "1970 to 2100"),
        (event(timestamp="9999-12-31T23:59:59-14:00"), "1970 to 2100"),
        (event(timestamp="2100-01-01T00:00:00Z"), "1970 to 2100"),
    ],
    "future": [
        (event(timestamp="2024-01-01T00:05:00.001Z"), "expected at most 5m after 2024-01-01T00:00:00.000Z"),
        (event(timestamp="2099-12-31T23:59:59Z"), "2099"),
    ],
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("reason", "value", "hint"),
    [(reason, value, hint) for reason, cases in BAD.items() for value, hint in cases],
    ids=[f"{reason}-{i}" for reason, cases in BAD.items() for i in range(len(cases))],
)
def test_a_bad_record_has_its_reason(payments: Codec, reason: str, value: bytes | None, hint: str) -> None:
    """Each kind of bad record is refused with its stable reason and a detail that names what is wrong."""
    bad = refusal(payments, value)
    assert (bad.index, bad.reason) == (0, reason)
    assert hint in bad.detail
    assert len(bad.detail) < 400, "a payload must not get into logs and headers"


def test_every_reason_is_tested() -> None:
    """A reason that is added to the list gets a test, or this fails; `key` has tests of its own."""
    assert set(BAD) | {"key"} == set(REASONS)


ACCEPTED = {
    "a member no field reads": event(note={"deep": [1, None, {"a": "b"}]}),
    "a huge whole number no field reads": raw("note", "1" * 400),
    "all optional members left out": event(
        device_id=None, merchant_category=None, channel=None, latitude=None, longitude=None, card_present=None
    ),
    "optional members null": json.dumps(GOOD | {"device_id": None, "latitude": None, "longitude": None}).encode(),
    "an empty category": event(channel=""),
    "a category of another type": event(channel=7, merchant_category=True),
    "the longest texts": event(card_id="x" * 256, channel="é" * 256),
    "text beyond the basic plane": raw("channel", '"\\ud83d\\ude00"'),
    "a zero character": event(card_id="a\0b"),
    "the limits": event(amount=0, latitude=-90, longitude=180),
    "the furthest allowed future": event(timestamp="2024-01-01T00:05:00Z"),
    "the earliest time": event(timestamp="1970-01-01T00:00:00.001Z"),
    "space around it": b" \n" + event() + b"\r\n",
    "the largest record": event(note="")[:-2] + b"x" * (MAX_BYTES - len(event(note=""))) + b'"}',
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_unusual_record_is_accepted(payments: Codec, name: str) -> None:
    """What the rules allow is decoded, at their very limits too, and can be repeated in an alert."""
    decoded = decode_one(payments, ACCEPTED[name])
    assert decoded.bad == []
    assert len(decoded.batch) == 1
    assert payments.decode_one(ACCEPTED[name])["transaction_id"] == "t1"


def test_columns_of_an_event(payments: Codec) -> None:
    """Each value stands in its column, in the layout's order; what is missing is NaN, 0 or None."""
    gone = dict.fromkeys(("device_id", "channel", "latitude", "longitude", "card_present"))
    batch = payments.decode([event(), event(**gone)], np.full(2, NOW_MS)).batch
    assert payments.layout.values == ("amount", "card_present", "location.latitude", "location.longitude")
    values = np.array([[12.5, 1, 45.5, 9.25], [12.5, *[math.nan] * 3]], np.float32)
    np.testing.assert_array_equal(batch.values_MV, values)
    assert payments.layout.hashes == ("merchant_category", "channel", "merchant_id", "device_id")
    assert batch.hashes_MK[0].tolist() == [hash32("books"), hash32("web"), hash32("m1"), hash32("d1")]
    assert batch.hashes_MK[1].tolist() == [hash32("books"), 0, hash32("m1"), 0]
    assert batch.profile_keys == {"card": ["c1", "c1"], "merchant": ["m1", "m1"], "device": ["d1", None]}
    assert (batch.entity, batch.event_id, batch.time_M.tolist()) == (["c1"] * 2, ["t1"] * 2, [NOW_MS] * 2)
    assert batch.id_hash_M.tolist() == [hash64("t1")] * 2


def test_an_identifier_is_the_same_as_text_and_as_number(payments: Codec) -> None:
    """7 and "7" name one entity, so a producer may change its mind."""
    number, text = (decode_one(payments, event(card_id=c, merchant_id=c, transaction_id=c)).batch for c in (7, "7"))
    assert_same_batch(number, text)


def test_the_last_of_two_members_of_one_name_counts(payments: Codec) -> None:
    """A repeated member is no error (JSON allows it); scoring and the alert read the same one."""
    value = event()[:-1] + b', "amount": 3}'
    assert decode_one(payments, value).batch.values_MV[0, 0] == 3
    assert payments.decode_one(value)["amount"] == 3


@pytest.mark.parametrize("key", [b"c1", None, b"", b"c2", b"C1", b"c1 ", b"\xff"])
def test_the_key_is_the_entity(payments: Codec, key: bytes | None) -> None:
    """A record under another key than its entity's is refused, and neither stands in the detail."""
    decoded = payments.decode([event(card_id="c1")], APPEND_MS, [key])
    assert len(decoded.batch) == (key == b"c1")
    if key != b"c1":
        (bad,) = decoded.bad
        assert bad.reason == "key"
        assert "card_id" in bad.detail
        assert "c1" not in bad.detail
        assert "c2" not in bad.detail


@pytest.mark.parametrize(("entity", "key"), [(7, b"7"), (-(2**63), b"-9223372036854775808"), ("é", "é".encode())])
def test_the_key_is_the_entitys_text(payments: Codec, entity: object, key: bytes) -> None:
    """Keys are UTF-8 text, of numbers too."""
    assert len(payments.decode([event(card_id=entity)], APPEND_MS, [key]).batch) == 1


def test_no_records_are_no_batch(payments: Codec) -> None:
    """An empty list, or one of only bad records, gives an empty batch of the right width."""
    for values in ([], [b"{", None]):
        decoded = payments.decode(values, np.full(len(values), NOW_MS), [b"k"] * len(values))
        assert decoded.batch.values_MV.shape == (0, 4)
        assert decoded.batch.hashes_MK.shape == (0, 4)
        assert [bad.index for bad in decoded.bad] == list(range(len(values)))


ALL_BAD = [value for cases in BAD.values() for value, _ in cases if value is None or len(value) < 1000]


@given(places=st.lists(st.one_of(st.none(), st.sampled_from(ALL_BAD)), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_bad_records_leave_the_good_ones_alone(payments: Codec, places: list[bytes | None]) -> None:
    """Good records among bad ones give the very batch that they give alone, and each bad one is named once."""
    values = [
        event(transaction_id=i, amount=i / 3, card_id=f"c{i % 3}") if bad is None else bad
        for i, bad in enumerate(places)
    ]
    good = [i for i, bad in enumerate(places) if bad is None]
    decoded = payments.decode(values, np.full(len(values), NOW_MS))
    alone = payments.decode([values[i] for i in good], np.full(len(good), NOW_MS))
    assert decoded.good.tolist() == good
    assert [bad.index for bad in decoded.bad] == [i for i in range(len(places)) if i not in good]
    assert alone.bad == []
    assert_same_batch(decoded.batch, alone.batch)


@pytest.mark.parametrize(
    ("unit", "text", "ms"),
    [
        ("ms", "1704067200123", NOW_MS + 123),
        ("ms", "1", 1),
        ("s", "1704067200", NOW_MS),
        ("s", "1704067200.123", NOW_MS + 123),
        ("s", "1.704067200123e9", NOW_MS + 123),
        ("s", "0.001", 1),
        ("iso8601", '"2024-01-01T00:00:00.123Z"', NOW_MS + 123),
        ("iso8601", '"2024-01-01 00:00:00"', NOW_MS),  # without an offset it is UTC
        ("iso8601", '"2024-01-01T01:30:00+01:30"', NOW_MS),
        ("iso8601", '"2023-12-31T19:00:00.123456-05:00"', NOW_MS + 123),
    ],
)
def test_times_in_every_unit(unit: str, text: str, ms: int) -> None:
    """A time is the same millisecond in every unit and offset."""
    decoded = decode_one(with_unit(unit), f'{{"id": "a", "at": {text}, "Who": "w"}}'.encode())
    assert decoded.bad == []
    assert decoded.batch.time_M.tolist() == [ms]


@pytest.mark.parametrize(
    ("unit", "text", "reason"),
    [
        ("ms", "1704067200000.5", "schema"), ("ms", '"1704067200000"', "schema"), ("ms", "9" * 30, "schema"),
        ("ms", "-1", "time"), ("ms", "true", "schema"), ("ms", "17040672000000", "time"), ("s", "0", "time"),
        ("s", "1704067200000", "schema"), ("s", "1e308", "schema"), ("s", "1704067501", "future"),
        ("iso8601", '"2024-01-01"', "schema"), ("iso8601", '""', "schema"),
    ],
)  # fmt: skip
def test_bad_times_in_every_unit(unit: str, text: str, reason: str) -> None:
    """A time in the wrong unit is refused, not taken for another day."""
    assert refusal(with_unit(unit), f'{{"id": "a", "at": {text}, "Who": "w"}}'.encode()).reason == reason


def test_the_future_is_measured_against_each_records_own_append_time(payments: Codec) -> None:
    """An event is not late or early by when it is decoded, only by when the broker took it."""
    value = event(timestamp="2024-01-01T00:07:00Z")
    decoded = payments.decode([value] * 3, np.array([NOW_MS, NOW_MS + 120_000, NOW_MS + 119_999]))
    assert decoded.good.tolist() == [1]
    assert {bad.reason for bad in decoded.bad} == {"future"}


@pytest.mark.parametrize(
    ("append_ms", "reasons"),
    [(2**63 - 1, []), (2**62, []), (-1, ["future"]), (-(2**62), ["future"]), (-(2**63), ["future"])],
)
def test_the_time_of_the_record_may_be_anything(payments: Codec, append_ms: int, reasons: list[str]) -> None:
    """Kafka takes any number from a producer as the record's time; it stops no batch."""
    append = np.array([append_ms])
    label = b'{"transaction_id": "t", "is_fraud": 1, "label_time": "2024-01-01T00:00:00Z"}'
    assert [bad.reason for bad in payments.decode([event()], append).bad] == reasons
    assert [bad.reason for bad in payments.decode_labels([label], append).bad] == reasons


def test_a_number_without_limits_fits_float32() -> None:
    """What float32 cannot hold is refused rather than remembered as infinity."""
    codec = with_unit("ms")

    def level(text: str) -> Decoded:
        return decode_one(codec, f'{{"id": "a", "at": 5, "Who": "w", "level": {text}}}'.encode())

    assert [bad.reason for text in ("1e39", "-1e39") for bad in level(text).bad] == ["range"] * 2
    for text in ("3.4e38", "-3.4e38", "1e-320", "null"):
        assert not np.isinf(level(text).batch.values_MV).any()


def test_bad_labels_have_reasons(payments: Codec) -> None:
    """Labels are checked as events are, and bad ones leave the good ones alone."""
    good = {"transaction_id": "t", "is_fraud": 1, "label_time": "2024-01-01T00:00:00Z", "merchant_id": "m"}
    cases: list[tuple[Any, str | None]] = [
        (good, None), (b"[]", "schema"), (good | {"is_fraud": 2}, "schema"), (good | {"is_fraud": "yes"}, "schema"),
        (good | {"is_fraud": None}, "schema"), (good | {"is_fraud": True}, None), (b"\xff", "encoding"), (b"", "empty"),
        (None, "empty"), (good | {"label_time": "1960-01-01T00:00:00Z"}, "time"), (b"x" * (MAX_BYTES + 1), "size"),
        (good | {"label_time": "2024-01-02T00:00:00Z"}, "future"), (b"{nope}", "json"), (good | {"is_fraud": 0}, None),
        (good | {"amount": "7"}, "schema"), (good | {"amount": -0.01}, "range"), (good | {"amount": 1e8}, "range"),
        (good | {"amount": None}, None), (good | {"amount": 7}, None),
        (json.dumps(good | {"amount": 1})[:-2].encode() + b"NaN}", "json"),
    ]  # fmt: skip
    values = [json.dumps(v).encode() if isinstance(v, dict) else v for v, _ in cases]
    labels = payments.decode_labels(values, np.full(len(values), NOW_MS))
    reasons = {bad.index: bad.reason for bad in labels.bad}
    assert [reasons.get(i) for i in range(len(cases))] == [reason for _, reason in cases]
    assert labels.good.tolist() == [i for i, (_, reason) in enumerate(cases) if reason is None]
    assert labels.batch.fraud_M.tolist() == [True, True, False, True, True]
    np.testing.assert_array_equal(labels.batch.amounts["amount"], [math.nan] * 4 + [7.0])
    (low,) = (bad.detail for bad in labels.bad if values[bad.index] == json.dumps(good | {"amount": -0.01}).encode())
    assert low == "amount = -0.01: expected a number from 0.0 to 10000000.0"


def test_an_event_with_an_unreadable_member_nobody_reads_can_be_shown(payments: Codec) -> None:
    """A good event stays good when it alerts: what cannot be repeated is left out of the alert's copy."""
    value = raw("note", "1e400")
    assert decode_one(payments, value).bad == []
    shown = payments.decode_one(value)
    assert "note" not in shown
    assert (shown["transaction_id"], shown["amount"], shown["latitude"]) == ("t1", 12.5, 45.5)


@pytest.mark.parametrize(("value", "reason"), [(b"{", "json"), (b"[]", "schema"), (b"\xff", "encoding")])
def test_decode_one_names_the_reason(payments: Codec, value: bytes, reason: str) -> None:
    """What is no event at all is an EventError with one of the known reasons."""
    with pytest.raises(EventError) as caught:
        payments.decode_one(value)
    assert caught.value.reason == reason


@given(value=st.binary(max_size=60) | st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")))
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise(payments: Codec, value: bytes) -> None:
    """Whatever the bytes, the answer is an event or a known reason, never an exception."""
    for damaged in (value, event()[: len(value)], event()[:40] + value + event()[40:]):
        decoded = decode_one(payments, damaged, b"c1")
        assert len(decoded.batch) + len(decoded.bad) == 1
        assert all(bad.reason in REASONS for bad in decoded.bad)


def assert_same_batch(a: EventBatch, b: EventBatch) -> None:
    assert (a.event_id, a.entity, a.profile_keys) == (b.event_id, b.entity, b.profile_keys)
    for name in ("time_M", "id_hash_M", "values_MV", "hashes_MK"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
