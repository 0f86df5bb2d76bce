"""Settings come from options, environment, file and defaults, in that order, and are refused by name."""

from __future__ import annotations

from pathlib import Path

import pydantic
import pytest

from models.errors import SettingsError
from stream.settings import load_settings


def test_order_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option beats the environment, which beats the file, which beats the default."""
    file = tmp_path / "lepton.toml"
    file.write_text("redis_port = 1111\npartitions = 2\nhttp_port = 3333\n")
    monkeypatch.setenv("LEPTON_SETTINGS", str(file))
    monkeypatch.setenv("LEPTON_REDIS_PORT", "2222")
    monkeypatch.setenv("LEPTON_PARTITIONS", "8")
    settings = load_settings(partitions=16, http_port=None)
    assert (settings.partitions, settings.redis_port, settings.http_port, settings.latency_objective_ms) == (
        16, 2222, 3333, 50,
    )  # fmt: skip


def test_settings_cannot_change() -> None:
    """A value that has been read stays."""
    with pytest.raises(pydantic.ValidationError):
        load_settings().redis_port = 1


def test_group_follows_the_pipelines_name() -> None:
    """The consumer group defaults to the pipeline's name, not to the path of its file."""
    assert load_settings(pipeline="some/file.toml").group("cards") == "cards-scorer"
    assert load_settings(consumer_group="mine").group("cards") == "mine"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("LEPTON_REDIS_PORT", "tcp://10.0.0.1:6379", ["LEPTON_REDIS_PORT", "tcp://10.0.0.1:6379", "integer"]),
        ("LEPTON_PARTITIONS", "0", ["LEPTON_PARTITIONS", "'0'", "greater than or equal to 1"]),
        ("LEPTON_LOG_LEVEL", "loud", ["LEPTON_LOG_LEVEL", "'loud'", "'INFO'"]),
        ("LEPTON_KAFKA_BROKERS", "localhost", ["LEPTON_KAFKA_BROKERS", "'localhost'", "host:port"]),
        ("LEPTON_KAFKA_BROKER", "a:1", ["LEPTON_KAFKA_BROKER:", "expected LEPTON_KAFKA_BROKERS"]),
        ("LEPTON_KAFKA_SECURITY_PROTOCOL", "SASL_SSL", ["LEPTON_KAFKA_SASL_USERNAME", "SASL_SSL", "password"]),
        ("LEPTON_REDIS_SSL_CAFILE", "/no/such.pem", ["LEPTON_REDIS_SSL_CAFILE", "/no/such.pem", "exists"]),
        ("LEPTON_SETTINGS", "/no/such.toml", ["/no/such.toml", "No such file"]),
    ],
)
def test_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: list[str]) -> None:
    """An error names the variable, the value and what was expected."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for word in words:
        assert word in str(caught.value)


def test_wrong_file_key_is_named(tmp_path: Path) -> None:
    """A key that nobody reads, and a value that does not fit, are errors that name file and key."""
    file = tmp_path / "lepton.toml"
    file.write_text('redis_prot = 1\nstall_s = "soon"\n')
    with pytest.raises(SettingsError) as caught:
        load_settings(file)
    assert f"{file}: redis_prot = 1: expected a known setting" in str(caught.value)
    assert f"{file}: stall_s = 'soon': expected a valid number" in str(caught.value)


def test_wrong_toml(tmp_path: Path) -> None:
    """A file that is no TOML is refused with the place."""
    file = tmp_path / "lepton.toml"
    file.write_text("a = \n")
    with pytest.raises(SettingsError, match="line 1"):
        load_settings(file)


def test_wrong_option_is_named() -> None:
    """A value given to a command is reported as that option."""
    with pytest.raises(SettingsError, match="--http-port = 70000: expected less than or equal to 65535"):
        load_settings(http_port=70000)


def test_passwords_stay_out_of_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a settings object nor an error shows a password."""
    monkeypatch.setenv("LEPTON_REDIS_PASSWORD", "hunter2")
    assert "hunter2" not in repr(load_settings())
    monkeypatch.setenv("LEPTON_KAFKA_SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("LEPTON_PARTITIONS", "none")
    with pytest.raises(SettingsError) as caught:
        load_settings(kafka_sasl_password=["hunter2"])
    assert "hunter2" not in str(caught.value)


def test_strangers_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of another program that shares the prefix is no error."""
    monkeypatch.setenv("LEPTON_SERVICE_HOST", "10.0.0.1")
    assert load_settings().redis_port == 6379
