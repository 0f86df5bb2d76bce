"""Reading pipeline files: what loads, what is derived, and that every mistake is named."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from models.errors import PipelineError
from models.features.layout import Layout
from models.pipeline import digest, load_pipeline, parse_pipeline, shipped_pipelines
from models.pipeline.spec import EntityField, NumberField

GOOD = """
[pipeline]
name = "parcels"
entity = "van"
event_id = "scan"
time = "at"
max_future = "10m"

[fields]
scan = { type = "id", source = "scanId" }
at = { type = "time", unit = "ms" }
van = { type = "entity" }
depot = { type = "entity", required = false }
weight = { type = "number", unit = "kg", min = 0, max = 100 }
kind = { type = "category", buckets = 8 }
fragile = { type = "boolean" }
place = { type = "geo", latitude = "lat", longitude = "lon" }

[profiles.depot]
key = "depot"
amount = "weight"
half_lives = ["1h", "1d"]
delay = "30m"
"""


def error_of(text: str) -> PipelineError:
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, "parcels.toml")
    return caught.value


def test_every_shipped_pipeline_loads_under_its_own_name() -> None:
    """A name in the list of shipped pipelines is a pipeline of that name."""
    assert "payments" in shipped_pipelines()
    for name in shipped_pipelines():
        assert load_pipeline(name).name == name


def test_a_file_keeps_its_order_types_sources_and_defaults(tmp_path: Path) -> None:
    """What the file says is what the program sees; what it leaves out has its documented default."""
    path = tmp_path / "parcels.toml"
    path.write_text(GOOD)
    pipeline = load_pipeline(path)
    assert list(pipeline.fields) == ["scan", "at", "van", "depot", "weight", "kind", "fragile", "place"]
    assert pipeline.of_type(EntityField) == ["van", "depot"]
    assert (pipeline.json_key("scan"), pipeline.json_key("van")) == ("scanId", "van")
    assert pipeline.topic("dead-letter") == "parcels.dead-letter"
    assert pipeline.pipeline.max_future_ms == 600_000
    assert pipeline.profiles["depot"].half_lives_ms == [3_600_000, 86_400_000]
    assert (pipeline.window.length, pipeline.labels.verdict, pipeline.policy.reasons) == (32, "is_fraud", 3)
    weight = pipeline.fields["weight"]
    assert isinstance(weight, NumberField)
    assert (weight.transform, weight.required) == ("linear", True)


# (what is replaced in GOOD, by what, the key named, what the message expects)
MISTAKES = [
    # one value
    ('unit = "ms"', 'unit = "hours"', "fields.at.unit", "one of ms, s, iso8601"),
    ('type = "boolean"', 'type = "bool"', "fields.fragile.type", "one of id, time, entity, number, category"),
    ('fragile = { type = "boolean" }', "fragile = {}", "fields.fragile.type", "one of id, time"),
    ('fragile = { type = "boolean" }', "fragile = 3", "fields.fragile", "a table"),
    ("buckets = 8", "buckets = 2", "fields.kind.buckets", "a whole number >= 4"),
    ("buckets = 8", 'buckets = "8"', "fields.kind.buckets", "a whole number"),
    ("min = 0,", 'min = "0",', "fields.weight.min", "a number"),
    ("min = 0,", "minimum = 0,", "fields.weight.minimum", "the known ones are type, source, required, unit, min"),
    ('max_future = "10m"', 'max_future = "ten"', "pipeline.max_future", "a duration such as 30s, 10m, 1.5h or 7d"),
    ('["1h", "1d"]', '["1h", "1day"]', "profiles.depot.half_lives[1]", "a duration such as 30s"),
    ('["1h", "1d"]', "[]", "profiles.depot.half_lives", "a list of length >= 1"),
    ('name = "parcels"', 'name = "Parcels!"', "pipeline.name", "lower-case letters, digits and hyphens"),
    ('entity = "van"', "", "pipeline.entity", "a value, since it is required"),
    ("weight = {", "Weight = {", "name in fields", "lower-case letters, digits and underscores"),
    ("[profiles.depot]", "[profile.depot]", "profile", "one of the tables pipeline, fields, window, profiles"),
    # two values
    ('entity = "van"', 'entity = "weight"', "pipeline.entity", "a field of type entity (van, depot)"),
    ('event_id = "scan"', 'event_id = "nothing"', "pipeline.event_id", "a field of type id (scan)"),
    ('van = { type = "entity" }', 'van = { type = "entity", required = false }', "fields.van.required", "true, since"),
    ('fragile = { type = "boolean" }', 'fragile = { type = "time" }', "fields.fragile.type", "another type"),
    ('latitude = "lat"', 'latitude = "weight"', "fields.place.latitude", "fields.weight reads this one"),
    ('longitude = "lon"', 'longitude = "lat"', "fields.place.longitude", "fields.place reads this one"),
    ('type = "geo"', 'type = "geo", source = "pos"', "fields.place.source", "latitude and longitude instead"),
    ("max = 100", "max = 0", "fields.weight.max", "a number above min = 0"),
    ("min = 0,", 'transform = "log1p",', "fields.weight.transform", "min of 0 or more (it is None)"),
    ('key = "depot"', 'key = "weight"', "profiles.depot.key", "a field of type entity (van, depot)"),
    ('amount = "weight"', 'amount = "kind"', "profiles.depot.amount", "a field of type number (weight)"),
    ('["1h", "1d"]', '["1d", "1h"]', "profiles.depot.half_lives", "increasing order"),
    ('["1h", "1d"]', '["11s"]', "profiles.depot.half_lives", "12s or more"),
    ('delay = "30m"', 'delay = "31m"', "profiles.depot.delay", "at most half of the shortest half-life, 1h"),
    ('max_future = "10m"', 'max_future = "0s"', "pipeline.max_future", "above zero"),
    ('delay = "30m"', "verdicts = 65", "profiles.depot.verdicts", "a whole number <= 64"),
    ('delay = "30m"', "verdicts = -1", "profiles.depot.verdicts", "a whole number >= 0"),
    ('key = "depot"', 'key = "depot"\ncompare = "depot"', "profiles.depot.compare", "verdicts above 0 beside it"),
    ('key = "depot"', 'key = "depot"\nverdicts = 4\ncompare = "van"', "profiles.depot.compare", "of a profile (depot)"),
    ('amount = "weight"', 'verdicts = 4\ncompare = "depot"', "profiles.depot.compare", "an amount beside it"),
]


@pytest.mark.parametrize(("old", "new", "key", "expected"), MISTAKES)
def test_a_mistake_is_named_by_file_key_and_expectation(old: str, new: str, key: str, expected: str) -> None:
    """Every kind of mistake is an error that says where it is and what should stand there."""
    assert GOOD.count(old) == 1, "the mistake must be made exactly once"
    error = error_of(GOOD.replace(old, new))
    assert (error.source, error.key) == ("parcels.toml", key)
    assert expected in error.expected
    assert str(error).startswith(f"parcels.toml: {key} = ")


JUDGED = '[profiles.all]\nkey = "van"\namount = "weight"\nverdicts = 1\n'


@pytest.mark.parametrize(
    ("more", "key", "expected"),
    [
        ('[labels]\nverdict = "scanId"', "labels.verdict", "fields.scan reads this one"),
        (f'{JUDGED}[labels]\nverdict = "weight"', "labels.verdict", "fields.weight reads this one"),
        (f'{JUDGED}compare = "no"\n[profiles.no]\nkey = "van"', "profiles.all.compare", "(profiles.no has none)"),
        ('[labels]\nverdict = "v"\ntime = "v"', "labels.time", "labels.verdict reads this one"),
        ('[state]\nttl = "1d"', "state.ttl", "at least the longest horizon, 30d"),
        ('[window]\nhorizons = ["1d", "1h"]', "window.horizons", "increasing order"),
        ('[detector]\narchitecture = "oracle"', "detector.architecture", "one of gru"),
        ("[policy]\nalerts_per_day = 0", "policy.alerts_per_day", "a number > 0"),
    ],
)
def test_a_mistake_in_an_optional_table_is_named(more: str, key: str, expected: str) -> None:
    """Tables that may be left out are checked as strictly as the others."""
    error = error_of(f"{GOOD}\n{more}\n")
    assert error.key == key
    assert expected in error.expected


def test_a_profile_may_be_the_entitys_own() -> None:
    """What others' verdicts are compared with; without `compare`, verdicts are compared with their own profile."""
    more = '[profiles.own]\nkey = "van"\namount = "weight"\nverdicts = 29'
    pipeline = parse_pipeline(f"{GOOD}\n{more}\n", "parcels.toml")
    layout = Layout(pipeline)
    assert (layout.compared("own"), layout.compared("depot")) == ("own", None)
    assert (layout.inputs.verdicts, layout.inputs.verdict_shape) == (("own",), (1, 29, 7))
    assert (pipeline.profile_keys, pipeline.label_amounts) == (["depot", "van"], ["weight"])
    own, depot = (layout.empty_profiles(pipeline.profiles[name], 1).shape for name in ("own", "depot"))
    assert (own, depot) == ((1, 3 + 2, 40), (1, 2, 40)), "29 and 15 to spare need two rings"


def test_the_value_that_is_wrong_stands_in_the_message() -> None:
    """The reader sees what was written, not only what was expected."""
    assert "'hours'" in str(error_of(GOOD.replace('unit = "ms"', 'unit = "hours"')))


def test_toml_syntax_errors_name_the_line() -> None:
    """A line that is no TOML is shown with its number."""
    error = error_of(GOOD.replace('entity = "van"', 'entity "van"'))
    assert (error.key, error.value) == ("line 4", 'entity "van"')
    assert "TOML" in error.expected
    assert error_of("[pipeline").key == "line 1"


def test_a_missing_table_is_named() -> None:
    """The two required tables are asked for by name."""
    head, fields = GOOD.split("[fields]")
    assert error_of(f"[fields]{fields}").key == "pipeline"
    assert error_of(head).key == "fields"


def test_neither_a_shipped_name_nor_a_file_is_an_error_that_lists_the_names() -> None:
    """A misspelt name shows the names that exist."""
    with pytest.raises(PipelineError, match="payments"):
        load_pipeline("paymints")


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    """A wrong encoding is reported with the byte at which it shows."""
    path = tmp_path / "latin.toml"
    path.write_bytes(b'[pipeline]\nname = "caf\xe9"\n')
    with pytest.raises(PipelineError, match=r"byte 22.*UTF-8"):
        load_pipeline(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("buckets = 8", "buckets = 16"),
        ('["1h", "1d"]', '["1h"]'),
        ("min = 0, max", "min = 1, max"),
        ("scanId", "scan_id"),
    ],
)
def test_the_digest_changes_with_what_a_model_reads(old: str, new: str) -> None:
    """A model trained for other inputs has another digest."""
    assert digest(parse_pipeline(GOOD.replace(old, new), "a")) != digest(parse_pipeline(GOOD, "b"))


def test_the_digest_does_not_change_with_policy_labels_or_layout_of_the_file() -> None:
    """A new budget, another maturity or a comment needs no new model."""
    more = '\n# a comment\n[policy]\nalerts_per_day = 5\n[labels]\nmaturity = "3d"\n'
    assert digest(parse_pipeline(GOOD + more, "a")) == digest(parse_pipeline(GOOD, "b"))


NUMBERS = 'channels = { type = "numbers", names = ["t1", "t2"], unit = "C", required = false }'


def test_numbers_are_as_many_number_fields() -> None:
    """The same pipeline, to the digest, as with a line for each."""
    text = (resources.files("models") / "pipelines" / "payments.toml").read_text(encoding="utf-8")
    alike = "\n".join(f'{name} = {{ type = "number", unit = "C", required = false }}' for name in ("t1", "t2"))
    short, long = (
        parse_pipeline(text.replace("[window]", f"{lines}\n[window]"), "x.toml") for lines in (NUMBERS, alike)
    )
    assert short.fields == long.fields
    assert list(short.fields)[-2:] == ["t1", "t2"]
    assert digest(short) == digest(long)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('["t1", "t2"]', "[]", r"fields.channels.names = \[\]: expected a list of names"),
        ('"t2"', '"T 2"', r"fields.channels.names = 'T 2': expected names such as those of fields"),
        ('"t2"', '"amount"', r"name in fields = 'amount': expected a name of its own"),
        ('"t2"', '"t1"', r"name in fields = 't1': expected a name of its own"),
        ("unit", "source", r"fields.channels.source = 'C': expected no such key here"),
        ('"C"', "5", r"fields.t1.unit = 5: expected text"),
    ],
)
def test_numbers_that_are_wrong_are_named(old: str, new: str, message: str) -> None:
    text = (resources.files("models") / "pipelines" / "payments.toml").read_text(encoding="utf-8")
    with pytest.raises(PipelineError, match=message):
        parse_pipeline(text.replace("[window]", f"{NUMBERS.replace(old, new)}\n[window]"), "x.toml")
