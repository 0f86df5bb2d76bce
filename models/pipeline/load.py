"""Read a pipeline file, so that a bad value stops the program at start, named.

Types and ranges of single values are checked here; `checks.py` checks what takes two of them.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, get_args

import msgspec

from models.errors import PipelineError
from models.pipeline.checks import check
from models.pipeline.spec import Field, Pipeline, Profile

__all__ = ["digest", "load_pipeline", "parse_pipeline", "shipped_pipelines"]

# Raise it when an input comes to mean something else while its name stays: bundles of before are then refused.
FEATURES_VERSION = 1

# Tables whose entries the user names. Each entry is converted by itself: for an error inside one, msgspec
# says `$.fields[...]` and leaves the reader to find out which.
NAMED_ENTRIES: dict[str, Any] = {"fields": Field, "profiles": Profile}
ENTRY_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

# What a value must look like, by the start of the pattern it failed to match.
PATTERNS = {
    r"'^\\d": "a duration such as 30s, 10m, 1.5h or 7d",
    "'^[a-z][a-z0-9-]": "a name of lower-case letters, digits and hyphens that starts with a letter",
}
KINDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "a table",
    "array": "a list",
}


def shipped_pipelines() -> list[str]:
    """Names that `load_pipeline` takes without a file."""
    folder = resources.files("models") / "pipelines"
    return sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml"))


def load_pipeline(name_or_path: str | Path) -> Pipeline:
    """The pipeline of a shipped name (`payments`) or of a TOML file. Raises PipelineError."""
    text = str(name_or_path)
    if text in shipped_pipelines():
        shipped = resources.files("models") / "pipelines" / f"{text}.toml"
        return parse_pipeline(shipped.read_text(encoding="utf-8"), f"{text}.toml")
    path = Path(text)
    if not path.is_file():
        names = ", ".join(shipped_pipelines())
        raise PipelineError("pipeline", "file", text, f"a TOML file, or one of the shipped names: {names}")
    try:
        return parse_pipeline(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise PipelineError(text, "file", f"byte {error.start}", "UTF-8 text") from error


def parse_pipeline(text: str, source: str) -> Pipeline:
    """The pipeline in a TOML text; `source` names it in errors. Raises PipelineError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(source, text, str(error)) from error
    pipeline = _Reader(source).pipeline(raw)
    check(source, pipeline)
    return pipeline


def digest(pipeline: Pipeline) -> str:
    """Sixteen hex digits that change when anything a model's input depends on changes.

    Policy, labels, time-to-live and topics do not: changing a budget needs no new model.
    """
    facts: dict[str, Any] = {
        "features": FEATURES_VERSION,
        "entity": pipeline.pipeline.entity,
        "time": pipeline.pipeline.time,
        "fields": [[name, msgspec.to_builtins(field)] for name, field in pipeline.fields.items()],
        "window": msgspec.to_builtins(pipeline.window),
        "profiles": [[name, msgspec.to_builtins(p)] for name, p in pipeline.profiles.items()],
    }
    if pipeline.surprise.learn:
        facts["surprise"] = msgspec.to_builtins(pipeline.surprise)
    return hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:16]


def _syntax_error(source: str, text: str, message: str) -> PipelineError:
    """tomllib says `<what> (at line 3, column 5)` or `<what> (at end of document)`."""
    lines = text.splitlines() or [""]
    what, _, place = message.rpartition(" (at ")
    at = re.match(r"line (\d+)", place)
    number = int(at[1]) if at else len(lines)
    line = lines[number - 1] if number <= len(lines) else ""
    return PipelineError(source, f"line {number}", line, f"TOML ({what or message})")


class _Reader:
    """Turns plain tables into the types of `spec`, with an error that names the key and the value."""

    def __init__(self, source: str) -> None:
        self.source = source

    def pipeline(self, raw: dict[str, Any]) -> Pipeline:
        tables = {field.name: field for field in msgspec.structs.fields(Pipeline)}
        for name, value in raw.items():
            if name not in tables:
                self._fail(name, value, f"one of the tables {', '.join(tables)}")
        parts: dict[str, Any] = {}
        for name, field in tables.items():
            if name not in raw:
                if field.required:
                    self._fail(name, "nothing", f"a table [{name}]")
            elif name in NAMED_ENTRIES:
                parts[name] = self._entries(name, raw[name])
            else:
                parts[name] = self._convert(name, raw[name], field.type)
        return Pipeline(**parts)

    def _entries(self, table: str, raw: Any) -> dict[str, Any]:
        if not isinstance(raw, dict):
            self._fail(table, raw, f"a table [{table}]")
        for name in raw:
            if not ENTRY_NAME.fullmatch(name):
                expected = "a name of at most 40 lower-case letters, digits and underscores that starts with a letter"
                hint = '; `source = "…"` says which key the event has' if table == "fields" else ""
                self._fail(f"name in {table}", name, expected + hint)
        entries = self._spread(raw) if table == "fields" else raw
        return {name: self._convert(f"{table}.{name}", entry, NAMED_ENTRIES[table]) for name, entry in entries.items()}

    def _spread(self, raw: dict[str, Any]) -> dict[str, Any]:
        """`{ type = "numbers", names = […], … }` stands for a number field of each name: a machine has many alike."""
        fields: dict[str, Any] = {}
        for name, entry in raw.items():
            if not isinstance(entry, dict) or entry.get("type") != "numbers":
                self._take(fields, name, entry)
                continue
            names, alike = entry.get("names"), {key: v for key, v in entry.items() if key != "names"}
            if not isinstance(names, list) or not names:
                self._fail(f"fields.{name}.names", names, "a list of names, one for each number")
            if "source" in alike:
                self._fail(f"fields.{name}.source", alike["source"], "no such key here: each is read by its own name")
            for each in names:
                if not isinstance(each, str) or not ENTRY_NAME.fullmatch(each):
                    self._fail(f"fields.{name}.names", each, "names such as those of fields")
                self._take(fields, each, alike | {"type": "number"})
        return fields

    def _take(self, fields: dict[str, Any], name: str, entry: Any) -> None:
        if name in fields:
            self._fail("name in fields", name, "a name of its own; another field has this one")
        fields[name] = entry

    def _convert(self, key: str, raw: Any, kind: Any) -> Any:
        try:
            return msgspec.convert(raw, kind)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `$.")
            self._explain(key, raw, kind, message, path.rstrip("`"))

    def _explain(self, key: str, raw: Any, kind: Any, message: str, path: str) -> NoReturn:
        """Raise msgspec's error in our form. `path` is of keys and indices of lists below the table."""
        names = re.findall(r"[^.\[\]]+", path.replace("[...]", ".*"))
        holder, value = _inside(kind, raw, names[:-1]), _inside(kind, raw, names)[1]
        at = f"{key}.{path}" if path else key
        quoted = re.search(r"`([^`]+)`$", message)
        if message.startswith("Object contains unknown field") and quoted:
            keys = _keys(*_inside(kind, raw, names))
            known = ", ".join(["type", *keys] if key.startswith("fields.") else keys)
            unknown = value.get(quoted[1]) if isinstance(value, dict) else value
            self._fail(f"{at}.{quoted[1]}", unknown, f"no such key here; the known ones are {known}")
        if message.startswith("Object missing required field") and quoted:
            expected = f"one of {', '.join(_tags(kind))}" if quoted[1] == "type" else "a value, since it is required"
            self._fail(f"{key}.{quoted[1]}", "nothing", expected)
        if message.startswith("Invalid enum value"):
            self._fail(at, value, f"one of {', '.join(get_args(_keys(*holder)[names[-1]]))}")
        if message.startswith("Invalid value"):
            self._fail(at, value, f"one of {', '.join(_tags(kind))}")
        self._fail(at, value, _plain(message))

    def _fail(self, key: str, value: object, expected: str) -> NoReturn:
        raise PipelineError(self.source, key, value, expected)


def _structs(kind: Any) -> tuple[type[msgspec.Struct], ...]:
    return get_args(kind) or (kind,)


def _inside(kind: Any, raw: Any, names: list[str]) -> tuple[Any, Any]:
    """The type and the value at a path; of any entry of a table that is named by the user ("*") the table itself."""
    for name in names:
        if name == "*":
            kind, raw = get_args(kind)[1], next((v for v in raw.values() if isinstance(v, dict)), raw)
        elif isinstance(raw, list):
            raw = raw[int(name)]
        else:
            kind, raw = _keys(kind, raw).get(name), raw.get(name)
    return kind, raw


def _tags(kind: Any) -> list[str]:
    return [str(struct.__struct_config__.tag) for struct in _structs(kind)]


def _keys(kind: Any, raw: Any) -> dict[str, Any]:
    """The keys a table may have, and their types; the table's own `type` chooses among several kinds."""
    structs = _structs(kind)
    chosen = next((s for s in structs if len(structs) == 1 or s.__struct_config__.tag == raw.get("type")), structs[0])
    return {field.name: field.type for field in msgspec.structs.fields(chosen)}


def _plain(message: str) -> str:
    """What was expected, in words: `Expected `int` >= 4` is `a whole number >= 4`."""
    expected = re.sub(r", got `.*", "", message.removeprefix("Expected ")).replace("`", "")
    _, _, pattern = expected.partition(" matching regex ")
    for start, words in PATTERNS.items():
        if pattern.startswith(start):
            return words
    kinds, _, rest = expected.partition(" ")
    if rest.startswith("| null"):
        rest = rest.removeprefix("| null").strip()
    return f"{KINDS.get(kinds, kinds)} {rest}".strip()
