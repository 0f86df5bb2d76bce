"""JSON Schema (2020-12) of a pipeline's topics, and the AsyncAPI 3.0 document that lists them.

Producers and consumers in other languages generate their types from these. Schemas only grow: a key is
never removed and never changes its meaning; `schema` in a score or an alert counts the versions.
"""

from __future__ import annotations

from typing import Any

from models.episodes import KINDS
from models.messages import FLEET_ONLY, INSUFFICIENT, SCHEMA_VERSION
from models.pipeline.spec import (
    BooleanField,
    CategoryField,
    EntityField,
    Field,
    GeoField,
    IdField,
    NumberField,
    Pipeline,
    TimeField,
    without_labels,
)
from models.records import MAX_TEXT

__all__ = ["asyncapi", "event_schema", "schemas"]

Json = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
UNIT: Json = {"type": "number", "minimum": 0, "maximum": 1}
INSTANT: Json = {"type": "string", "format": "date-time"}
TEXT: Json = {"type": "string"}
IDENTIFIER: Json = {"type": ["string", "integer"], "minLength": 1, "maxLength": MAX_TEXT}

DEAD_LETTER_HEADERS = {
    "lepton-reason": "why the record was refused, one of a fixed list of codes",
    "lepton-detail": "which field, value and expectation",
    "lepton-topic": "the topic it came from",
    "lepton-partition": "its partition there",
    "lepton-offset": "its offset there",
}
CUT_HEADER = {"lepton-cut": "bytes it had, where the value was cut to fit with its headers into one record"}


def schemas(pipeline: Pipeline) -> dict[str, Json]:
    """The schema of each topic whose records are JSON: events, labels, scores and alerts."""
    makers = {"events": event_schema, "labels": _label_schema, "scores": _score_schema, "alerts": _alert_schema}
    return {
        topic: {"$schema": DIALECT, "$id": f"{pipeline.topic(topic)}.json", "title": pipeline.topic(topic)}
        | make(pipeline)
        for topic, make in makers.items()
    }


def asyncapi(pipeline: Pipeline) -> Json:
    """The AsyncAPI document of a pipeline: its topics, who writes them and what their records hold."""
    parts = schemas(pipeline)
    notes = {
        "events": ("receive", "what happened, keyed by the entity", pipeline.entity),
        "labels": ("receive", "verdicts on events, keyed by the event's id", "event id"),
        "scores": ("send", "one score for each event, in the event's partition", pipeline.entity),
        "alerts": ("send", "events whose score reached the threshold; at least once, by alert_id", pipeline.entity),
        "dead-letter": ("send", "records that could not be used: key and value as they came", "as it came"),
    }
    messages = {
        topic: {
            "summary": summary,
            "contentType": "application/json" if topic in parts else "application/octet-stream",
            "bindings": {"kafka": {"key": {"type": "string", "description": key}}},
            **({"payload": parts[topic]} if topic in parts else {"headers": _dead_letter_headers()}),
        }
        for topic, (_, summary, key) in notes.items()
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": f"Lepton pipeline {pipeline.name}", "version": f"{SCHEMA_VERSION}.0.0"},
        "defaultContentType": "application/json",
        "channels": {
            topic: {
                "address": pipeline.topic(topic),
                "messages": {topic: {"$ref": f"#/components/messages/{topic}"}},
            }
            for topic in notes
        },
        "operations": {
            topic: {"action": action, "channel": {"$ref": f"#/channels/{topic}"}}
            for topic, (action, _, _) in notes.items()
        },
        "components": {"messages": messages},
    }


def event_schema(pipeline: Pipeline) -> Json:
    """An event as producers write it. Keys that no field reads are allowed, and ignored."""
    properties: dict[str, Json] = {}
    required: list[str] = []
    together: dict[str, list[str]] = {}
    for name, field in pipeline.fields.items():
        if isinstance(field, GeoField):
            keys = {field.latitude: _degrees(90), field.longitude: _degrees(180)}
            together |= {field.latitude: [field.longitude], field.longitude: [field.latitude]}
        else:
            keys = {pipeline.json_key(name): _value(field)}
        if field.required:
            required += keys
        properties |= {key: schema if field.required else _nullable(schema) for key, schema in keys.items()}
    out: Json = {"type": "object", "properties": properties, "required": required}
    return out | ({"dependentRequired": together} if together else {})


def _label_schema(pipeline: Pipeline) -> Json:
    labels, event_id = pipeline.labels, pipeline.json_key(pipeline.pipeline.event_id)
    keys = [pipeline.json_key(name) for name in pipeline.profile_keys]
    amounts = {pipeline.json_key(name): _value(pipeline.fields[name]) for name in pipeline.label_amounts}
    return {
        "type": "object",
        "properties": {
            event_id: IDENTIFIER | {"description": "the event that is judged"},
            labels.verdict: {"enum": [0, 1, True, False], "description": "1 or true: fraud"},
            labels.time: _value(pipeline.fields[pipeline.pipeline.time]) | {"description": "when the label arrived"},
            labels.source: {"type": ["string", "null"], "description": "who judges: [learning.sources] weighs them"},
            **{key: _nullable(IDENTIFIER) | {"description": "as in the event"} for key in keys},
            **{key: _nullable(schema) | {"description": "as in the event"} for key, schema in amounts.items()},
        },
        "required": [event_id, labels.verdict, labels.time],
    }


def _score_schema(pipeline: Pipeline) -> Json:
    properties = _common(pipeline) | {
        "alert": {"type": "boolean", "description": "whether the score reached the model's threshold"},
    }
    required = list(properties)
    if without_labels(pipeline.detector.architecture):
        about = "there unless the entity's own past has a say in the score: if only its fleet has, or nothing"
        properties["status"] = {"enum": [FLEET_ONLY, INSUFFICIENT], "description": about}
    return {"type": "object", "properties": properties, "required": required}


def _alert_schema(pipeline: Pipeline) -> Json:
    reason = {
        "feature": TEXT,
        "value": {"type": ["number", "string", "boolean", "null"]},
        "effect": {"type": "number", "description": "the score less the score without this feature"},
    }
    properties = _common(pipeline) | {
        "alert_id": TEXT | {"description": "the same for every repeat of this alert"},
        "detector": TEXT,
        "threshold": {"type": "number"},
        "reasons": {
            "type": "array",
            "description": "what most raised the score, greatest effect first",
            "items": {"type": "object", "properties": reason, "required": list(reason)},
        },
        "event": {"type": "object", "description": "the event as it came"},
    }
    if pipeline.episodes.calm:
        properties["episode"] = _episode_schema()
    if pipeline.surprise.learn:
        reason["expected"] = {"type": "number", "description": "what was forecast for the field, in its unit"}
    return {"type": "object", "properties": properties, "required": list(properties)}


def _episode_schema() -> Json:
    properties = {
        "id": TEXT | {"description": "the alert_id that opened it"},
        "state": {"enum": [kind for kind in KINDS if kind]},
        "opened_at": INSTANT,
        "events": {"type": "integer", "minimum": 1, "description": "that reached the threshold so far"},
        "peak_score": UNIT,
    }
    quiet = {"type": "integer", "minimum": 0, "description": "of an opening: events that were kept quiet before it"}
    about = "the run of strange events of this entity that the alert belongs to"
    return {
        "type": "object", "description": about, "properties": properties | {"quiet": quiet},
        "required": list(properties),
    }  # fmt: skip


def _common(pipeline: Pipeline) -> dict[str, Json]:
    """What a score and an alert both say."""
    meaning = "of fraud, calibrated on labelled events"
    if without_labels(pipeline.detector.architecture):
        meaning = "the share of the entity's own earlier events that scored lower"
    return {
        "schema": {"const": SCHEMA_VERSION},
        "pipeline": {"const": pipeline.name},
        "event_id": TEXT,
        "entity": TEXT | {"description": f"the event's {pipeline.entity}"},
        "event_time": INSTANT,
        "score": UNIT | {"description": "higher is stranger"},
        "probability": UNIT | {"description": meaning},
        "model": TEXT | {"description": "version of the model bundle"},
    }


def _dead_letter_headers() -> Json:
    described = DEAD_LETTER_HEADERS | CUT_HEADER
    properties = {name: TEXT | {"description": text} for name, text in described.items()}
    return {"type": "object", "properties": properties, "required": list(DEAD_LETTER_HEADERS)}


def _value(field: Field) -> Json:
    if isinstance(field, IdField | EntityField):
        return dict(IDENTIFIER)
    if isinstance(field, TimeField):
        return {"iso8601": INSTANT, "s": {"type": "number"}, "ms": {"type": "integer"}}[field.unit]
    if isinstance(field, CategoryField):
        return {"type": ["string", "integer", "boolean"], "maxLength": MAX_TEXT}
    if isinstance(field, BooleanField):
        return {"enum": [True, False, 0, 1]}
    assert isinstance(field, NumberField)  # positions have two keys and are handled by the caller
    limits = {"minimum": field.min, "maximum": field.max, "description": field.unit or None}
    return {"type": "number"} | {key: value for key, value in limits.items() if value is not None}


def _degrees(limit: int) -> Json:
    return {"type": "number", "minimum": -limit, "maximum": limit, "description": "degrees"}


def _nullable(schema: Json) -> Json:
    if "enum" in schema:
        return schema | {"enum": [*schema["enum"], None]}
    kinds = schema["type"]
    return schema | {"type": [*(kinds if isinstance(kinds, list) else [kinds]), "null"]}
