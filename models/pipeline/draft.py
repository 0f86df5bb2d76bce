"""Write guesses about a sample as a pipeline file, every guess beside its reason."""

from __future__ import annotations

import json
from pathlib import Path

from models.pipeline.infer import Guess, Guesses, field_name, infer
from models.pipeline.load import parse_pipeline

__all__ = ["draft"]


def draft(path: Path, name: str | None = None) -> str:
    """The TOML of a pipeline that reads the events of a CSV or JSONL file.

    name: the pipeline's, from the file's when left out. Raises PipelineError when no pipeline can be drafted.
    """
    guesses = infer(path)
    name = name or field_name(path.stem, set()).replace("_", "-")
    text = "\n".join([*_head(path, name, guesses), *_fields(guesses), *_rest(guesses)]) + "\n"
    parse_pipeline(text, "draft")  # what is handed out loads
    return text


def _head(path: Path, name: str, guesses: Guesses) -> list[str]:
    roles = guesses.roles
    return [
        f"# Drafted from {_comment(path.name)}. Every guess says why; correct what is wrong, then run",
        "# `python -m models pipeline check` on this file. docs/pipeline.md explains every key.",
        "",
        "[pipeline]",
        f"name = {_text(name)}",
        *(f"{role} = {_text(roles[role].name)}" for role in ("entity", "event_id", "time")),
        "",
    ]


def _fields(guesses: Guesses) -> list[str]:
    lines = ["[fields]"]
    for made in guesses.fields:
        role = next((r for r, g in guesses.roles.items() if g is made), None)
        lines.append(f"# {f'the {role}: ' if role else ''}{_comment(made.why)}")
        lines.append(f"{made.name} = {{ {_inline(made)} }}")
    if guesses.skipped:
        lines += ["", "# Not used:", *(f"#   {_comment(skipped)}" for skipped in guesses.skipped)]
    return [*lines, ""]


def _inline(made: Guess) -> str:
    options: dict[str, object] = {"type": made.type}
    if made.source is not None and made.source != made.name:
        options["source"] = made.source
    options |= made.options
    if not made.required:
        options["required"] = False
    return ", ".join(f"{key} = {_value(value)}" for key, value in options.items())


def _rest(guesses: Guesses) -> list[str]:
    horizons = ", ".join(_text(h) for h in guesses.horizons)
    lines = ["[window]", "length = 32", f"horizons = [{horizons}]  # around a typical pause between events", ""]
    lines += _profiles(guesses)
    lines.append("[labels]")
    if guesses.verdict is None:
        lines.append("# No column of the sample looks like a verdict. This is the key that labels will carry:")
        lines.append(f"verdict = {_text(_free('is_fraud', guesses))}")
    else:
        lines.append(
            f"# {_comment(guesses.verdict.name)} holds two values and is named like a verdict; it is no field above"
        )
        lines.append(f"verdict = {_text(guesses.verdict.name)}")
    lines += [f"time = {_text(_free('label_time', guesses))}", 'maturity = "7d"', ""]
    return [*lines, "[policy]", "alerts_per_day = 100", "reasons = 3"]


def _profiles(guesses: Guesses) -> list[str]:
    """Of each shared entity, with its verdicts, whose amounts are compared with what the entity usually pays."""
    lines = []
    amount = [f"amount = {_text(guesses.amount.name)}"] if guesses.amount else []
    entity = guesses.roles["entity"].name
    usual = entity.removesuffix("_id")
    while usual in guesses.profiles:
        usual += "_"
    compared = guesses.amount is not None and bool(guesses.profiles)
    if compared:
        lines += [f"[profiles.{usual}]  # what it usually pays, with which verdicts are compared"]
        lines += [f"key = {_text(entity)}", *amount, 'half_lives = ["30d"]', 'delay = "1h"', ""]
    for profile, made in guesses.profiles.items():
        lines += [f"[profiles.{profile}]", f"key = {_text(made.name)}", *amount]
        lines += ['half_lives = ["1d", "7d", "30d"]', 'delay = "1h"']
        lines += ["verdicts = 32  # the newest, one by one; 0 saves memory and time where labels are rare"]
        lines += [f"compare = {_text(usual)}", ""] if compared else [""]
    return lines


def _free(key: str, guesses: Guesses) -> str:
    """A JSON key that no field and no verdict uses."""
    used = {g.source for g in guesses.fields} | {guesses.verdict.name if guesses.verdict else None}
    while key in used:
        key += "_"
    return key


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return _text(value) if isinstance(value, str) else str(value)


def _text(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
