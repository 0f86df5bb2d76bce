"""Drafting a pipeline from a sample: the draft loads, reads the sample's own events, and says why."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.cli import main
from models.clock import to_iso
from models.codec import Codec
from models.errors import PipelineError
from models.pipeline import load_pipeline, parse_pipeline
from models.pipeline.draft import draft
from models.pipeline.sample import read_sample
from models.samples import write_file
from models.simulate import simulate
from stream.replay_file import read_file

START_MS = 1_704_067_200_000  # 2024-01-01
ROWS = 300


def messy_row(i: int) -> dict[str, str]:
    """A row of an export that grew over the years: odd names, gaps, several date formats, currency signs."""
    return {
        "Row": str(i),
        "Trans. No": f"A-{1000 + i * 7919 % ROWS}",
        "Cust-ID": str(100 + i % 7),
        "When?": to_iso(START_MS + i * 1_800_000 + i % 7).replace("T", " ").removesuffix("Z"),
        "MerchantName": f'Shop "{i % 11}", Ltd',
        "Amt (EUR)": f"{(i * 37 % 900) / 10 + 0.5}",
        "Fee": f"€{i % 5},50",
        "Balance": str(i * 83 % 5000 - 2000),
        "Currency": "EUR" if i % 9 else "USD",
        "lat": str(40 + i % 3),
        "long": str(-70 - i % 4),
        "Chip": "True" if i % 2 else "False",
        "Note": f"free text number {i}",
        "D.O.B.": f"0{i % 9 + 1}/02/1980",
        "Channel": "" if i % 6 == 0 else "web",
        "Is Fraud": str(int(i % 20 == 3)),
        "Fraud Team": "north" if i % 20 == 3 else "",
        "Case": "open" if i % 20 == 3 else "none",
        "Country": "US",
        "Empty": "",
    }


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    quoted = [[f'"{v.replace(chr(34), chr(34) * 2)}"' for v in row.values()] for row in rows]
    lines = [",".join(f'"{name}"' for name in rows[0]), *(",".join(values) for values in quoted)]
    path.write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8")
    return path


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "Q3 export (final).csv", [messy_row(i) for i in range(ROWS)])


def fields_of(text: str) -> dict[str, Any]:
    return tomllib.loads(text)["fields"]


def decode_all(codec: Codec, values: list[bytes]) -> int:
    decoded = codec.decode(values, np.full(len(values), 4_000_000_000_000))
    assert [bad.detail for bad in decoded.bad] == []
    return len(decoded.good)


def test_a_messy_csv_gives_the_roles_and_types_a_person_would_choose(messy: Path) -> None:
    """Names and values of an unprepared export lead to the right fields."""
    text = draft(messy)
    raw = tomllib.loads(text)
    assert raw["pipeline"] == {"name": "q3-export-final", "entity": "cust_id", "event_id": "trans_no", "time": "when"}
    fields = raw["fields"]
    assert {name: field["type"] for name, field in fields.items()} == {
        "trans_no": "id",
        "when": "time",
        "cust_id": "entity",
        "merchant_name": "entity",
        "amt_eur": "number",
        "balance": "number",
        "currency": "category",
        "location": "geo",
        "chip": "boolean",
        "channel": "category",
    }
    assert fields["amt_eur"] == {"type": "number", "source": "Amt (EUR)", "min": 0, "transform": "log1p"}
    assert fields["location"] == {"type": "geo", "latitude": "lat", "longitude": "long"}
    assert fields["channel"]["required"] is False
    assert raw["labels"]["verdict"] == "Is Fraud"
    assert raw["profiles"]["merchant_name"]["amount"] == "amt_eur"


def test_every_event_of_the_sample_is_readable_with_the_draft(messy: Path) -> None:
    """The draft runs: all rows of the sample pass through replay's reader and the codec."""
    pipeline = parse_pipeline(draft(messy), "draft")
    file = read_file(messy, pipeline, labels="Is Fraud", label_delay_ms=1000)
    codec = Codec(pipeline)
    assert file.skipped == 0
    assert decode_all(codec, [codec.encode_event(row) for row in file.events.read(0, ROWS)]) == ROWS
    assert file.labels is not None
    assert sum(row["fraud"] for row in file.labels.read(0, ROWS)) == ROWS // 20


def test_what_is_not_used_is_listed_with_its_reason(messy: Path) -> None:
    """No column disappears silently, and none that tells the verdict becomes a feature."""
    text = draft(messy)
    unused = dict(line.removeprefix("#   ").split(": ", 1) for line in text.splitlines() if line.startswith("#   "))
    assert set(unused) == {"Row", "Fee", "Note", "D.O.B.", "Fraud Team", "Case", "Country", "Empty"}
    assert "rises with time" in unused["Row"]
    assert "'€0,50'" in unused["Fee"]
    assert "ISO-8601" in unused["D.O.B."]
    assert "tells the verdict" in unused["Fraud Team"]
    assert "Is Fraud only" in unused["Case"]
    assert "same value" in unused["Country"]


def test_every_guess_has_its_reason_above_it(messy: Path) -> None:
    """Each line of [fields] follows a comment."""
    lines = draft(messy).splitlines()
    for i, line in enumerate(lines):
        if " = { type = " in line:
            assert lines[i - 1].startswith("# ")


def test_a_jsonl_export_is_read_as_producers_would_send_it(tmp_path: Path) -> None:
    """Lines of the sample itself, sent as they are, decode with the draft."""
    rows: list[dict[str, Any]] = [
        {
            "eventUUID": f"{i:032x}",
            "ts": (START_MS + i * 60_000) // 1000,
            "machineId": i % 4,
            "temperature": 20.5 + i % 13,
            "pressure": -3 + i % 7,
            "alarm": i % 5 == 0,
            "firmware": ["1.0", "1.1"][i % 2],
            "tags": {"line": 1},
        }
        | ({"shift": i % 3} if i % 10 else {})
        for i in range(ROWS)
    ]
    path = tmp_path / "machines.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = parse_pipeline(draft(path, "plant"), "draft")
    assert (pipeline.name, pipeline.entity) == ("plant", "machine_id")
    assert "tags" not in pipeline.fields
    assert pipeline.window.horizons == ["1m", "10m", "1h", "1d"]
    assert decode_all(Codec(pipeline), [line.encode() for line in path.read_text().splitlines()]) == ROWS


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_simulated_payments_are_drafted_as_the_shipped_pipeline_has_them(suffix: str, tmp_path: Path) -> None:
    """From its own data, init finds the fields and types that payments.toml declares, and no truth column."""
    path = tmp_path / f"pay{suffix}"
    write_file(simulate(1, 100, 40, 20), path)
    drafted, shipped = parse_pipeline(draft(path), "draft"), load_pipeline("payments")
    assert {n: type(f) for n, f in drafted.fields.items()} == {n: type(f) for n, f in shipped.fields.items()}
    assert (drafted.entity, drafted.pipeline.event_id, drafted.pipeline.time) == (
        "card_id",
        "transaction_id",
        "timestamp",
    )
    assert set(drafted.profiles) == {"card", "merchant", "device"}
    assert drafted.profiles["merchant"].verdicts == 32
    assert drafted.profiles["merchant"].compare == "card"
    assert drafted.labels.verdict == "is_fraud"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str, tmp_path: Path) -> None:
    """Files separated by comma, semicolon, tab or bar read alike."""
    path = tmp_path / "a.csv"
    path.write_text("".join(delimiter.join(row) + "\n" for row in (["id", "a b"], ["1", "x y"], ["2", "z"])))
    assert [c.name for c in read_sample(path).columns] == ["id", "a b"]


@pytest.mark.parametrize(
    ("text", "role", "expected"),
    [
        ("id,card,day\n1,a,02/01/2024\n2,b,03/01/2024\n", "time", "day (dates such as '02/01/2024'"),
        (
            "card,time\na,2024-01-01T10:00:00Z\na,2024-01-01T11:00:00Z\nb,2024-01-01T11:00:00Z\n",
            "event_id",
            "differ from event to event",
        ),
        ("id,time\n1,2024-01-01T10:00:00Z\n2,2024-01-01T11:00:00Z\n", "entity", "names the card, account or machine"),
        ("id,card,time\n", "file", "at least one event"),
        ("id,card,time\n1,a,2024-01-01T10:00:00Z,9\n", "line 2", "3 values, as in the header"),
    ],
)
def test_a_sample_without_a_role_is_refused_by_name(text: str, role: str, expected: str, tmp_path: Path) -> None:
    """What cannot be guessed is asked for: the role, the columns there are, and what would do."""
    path = tmp_path / "sample.csv"
    path.write_text(text)
    with pytest.raises(PipelineError) as caught:
        draft(path)
    assert caught.value.key == role
    assert expected in caught.value.expected


def test_json_that_is_no_object_is_refused_with_its_line(tmp_path: Path) -> None:
    """A broken line is named by number."""
    path = tmp_path / "sample.jsonl"
    path.write_text('{"id": 1}\n[1, 2]\n')
    with pytest.raises(PipelineError, match=r"line 2 .*expected a JSON object"):
        draft(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", 'id,card\n1,"' + "x\n" * 100_000, "quotes"),
        ("a.jsonl", '{"a": ' + "[" * 100_000 + "}", "one JSON object"),
    ],
)
def test_a_sample_that_cannot_be_parsed_is_refused(name: str, text: str, expected: str, tmp_path: Path) -> None:
    """A quote that is never closed, and nesting without end."""
    (tmp_path / name).write_text(text)
    with pytest.raises(PipelineError, match=expected):
        read_sample(tmp_path / name)


def test_names_with_quotes_and_control_characters_survive(tmp_path: Path) -> None:
    """A column's name cannot break out of the TOML that quotes it."""
    path = tmp_path / "odd.jsonl"
    key = 'a"\n\\]\x7f#'
    rows = [{"id": i, "card": i % 9, "time": to_iso(START_MS + i), key: i % 50 + 0.5} for i in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = parse_pipeline(draft(path), "draft")
    assert pipeline.json_key("a") == key


def test_the_command_writes_a_file_that_check_and_schema_accept(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """init, check and schema work one after the other from the command line."""
    out = tmp_path / "made" / "mine.toml"
    for command in (["init", str(messy), "-o", str(out), "--name", "mine"], ["check", str(out)]):
        assert _run(["pipeline", *command]) == 0
    assert "mine: 10 fields, 2 profiles" in capsys.readouterr().out
    assert _run(["pipeline", "schema", str(out), "--topic", "events"]) == 0
    assert "Amt (EUR)" in json.loads(capsys.readouterr().out)["properties"]


def test_the_command_does_not_overwrite_a_file_unasked(
    messy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A draft corrected by hand is safe from a second init."""
    out = tmp_path / "mine.toml"
    out.write_text("mine")
    assert _run(["pipeline", "init", str(messy), "-o", str(out)]) == 1
    assert out.read_text() == "mine"
    assert "--force" in capsys.readouterr().err
    assert _run(["pipeline", "init", str(messy), "-o", str(out), "--force"]) == 0
    assert "[fields]" in out.read_text()


def _run(arguments: list[str]) -> int:
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0
