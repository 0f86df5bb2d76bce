"""Connections to one Redis, by port and socket, with a password, and to a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import RedisCluster
from redis.exceptions import AuthenticationError

from stream.local import LocalServices
from stream.redis import connect
from stream.settings import Settings, load_settings


def test_values_are_bytes(settings: Settings, pipeline_name: str) -> None:
    """What was stored comes back unchanged and undecoded."""
    client = connect(settings)
    client.set(f"{pipeline_name}:x", b"\xff\x00")
    assert client.get(f"{pipeline_name}:x") == b"\xff\x00"


def test_password_is_passed(tmp_path: Path) -> None:
    """A server with a password lets in who has it, and nobody else."""
    with LocalServices(tmp_path) as services:
        connect(load_settings(redis_port=services.redis_port)).config_set("requirepass", "secret")
        with pytest.raises(AuthenticationError):
            connect(load_settings(redis_port=services.redis_port)).get("x")
        assert connect(load_settings(redis_port=services.redis_port, redis_password="secret")).get("x") is None


def test_cluster(tmp_path: Path) -> None:
    """With `redis_cluster` keys of different slots are reached, and a hash tag keeps keys together."""
    with LocalServices(tmp_path, cluster=True) as services:
        client = connect(load_settings(redis_port=services.redis_port, redis_cluster=True))
        assert isinstance(client, RedisCluster)
        for key in ("a", "b", "p:{1}:x"):
            client.set(key, key)
        assert [client.get(key) for key in ("a", "b", "p:{1}:x")] == [b"a", b"b", b"p:{1}:x"]
        assert client.keyslot("p:{1}:x") == client.keyslot("p:{1}:y")
        client.close()
