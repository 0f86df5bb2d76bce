"""Read a sample of a user's events and say of each column what its values look like.

CSV (any of , ; tab | between values) and JSONL, with the standard library only. What the columns mean to a
pipeline is guessed in `infer.py`; here only values are looked at, never names.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from models.clock import from_iso
from models.errors import PipelineError
from models.records import MAX_TEXT

__all__ = ["BOOLEAN_WORDS", "MISSING_TEXTS", "Column", "Kind", "Sample", "csv_delimiter", "read_sample"]

Kind = Literal["integer", "number", "boolean", "iso8601", "text", "unusable", "empty"]
MAX_ROWS = 50_000  # enough to see rare values; reading takes about a second
MISSING_TEXTS = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>", "-nan", "#n/a"})
BOOLEAN_WORDS = {"true": True, "t": True, "yes": True, "y": True, "false": False, "f": False, "no": False, "n": False}
INTEGER = re.compile(r"[+-]?\d{1,18}")
MONEY = re.compile(r"[^\d\s]{0,3}\s?[+-]?\d[\d.,' ]*\s?[^\d\s]{0,3}")
DATE_LIKE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T,].*)?")


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `values`: one for each row, None where missing; numbers and booleans are parsed.

    times_ms: for kind iso8601, epoch milliseconds. why: for kind unusable, what is wrong with the values.
    """

    name: str
    kind: Kind
    values: list[Any]
    missing: int
    distinct: int
    times_ms: list[int | None] | None = None
    why: str = ""

    @property
    def present(self) -> list[Any]:
        return [v for v in self.values if v is not None]


@dataclass(frozen=True, slots=True)
class Sample:
    """The first rows of a file. `ignored` says which columns could not even be read, and why."""

    path: Path
    rows: int
    columns: list[Column]
    ignored: list[str]


def read_sample(path: Path, max_rows: int = MAX_ROWS) -> Sample:
    """The first rows of a .csv or .jsonl file. Raises PipelineError when it is neither or holds no events."""
    if not path.is_file():
        raise PipelineError("sample", "file", str(path), "a CSV or JSONL file")
    try:
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
            return _read_jsonl(path, max_rows)
        return _read_csv(path, max_rows)
    except UnicodeDecodeError as error:
        raise PipelineError(str(path), "file", f"byte {error.start}", "UTF-8 text") from error
    except csv.Error as error:
        raise PipelineError(str(path), "file", str(error), "CSV, its quotes closed") from error


def _read_csv(path: Path, max_rows: int) -> Sample:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.read(65_536)
        file.seek(0)
        reader = csv.reader(file, delimiter=csv_delimiter(head))
        header = next(reader, [])
        rows = []
        for row in reader:
            if not row:
                continue
            if len(row) > len(header):
                raise PipelineError(
                    str(path), f"line {reader.line_num}", row, f"{len(header)} values, as in the header"
                )
            rows.append(row)
            if len(rows) == max_rows:
                break
    if not rows:
        raise PipelineError(str(path), "file", "no rows", "a header and at least one event")
    columns, ignored = [], []
    for i, name in enumerate(header):
        texts = [row[i].strip() if i < len(row) else "" for row in rows]
        if not name.strip() or header.index(name) != i:
            ignored.append(
                f"column {i + 1} of the file: {'it has no name' if not name.strip() else f'a second {name!r}'}"
            )
        else:
            columns.append(_csv_column(name, [None if t.lower() in MISSING_TEXTS else t for t in texts]))
    return Sample(path, len(rows), columns, ignored)


def csv_delimiter(head: str) -> str:
    """The candidate that stands in the header most often: values may hold commas, names rarely do."""
    header = head.splitlines()[0] if head else ""
    return max(",;\t|", key=header.count)


def _read_jsonl(path: Path, max_rows: int) -> Sample:
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise PipelineError(str(path), f"line {number}", line, f"one JSON object a line ({error})") from error
            if not isinstance(row, dict):
                raise PipelineError(str(path), f"line {number}", line, "a JSON object")
            rows.append(row)
            if len(rows) == max_rows:
                break
    if not rows:
        raise PipelineError(str(path), "file", "no rows", "at least one event")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [_json_column(name, [row.get(name) for row in rows]) for name in names if name]
    return Sample(path, len(rows), columns, [] if "" not in names else ["the key without a name"])


def _csv_column(name: str, texts: list[str | None]) -> Column:
    present = [t for t in texts if t is not None]
    if not present:
        return Column(name, "empty", texts, len(texts), 0)
    if all(INTEGER.fullmatch(t) for t in present):
        return _column(name, "integer", _each(int, texts))
    numeric = sum(_is_number(t) for t in present)
    if numeric == len(present):
        return _column(name, "number", _each(float, texts))
    if {t.lower() for t in present} <= {"true", "false"}:
        return _column(name, "boolean", _each(lambda t: t.lower() == "true", texts))
    if numeric >= 0.9 * len(present):
        odd = next(t for t in present if not _is_number(t))
        return _unusable(name, texts, f"numbers, but also {odd!r}")
    return _text_column(name, texts)


def _json_column(name: str, values: list[Any]) -> Column:
    kinds = {type(v) for v in values if v is not None}
    if not kinds:
        return Column(name, "empty", values, len(values), 0)
    if kinds == {str}:
        return _text_column(name, values)
    if kinds in ({bool}, {int}):
        return _column(name, "boolean" if kinds == {bool} else "integer", values)
    if kinds <= {int, float} and all(math.isfinite(v) for v in values if v is not None):
        return _column(name, "number", values)
    nested = kinds & {dict, list}
    names = " and ".join(sorted(kind.__name__ for kind in kinds))
    why = "objects or lists; a field is one value" if nested else f"values of type {names}, some not finite or mixed"
    return _unusable(name, [None] * len(values), why)


def _text_column(name: str, texts: list[str | None]) -> Column:
    present = [t for t in texts if t is not None]
    if all(_is_timestamp(t) for t in present):
        return _column(name, "iso8601", texts, _each(from_iso, texts))
    if all(DATE_LIKE.fullmatch(t) for t in present):
        odd = next(t for t in present if not _is_timestamp(t))
        return _unusable(name, texts, f"dates such as {odd!r}; a time is ISO-8601 with hours and seconds, or epoch")
    if all(MONEY.fullmatch(t) and not t[0].isalpha() for t in present):
        return _unusable(
            name, texts, f"numbers written as {present[0]!r}; a number has digits, a point and a sign only"
        )
    if max(map(len, present)) > MAX_TEXT:  # the codec refuses them
        return _unusable(name, texts, f"texts of more than {MAX_TEXT} characters")
    return _column(name, "text", texts)


def _column(name: str, kind: Kind, values: list[Any], times_ms: list[int | None] | None = None) -> Column:
    present = [v for v in values if v is not None]
    return Column(name, kind, values, len(values) - len(present), len(set(present)), times_ms)


def _unusable(name: str, values: list[Any], why: str) -> Column:
    return Column(name, "unusable", values, 0, 0, why=why)


def _each(function: Callable[[str], Any], texts: list[str | None]) -> list[Any]:
    return [None if t is None else function(t) for t in texts]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _is_timestamp(text: str) -> bool:
    """As the codec reads it: RFC 3339, with T or a space, with or without an offset."""
    try:
        msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return False
    return True
