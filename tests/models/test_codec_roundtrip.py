"""What is written to a topic and read again is what it was."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.codec import Codec
from models.hashing import hash32, hash64
from models.pipeline.load import load_pipeline, parse_pipeline

NOW_MS = 1_704_067_200_000  # 2024-01-01T00:00:00Z


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


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
ids = st.one_of(texts, st.integers(-(2**63), 2**63 - 1))
rows = st.fixed_dictionaries(
    {"transaction_id": ids, "timestamp": st.integers(1, NOW_MS), "card_id": ids, "merchant_id": ids,
     "amount": st.floats(0, 1e7, width=32)},
    optional={
        "device_id": st.none() | ids, "channel": st.none() | st.text(max_size=9) | st.booleans(),
        "merchant_category": st.integers(-5, 5), "card_present": st.none() | st.booleans(),
        "place": st.none() | st.tuples(st.floats(-90, 90, width=32), st.floats(-180, 180, width=32)),
    },
)  # fmt: skip


def expected_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its position as two columns, and what is missing left out."""
    out = {name: value for name, value in row.items() if value is not None and name != "place"}
    if row.get("place") is not None:
        out["location.latitude"], out["location.longitude"] = row["place"]
    return out


@given(rows=st.lists(rows, min_size=1, max_size=6))
@settings(max_examples=80, deadline=None)
def test_what_is_encoded_is_decoded(payments: Codec, rows: list[dict[str, Any]]) -> None:
    """Every row survives the way to a topic and back, value by value, under the key a producer gives it."""
    plain = [expected_row(row) for row in rows]
    values = [payments.encode_event(row) for row in plain]
    decoded = payments.decode(values, np.full(len(rows), NOW_MS), [str(row["card_id"]).encode() for row in plain])
    assert decoded.bad == []
    batch = decoded.batch
    assert batch.event_id == [str(row["transaction_id"]) for row in plain]
    assert batch.entity == [str(row["card_id"]) for row in plain]
    assert batch.time_M.tolist() == [row["timestamp"] for row in plain]
    found = [[None if math.isnan(v) else v for v in values] for values in batch.values_MV.tolist()]
    assert found == [[row.get(name) for name in payments.layout.values] for row in plain]
    for k, name in enumerate(payments.layout.hashes):
        wanted = [row.get(name) for row in plain]
        written = [str(v).lower() if isinstance(v, bool) else str(v) for v in wanted]
        assert batch.hashes_MK[:, k].tolist() == [
            0 if v is None else hash32(t) for v, t in zip(wanted, written, strict=True)
        ]


@pytest.mark.parametrize("unit", ["ms", "s", "iso8601"])
@given(ms=st.integers(1, 4_102_444_799_999))
@settings(max_examples=60, deadline=None)
def test_a_time_survives_in_every_unit(unit: str, ms: int) -> None:
    """No millisecond from 1970 to 2100 is moved by writing and reading it."""
    codec = with_unit(unit)
    value = codec.encode_event({"id": 1, "at": ms, "who": "w", "level": float("nan")})
    assert b"level" not in value
    assert codec.decode([value], np.array([ms])).batch.time_M.tolist() == [ms]
    label = codec.encode_label("e", ms, True, {})
    assert codec.decode_labels([label], np.array([ms])).batch.time_M.tolist() == [ms]


def test_numpy_values_are_encoded_as_plain_ones(payments: Codec) -> None:
    """Rows that come out of tables hold numpy's types; the topic holds JSON's."""
    row = {
        "transaction_id": np.int64(5), "timestamp": np.int64(NOW_MS), "card_id": np.str_("c"), "merchant_id": "m",
        "amount": np.float32(2.5), "card_present": np.bool_(False), "channel": np.float64("nan"),
    }  # fmt: skip
    assert json.loads(payments.encode_event(row)) == {
        "transaction_id": 5, "timestamp": "2024-01-01T00:00:00.000Z", "card_id": "c", "merchant_id": "m",
        "amount": 2.5, "card_present": False,
    }  # fmt: skip


def test_labels_survive(payments: Codec) -> None:
    """A label keeps its event, verdict, arrival, profile keys and amount; what is missing stays missing."""
    values = [
        payments.encode_label("t1", NOW_MS, True, {"merchant_id": "m1", "device_id": None, "amount": 12.34}),
        payments.encode_label(8, NOW_MS - 1, False, {"card_id": "c", "merchant_id": 3, "device_id": "d"}),
    ]
    labels = payments.decode_labels(values, np.full(2, NOW_MS))
    assert labels.bad == []
    assert labels.batch.event_id == ["t1", "8"]
    assert labels.batch.fraud_M.tolist() == [True, False]
    assert labels.batch.time_M.tolist() == [NOW_MS, NOW_MS - 1]
    keys = {"card": [None, "c"], "merchant": ["m1", "3"], "device": [None, "d"]}
    assert labels.batch.profile_keys == keys
    np.testing.assert_array_equal(labels.batch.amounts["amount"], [12.34, np.nan])
    assert labels.batch.id_hash_M.tolist() == [hash64("t1"), hash64("8")]
