"""The published schemas agree with the codec and with the messages that are sent."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import numpy as np
import pytest

from models.codec import MAX_TEXT as CODEC_MAX_TEXT
from models.codec import Codec
from models.messages import Alert, Explanation, Score, encode
from models.pipeline import load_pipeline, parse_pipeline
from models.pipeline.schema import MAX_TEXT, asyncapi, event_schema, schemas
from models.pipeline.spec import Pipeline
from models.simulate import simulate

NOW_MS = 1_900_000_000_000
PAYMENT: dict[str, Any] = {
    "transaction_id": "t1",
    "timestamp": "2026-01-01T10:00:00Z",
    "card_id": "c1",
    "merchant_id": 17,
    "amount": 12.5,
    "latitude": 1.0,
    "longitude": 2,
}


@pytest.fixture(scope="module")
def payments() -> Pipeline:
    return load_pipeline("payments")


def accepted_by_schema(pipeline: Pipeline, topic: str, message: Any) -> bool:
    validator = jsonschema.Draft202012Validator(schemas(pipeline)[topic])
    return validator.is_valid(message)


def accepted_by_codec(pipeline: Pipeline, message: Any) -> bool:
    return len(Codec(pipeline).decode([json.dumps(message).encode()], np.array([NOW_MS])).good) == 1


def test_every_schema_is_a_valid_schema(payments: Pipeline) -> None:
    """What is published can be used by any JSON Schema tool."""
    for schema in schemas(payments).values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"extra": {"anything": 1}}, True),
        ({"device_id": None}, True),
        ({"device_id": 5}, True),
        ({"card_present": True}, True),
        ({"card_present": 1}, True),
        ({"card_present": 2}, False),
        ({"card_present": "yes"}, False),
        ({"channel": 5}, True),
        ({"channel": False}, True),
        ({"channel": ["web"]}, False),
        ({"channel": "x" * (MAX_TEXT + 1)}, False),
        ({"card_id": ""}, False),
        ({"card_id": "x" * (MAX_TEXT + 1)}, False),
        ({"card_id": 1.5}, False),
        ({"card_id": None}, False),
        ({"amount": "12"}, False),
        ({"amount": -1}, False),
        ({"amount": 10_000_001}, False),
        ({"amount": None}, False),
        ({"latitude": 91}, False),
        ({"timestamp": 5}, False),
        ({"transaction_id": True}, False),
    ],
)
def test_schema_and_codec_accept_the_same_events(payments: Pipeline, change: dict[str, Any], good: bool) -> None:
    """A producer that checks against the schema is never refused by the worker, and the reverse."""
    event = PAYMENT | change
    assert accepted_by_schema(payments, "events", event) is good
    assert accepted_by_codec(payments, event) is good


@pytest.mark.parametrize("key", list(PAYMENT))
def test_schema_and_codec_miss_the_same_keys(payments: Pipeline, key: str) -> None:
    """A key is required by the schema exactly when the codec needs it; half a position is refused by both."""
    event = {name: value for name, value in PAYMENT.items() if name != key}
    assert not accepted_by_schema(payments, "events", event)
    assert not accepted_by_codec(payments, event)


def test_simulated_events_and_labels_fit_their_schemas(payments: Pipeline) -> None:
    """What the codec writes is what the schema describes."""
    codec, small = Codec(payments), simulate(1, 20, 10, 3)
    for row in small.event_rows():
        assert accepted_by_schema(payments, "events", json.loads(codec.encode_event(row)))
    for row in small.label_rows():
        fields = {name: row[name] for name in ("card_id", "merchant_id", "device_id", "amount")}
        label = json.loads(codec.encode_label(row["event_id"], int(str(row["time"])), bool(row["fraud"]), fields))
        assert accepted_by_schema(payments, "labels", label)
        assert label["amount"] == row["amount"]
        assert not accepted_by_schema(payments, "labels", label | {"amount": -1})
    assert not accepted_by_schema(payments, "labels", {"transaction_id": "t1", "is_fraud": 2, "label_time": "x"})


def test_scores_and_alerts_fit_their_schemas_and_no_key_is_left_out(payments: Pipeline) -> None:
    """The schema requires exactly the keys that the worker sends."""
    common: dict[str, Any] = {
        "pipeline": "payments", "event_id": "t1", "entity": "c1", "event_time": "2026-01-01T10:00:00.000Z",
        "score": 0.5, "probability": 0.25, "model": "v1",
    }  # fmt: skip
    reason = Explanation(feature="amount", value=12.5, effect=0.25)
    alert = Alert(**common, alert_id="a1", detector="gru", threshold=0.5, reasons=[reason], event=PAYMENT)
    for topic, message in (("scores", Score(**common, alert=False)), ("alerts", alert)):
        sent = json.loads(encode(message))
        assert accepted_by_schema(payments, topic, sent)
        schema = schemas(payments)[topic]
        assert set(schema["required"]) == set(schema["properties"]) == set(sent)
        assert not accepted_by_schema(payments, topic, sent | {"score": 1.5})
        assert not accepted_by_schema(payments, topic, sent | {"pipeline": "other"})
    assert set(msgspec.to_builtins(reason)) == set(
        schemas(payments)["alerts"]["properties"]["reasons"]["items"]["required"]
    )


@pytest.mark.parametrize(("unit", "value"), [("s", 1_700_000_000.5), ("ms", 1_700_000_000_000)])
def test_a_pipeline_of_ones_own_has_schemas_without_any_python(unit: str, value: float) -> None:
    """Schemas follow the pipeline file, units of time and renamed keys included."""
    text = f"""
    [pipeline]
    name = "plant"
    entity = "machine"
    event_id = "id"
    time = "at"
    [fields]
    id = {{ type = "id" }}
    at = {{ type = "time", unit = "{unit}", source = "T" }}
    machine = {{ type = "entity" }}
    heat = {{ type = "number", unit = "K" }}
    """
    plant = parse_pipeline(text, "plant")
    event = {"id": 1, "T": value, "machine": "m", "heat": -3}
    for change, good in (({}, True), ({"T": "2026-01-01T10:00:00Z"}, False), ({"heat": "hot"}, False)):
        assert accepted_by_schema(plant, "events", event | change) is good
        assert accepted_by_codec(plant, event | change) is good
    assert event_schema(plant)["properties"]["heat"]["description"] == "K"


def test_the_text_limit_is_the_codecs() -> None:
    """One limit, stated in two layers that do not import each other."""
    assert MAX_TEXT == CODEC_MAX_TEXT


def test_asyncapi_lists_every_topic_and_its_references_resolve(payments: Pipeline) -> None:
    """The document names the topics as they are on the broker, and nothing in it dangles."""
    document = asyncapi(payments)
    assert document["asyncapi"].startswith("3.")
    addresses = {channel["address"] for channel in document["channels"].values()}
    assert addresses == {payments.topic(t) for t in ("events", "labels", "scores", "alerts", "dead-letter")}
    references = [*_references(document)]
    assert len(references) == 2 * len(addresses)
    for reference in references:
        node: Any = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]
    assert json.loads(json.dumps(document)) == document


def _references(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [node["$ref"]] if "$ref" in node else [r for value in node.values() for r in _references(value)]
    return []
