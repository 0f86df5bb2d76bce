"""Files of past events: what a spreadsheet or a database exports is read as its owner means it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.pipeline.load import load_pipeline
from training.tables import Mapped, read_file

HEADER = ("transaction_id", "timestamp", "card_id", "merchant_id", "amount", "card_present", "is_fraud")


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_identifiers_stay_as_they_are_written(tmp_path: Path, separator: str) -> None:
    """A leading zero belongs to a card number, missing words mean missing, and numbers are read as numbers."""
    rows = [
        ("0001", "2026-01-02T00:00:00Z", "007", "m 1", "12.50", "true", "1"),
        ("0002", "2026-01-01T00:00:00Z", "08", "NA", "3", "", "0"),
    ]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(separator.join(row) for row in (HEADER, *rows)), encoding="utf-8")
    mapped = Mapped(read_file(path), load_pipeline("payments"), labels="is_fraud", label_delay_ms=10)
    (first_ms, first), (_, second) = mapped.events()
    assert first == {"transaction_id": "0002", "timestamp": first_ms, "card_id": "08", "amount": 3.0}
    assert second["card_id"] == "007"
    assert second["card_present"] is True
    assert [(label.event_id, label.fraud) for label in mapped.labels()] == [("0002", False), ("0001", True)]


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), ("1.0", "0.0"), ("true", "False"), ("Y", "n"), ("t", "f")])
def test_verdicts_and_booleans_are_read_in_the_words_that_replay_takes(tmp_path: Path, yes: str, no: str) -> None:
    """No spelling of a verdict is lost in silence, and a word is no number."""
    rows = [
        ("a", "2026-01-01T00:00:00Z", "c", "m", "yes", yes, yes),
        ("b", "2026-01-02T00:00:00Z", "c", "m", "2", no, ""),
        ("c", "2026-01-03T00:00:00Z", "c", "m", "3", "", no),
    ]
    path = tmp_path / "events.csv"
    path.write_text("\n".join(",".join(row) for row in (HEADER, *rows)), encoding="utf-8")
    mapped = Mapped(read_file(path), load_pipeline("payments"), labels="is_fraud")
    events = [event for _, event in mapped.events()]
    assert [event["amount"] for event in events] == ["yes", 2.0, 3.0]
    assert [event.get("card_present") for event in events] == [True, False, None]
    assert [(label.event_id, label.fraud) for label in mapped.labels()] == [("a", True), ("c", False)]
