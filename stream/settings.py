"""Settings of every `python -m stream` command: environment, optional TOML file, checked once at start.

The only file of `stream` that reads the environment. Order, strongest first: a command's own options, `LEPTON_…`
variables, the file named by `--settings` or LEPTON_SETTINGS, the defaults below. A value that has been read
cannot be changed.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from models.engines import EngineName
from models.errors import SettingsError, shorten

__all__ = ["Settings", "load_settings"]

PREFIX = "LEPTON_"
FILE_VARIABLE = "LEPTON_SETTINGS"
SECRETS = frozenset({"kafka_sasl_password", "redis_password"})
SIMILAR = 0.88  # a variable this close to a known one is a slip of the pen, not another program's


class Settings(BaseSettings):
    """Every setting, with what it trades off. `LEPTON_<NAME IN CAPITALS>` is its variable."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    pipeline: str = "payments"  # a shipped name or the path of a pipeline file

    kafka_brokers: str = "127.0.0.1:9092"  # host:port, several separated by commas
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    kafka_sasl_username: str | None = None
    kafka_sasl_password: SecretStr | None = None
    kafka_ssl_cafile: Path | None = None  # PEM; the system's authorities when left out
    kafka_ssl_certfile: Path | None = None
    kafka_ssl_keyfile: Path | None = None
    kafka_linger_ms: int = Field(2, ge=0, le=60_000)  # longer: fewer requests and more latency
    kafka_compression: Literal["gzip", "lz4", "snappy", "zstd"] | None = None  # of scores and alerts
    fetch_max_wait_ms: int = Field(5, ge=0, le=60_000)  # 5 for the local broker, 10–100 for Apache Kafka
    session_timeout_s: float = Field(6, ge=1, le=1800)  # shorter: a dead worker is replaced sooner
    partitions: int = Field(4, ge=1, le=10_000)  # of topics that are created; later changes move entities
    replication_factor: int = Field(-1, ge=-1)  # of topics that are created; -1 is the broker's default
    consumer_group: str | None = None  # "<pipeline>-scorer" when left out; see `group`

    redis_host: str = "127.0.0.1"
    redis_port: int = Field(6379, ge=1, le=65535)
    redis_unix_socket: Path | None = None  # instead of host and port
    redis_db: int = Field(0, ge=0)
    redis_username: str | None = None
    redis_password: SecretStr | None = None
    redis_ssl: bool = False
    redis_ssl_cafile: Path | None = None
    redis_cluster: bool = False
    redis_timeout_s: float = Field(5, gt=0, le=600)  # of connecting and of each answer

    registry: Annotated[str, BeforeValidator(str)] = (
        "artifacts/registry"  # root of the model registry: a folder, or a URL that fsspec knows
    )
    trusted_keys: Path | None = None  # folder of public keys, *.pub: only bundles that one of them signed are used
    latency_objective_ms: float = Field(50, ge=1, le=60_000)  # of an event in the worker; longer: cheaper events
    engine: EngineName = "auto"  # of the detector
    threads: int = Field(1, ge=1, le=256)  # of the detector
    http_host: str = "127.0.0.1"
    http_port: int = Field(8080, ge=0, le=65535)  # health and metrics; 0 takes any free port
    stall_s: float = Field(60, gt=0)  # a partition that lags and makes no progress for so long is not live
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_json: bool = False

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        """What one field cannot say. Messages start with the setting they are about."""
        if self.kafka_security_protocol.startswith("SASL") and not (
            self.kafka_sasl_username and self.kafka_sasl_password
        ):
            raise ValueError(f"kafka_sasl_username: expected with {self.kafka_security_protocol}, and a password")
        if bool(self.kafka_ssl_certfile) != bool(self.kafka_ssl_keyfile):
            raise ValueError("kafka_ssl_certfile: expected together with kafka_ssl_keyfile")
        for name in ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile", "redis_ssl_cafile"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise ValueError(f"{name}: expected the path of a file that exists")
        if self.redis_cluster and (self.redis_unix_socket or self.redis_db):
            raise ValueError("redis_cluster: expected neither redis_unix_socket nor redis_db with it")
        for broker in self.kafka_brokers.split(","):
            host, _, port = broker.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError("kafka_brokers: expected host:port, several separated by commas")
        return self

    def group(self, pipeline_name: str) -> str:
        """The consumer group of this pipeline's scoring workers."""
        return self.consumer_group or f"{pipeline_name}-scorer"


def load_settings(path: str | Path | None = None, **overrides: Any) -> Settings:
    """Read and check all settings; `overrides` that are None count as not given.

    Raises SettingsError that names the variable, option or file key, the value and what was expected.
    """
    path = path or os.environ.get(FILE_VARIABLE) or None
    _refuse_slips()
    from_file = _read_file(Path(path)) if path else {}
    from_environment = EnvSettingsSource(Settings)()
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**{**from_file, **from_environment, **given})
    except ValidationError as error:
        raise SettingsError(_message(error, path, set(given), set(from_environment))) from None


def _refuse_slips() -> None:
    """LEPTON_KAFKA_BROKER would be ignored in silence. Other LEPTON_ variables may be somebody else's."""
    known = [FILE_VARIABLE, *(PREFIX + name.upper() for name in Settings.model_fields)]
    for variable in sorted(os.environ):
        if variable.startswith(PREFIX) and variable not in known:
            similar = difflib.get_close_matches(variable, known, 1, SIMILAR)
            if similar:
                raise SettingsError(f"{variable}: no such setting: expected {similar[0]}")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}: expected a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}: expected valid TOML") from error


def _message(error: ValidationError, path: str | Path | None, given: set[str], environment: set[str]) -> str:
    """All problems, one a line, each with where its value came from."""
    lines = []
    for problem in error.errors():
        text = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        if problem["loc"]:
            name = str(problem["loc"][0])
            expected = "a known setting" if problem["type"] == "extra_forbidden" else text.removeprefix("Input should ")
        else:
            name, _, expected = text.partition(": expected ")
            value = value.get(name) if isinstance(value, dict) else value
        where = _where(name, path, given, environment)
        shown = "(hidden)" if name in SECRETS else shorten(str(value) if isinstance(value, Path) else value)
        lines.append(f"{where} = {shown}: expected {expected.removeprefix('be ')}")
    return "\n".join(lines)


def _where(name: str, path: str | Path | None, given: set[str], environment: set[str]) -> str:
    if name in given:
        return f"--{name.replace('_', '-')}"
    if name in environment or path is None:
        return PREFIX + name.upper()
    return f"{path}: {name}"
