"""Where the broker and the registry are: the settings training shares with the worker; and how torchrun started it.

Read once, from the environment (prefix `LEPTON_`) and from the TOML file that `LEPTON_SETTINGS` or
`--settings` names; the environment wins. Keys of that file that only the worker needs are passed over
here, since both read the same one. Nothing else in `training` looks at the environment.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from models.errors import SettingsError, shorten

__all__ = ["Launch", "Settings", "load_launch", "load_settings"]

PREFIX = "LEPTON_"
FILE_VARIABLE = "LEPTON_SETTINGS"
SECRETS = frozenset({"kafka_sasl_password"})  # never reach a message


class Settings(BaseSettings):
    """Every setting with its default; `LEPTON_<NAME>` in the environment overrides it."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    pipeline: str = "payments"  # a shipped name or a TOML file
    registry: Annotated[str, BeforeValidator(str)] = (
        "artifacts/registry"  # root of the model registry: a folder, or a URL that fsspec knows
    )
    trusted_keys: Path | None = None  # folder of public keys, *.pub: only bundles that one of them signed are used
    signing_key: Path | None = None  # private key that what is published is signed with
    kafka_brokers: str = "127.0.0.1:9092"  # host:port, comma-separated
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_cafile: Path | None = None
    kafka_ssl_certfile: Path | None = None
    kafka_ssl_keyfile: Path | None = None

    def kafka_options(self) -> dict[str, Any]:
        """Keyword arguments every kafka-python client takes."""
        options: dict[str, Any] = {
            "bootstrap_servers": [b.strip() for b in self.kafka_brokers.split(",")],
            "security_protocol": self.kafka_security_protocol,
        }
        if self.kafka_security_protocol.startswith("SASL") and self.kafka_sasl_password is not None:
            options |= {
                "sasl_mechanism": self.kafka_sasl_mechanism,
                "sasl_plain_username": self.kafka_sasl_username,
                "sasl_plain_password": self.kafka_sasl_password.get_secret_value(),
            }
        if self.kafka_security_protocol.endswith("SSL"):
            files = {"cafile": self.kafka_ssl_cafile, "certfile": self.kafka_ssl_certfile,
                     "keyfile": self.kafka_ssl_keyfile}  # fmt: skip
            options |= {f"ssl_{name}": str(path) for name, path in files.items() if path is not None}
        return options


@dataclass(frozen=True, slots=True)
class Launch:
    """Which of how many processes this is, by torchrun; the only one without it."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0


def load_launch() -> Launch:
    """What torchrun says in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. Raises SettingsError."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # the others are also set by job schedulers
        return Launch()
    found = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        text = os.environ.get(name, "")
        if not text.isdecimal():
            raise SettingsError(f"{name} = {shorten(text)}: expected a number, as torchrun sets it")
        found[name] = int(text)
    if found["WORLD_SIZE"] != found["LOCAL_WORLD_SIZE"]:
        raise SettingsError(
            f"WORLD_SIZE = {found['WORLD_SIZE']}, LOCAL_WORLD_SIZE = {found['LOCAL_WORLD_SIZE']}: expected all "
            "processes on one machine, as they share windows through a folder"
        )
    return Launch(found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"])


def load_settings(path: Path | None = None) -> Settings:
    """The settings; `path` (else the variable LEPTON_SETTINGS) is the TOML file.

    Raises SettingsError with the variable, its value and what was expected.
    """
    named = path or os.environ.get(FILE_VARIABLE) or None
    from_file = _read_file(Path(named)) if named else {}
    try:
        settings = Settings(**{**from_file, **EnvSettingsSource(Settings)()})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise _error(name, first["input"], first["msg"]) from error
    for broker in settings.kafka_brokers.split(","):
        host, _, port = broker.strip().rpartition(":")
        if not host or not port.isdigit():
            raise _error("kafka_brokers", settings.kafka_brokers, "host:port, comma-separated")
    return settings


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _error("settings", str(path), f"a readable TOML file ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _error("settings", str(path), f"valid TOML ({error})") from error


def _error(name: str, value: object, expected: str) -> SettingsError:
    shown = "(hidden)" if name in SECRETS else shorten(value)
    return SettingsError(f"{PREFIX}{name.upper()} = {shown}: expected {expected}")
