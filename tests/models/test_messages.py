"""Scores, alerts and dead letters as the worker publishes them."""

from __future__ import annotations

import json
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.messages import (
    Alert,
    Explanation,
    Score,
    dead_letter_headers,
    decode_score,
    encode,
    encode_scores,
    rounded,
    rounded_each,
)

SCORE = Score(
    pipeline="p", event_id="e", entity="c", event_time="2024-01-01T00:00:00.000Z", score=0.25, probability=0.5,
    alert=False, model="v1",
)  # fmt: skip


def test_a_score_has_the_published_members() -> None:
    """The members of version 1, under these names: other people's programs read them."""
    assert json.loads(encode(SCORE)) == {
        "schema": 1, "pipeline": "p", "event_id": "e", "entity": "c", "event_time": "2024-01-01T00:00:00.000Z",
        "score": 0.25, "probability": 0.5, "alert": False, "model": "v1",
    }  # fmt: skip


def test_a_score_survives() -> None:
    """What is decoded is what was encoded, also when a later version has added a member."""
    assert decode_score(encode(SCORE)) == SCORE
    assert decode_score(encode(SCORE)[:-1] + b',"added_later":[1]}') == SCORE


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['"', "\\", "a\nb", "\x00", "é"]
)
floats = st.floats(0, 1, width=32)


@given(rows=st.lists(st.tuples(texts, texts, texts, floats, floats, st.booleans()), max_size=5), pipeline=texts)
def test_scores_of_a_batch_are_those_of_its_events(
    rows: list[tuple[str, str, str, float, float, bool]], pipeline: str
) -> None:
    """A batch of scores has the bytes of each of its scores, whatever the texts hold."""
    ids, entities, times, scores, probabilities, alerts = map(list, zip(*rows, strict=True)) if rows else [[]] * 6
    assert encode_scores(pipeline, "v1", ids, entities, times, scores, probabilities, alerts) == [
        encode(
            Score(
                pipeline=pipeline, event_id=event_id, entity=entity, event_time=at, score=score,
                probability=probability, alert=alert, model="v1",
            )
        )
        for event_id, entity, at, score, probability, alert in rows
    ]  # fmt: skip


@pytest.mark.parametrize("value", [b"", b"{}", b"[]", encode(SCORE).replace(b"0.25", b'"high"')])
def test_what_is_no_score_is_refused(value: bytes) -> None:
    """A reader learns that it read something else."""
    with pytest.raises(msgspec.MsgspecError):
        decode_score(value)


def test_an_alert_has_the_published_members() -> None:
    """The members of version 1; the event stands in it as it came, and reasons keep their order."""
    facts = (("amount", 9.5, 0.5), ("channel", "x", 0.1))
    reasons = [Explanation(feature=feature, value=value, effect=effect) for feature, value, effect in facts]
    alert = Alert(
        alert_id="a", pipeline="p", event_id="e", entity="c", event_time="t", detector="gru", score=0.75,
        probability=0.5, threshold=0.7, reasons=reasons, model="v1", event={"z": 1, "a": [None, {"deep": "é"}]},
    )  # fmt: skip
    assert json.loads(encode(alert)) == {
        "schema": 1, "alert_id": "a", "pipeline": "p", "event_id": "e", "entity": "c", "event_time": "t",
        "detector": "gru", "score": 0.75, "probability": 0.5, "threshold": 0.7, "model": "v1",
        "reasons": [
            {"feature": "amount", "value": 9.5, "effect": 0.5}, {"feature": "channel", "value": "x", "effect": 0.1},
        ],
        "event": {"z": 1, "a": [None, {"deep": "é"}]},
    }  # fmt: skip


@given(value=st.floats(0, 1, width=32))
def test_rounding_keeps_float32_apart(value: float) -> None:
    """Nine digits give the same float32 again, and never one more digit than float32 has."""
    assert np.float32(rounded(value)) == np.float32(value)
    assert len(repr(rounded(value)).split("e")[0].replace(".", "").strip("0")) <= 9


# halves of the ninth digit among them, which a product of float64 numbers cannot tell from what is beside a half
hard = st.integers(0, 10**10).map(lambda n: n / 10**10) | st.integers(0, 2**20).map(lambda n: n / 2**20)


@given(values=st.lists(floats | st.floats(0, 1) | hard | st.floats(-9, 9), max_size=30))
def test_rounding_many_is_rounding_each(values: list[float]) -> None:
    """The fast way gives the very float64 of the slow one, for numbers of every size."""
    assert rounded_each(np.array(values, dtype=np.float64)).tolist() == [rounded(value) for value in values]
    single = np.array(values, dtype=np.float32)
    assert rounded_each(single).tolist() == [rounded(value) for value in single.tolist()]


def test_rounding_of_neighbours() -> None:
    """Two neighbouring scores stay two."""
    low = 0.7
    bits = struct.unpack("<I", struct.pack("<f", low))[0]
    neighbours = [struct.unpack("<f", struct.pack("<I", bits + i))[0] for i in range(4)]
    assert len({rounded(n) for n in neighbours}) == 4


def test_headers_of_a_dead_letter() -> None:
    """A dead letter says why it is here and where it came from, as UTF-8 text of bounded length."""
    headers = dead_letter_headers("schema", "é" * 900, "payments.events", 3, 41)
    assert [name for name, _ in headers] == [
        "lepton-reason", "lepton-detail", "lepton-topic", "lepton-partition", "lepton-offset",
    ]  # fmt: skip
    assert [value.decode() for _, value in headers] == ["schema", "é" * 500, "payments.events", "3", "41"]
