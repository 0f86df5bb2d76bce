"""The command line: every command explains itself, and failures are one line and exit code 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.clock import DAY_MS, from_iso
from stream.cli import app
from stream.settings import Settings

COMMANDS = [("worker",), ("compile",), ("dev",), ("replay",), ("redrive",), ("state", "show"), ("demo",)]


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stream", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={"PATH": "", **variables}
    )


def test_all_commands_are_known() -> None:
    """The table of commands is exactly the documented one, and each has a description."""
    found = set()
    for name in app:
        if not name.startswith("-"):
            sub = app[name]
            nested = [inner for inner in sub if not inner.startswith("-")]
            found |= {(name, inner) for inner in nested} or {(name,)}
            assert sub.help
    assert found == set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("worker", "--pipeline", "nowhere.toml"), ["error:", "nowhere.toml", "payments"]),
        (("worker", "--settings", "nowhere.toml"), ["error:", "nowhere.toml"]),
        (("replay", "x.csv", "--skew", "soon"), ["error: --skew = 'soon'", "7d"]),
        (("replay", "x.csv", "--start", "soon"), ["error: --start = 'soon'", "ISO-8601"]),
        (("replay", "x.csv", "--columns", "a"), ["error: --columns = a", "FILE_COLUMN=FIELD"]),
        (("replay", "x.csv"), ["error: x.csv", "No such file"]),
    ],
)
def test_failures_are_one_line(arguments: tuple[str, ...], words: list[str]) -> None:
    """What goes wrong is named on standard error without a traceback, and the exit code is 1."""
    done = _run(*arguments, LEPTON_KAFKA_BROKERS="127.0.0.1:1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_wrong_usage_is_told() -> None:
    """An option out of its range is named, and the exit code is not 0."""
    done = _run("replay", "x.csv", "--rate", "-1")
    assert done.returncode == 2
    assert 'Invalid value "-1.0" for --rate' in done.stderr


def test_replay_command(tmp_path: Path, settings: Settings) -> None:
    """`python -m stream replay` publishes a file's range and says what it did."""
    start = from_iso("2026-01-01")
    file = tmp_path / "x.csv"
    rows = [f"t{i},{start + i * DAY_MS},c{i % 3},m,{i}.5,0" for i in range(9)]
    file.write_text("\n".join(["tx,when,card_id,merchant_id,amount,fraud", *rows]) + "\n")
    pipeline = Path(settings.pipeline)
    pipeline.write_text(pipeline.read_text().replace('unit = "iso8601"', 'unit = "ms"'))
    done = _run(
        "replay", str(file), "--pipeline", str(pipeline), "--columns", "tx=transaction_id", "when=timestamp",
        "--labels", "fraud", "--label-delay", "2d", "--no-follow", "--start", "2026-01-03", "--end", "2026-01-08",
        LEPTON_KAFKA_BROKERS=settings.kafka_brokers,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "published 5 events and 5 labels" in done.stdout


def test_logs_for_machines() -> None:
    """With JSON logs every line on standard error is an object, the standard library's too, with tracebacks inside."""
    code = """
import logging, structlog
from stream.logs import configure_logs
configure_logs("INFO", True)
structlog.get_logger("a").info("stored", events=3)
structlog.get_logger("a").debug("hidden")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("library").exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["event"], first["events"], first["level"], first["logger"]) == ("stored", 3, "info", "a")
    assert (second["event"], second["logger"]) == ("failed", "library")
    assert "ZeroDivisionError" in second["exception"]
    assert done.stdout == ""


@pytest.mark.parametrize("as_json", [False, True])
def test_tracebacks_show_no_records(as_json: bool) -> None:
    """Local variables are card numbers and payloads: they stay out of the log."""
    code = f"""
import structlog
from stream.logs import configure_logs
configure_logs("INFO", {as_json})
def decode(record):
    raise ValueError("broken")
try:
    decode("".join(["card", "-", "4711"]))
except ValueError:
    structlog.get_logger("a").exception("failed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "ValueError: broken" in done.stderr
    assert "card-4711" not in done.stderr


def test_a_server_that_does_not_answer_is_one_line() -> None:
    """A command names the server it could not reach, without a traceback."""
    ran = _run("state", "show", "card-1", LEPTON_REDIS_PORT="1")
    assert ran.returncode == 1
    assert ran.stderr.startswith("error: Redis (LEPTON_REDIS_…)")
    assert len(ran.stderr.splitlines()) == 1
