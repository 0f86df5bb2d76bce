"""Settings of training: same names as the worker's, environment first."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import SettingsError
from training.settings import load_settings


def test_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides the file, and keys only the worker knows are passed over."""
    file = tmp_path / "lepton.toml"
    file.write_text('kafka_brokers = "a:1"\nregistry = "r"\nredis_port = 7000\n')
    monkeypatch.setenv("LEPTON_KAFKA_BROKERS", "b:2,c:3")
    monkeypatch.setenv("LEPTON_SETTINGS", str(file))
    settings = load_settings()
    assert settings.kafka_options()["bootstrap_servers"] == ["b:2", "c:3"]
    assert settings.registry == "r"


def test_a_bad_value_names_variable_value_and_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message tells what to change without a look at the source."""
    monkeypatch.setenv("LEPTON_KAFKA_SECURITY_PROTOCOL", "TLS")
    with pytest.raises(SettingsError, match=r"LEPTON_KAFKA_SECURITY_PROTOCOL = 'TLS': expected .*SASL_SSL"):
        load_settings()
    monkeypatch.delenv("LEPTON_KAFKA_SECURITY_PROTOCOL")
    monkeypatch.setenv("LEPTON_KAFKA_BROKERS", "nowhere")
    with pytest.raises(SettingsError, match="host:port"):
        load_settings()


def test_security_settings_reach_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """SASL and TLS options are handed to kafka-python under its names, and only when they apply."""
    assert set(load_settings().kafka_options()) == {"bootstrap_servers", "security_protocol"}
    monkeypatch.setenv("LEPTON_KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("LEPTON_KAFKA_SASL_USERNAME", "u")
    monkeypatch.setenv("LEPTON_KAFKA_SASL_PASSWORD", "p")
    monkeypatch.setenv("LEPTON_KAFKA_SSL_CAFILE", "/ca.pem")
    options = load_settings().kafka_options()
    assert options["sasl_mechanism"] == "PLAIN"
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert "'p'" not in repr(load_settings())
    assert options["ssl_cafile"] == "/ca.pem"
