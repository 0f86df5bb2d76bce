"""The one place that opens a connection to Redis (or any server that speaks its protocol).

Connecting happens on first use; nothing here waits for a server. Values are bytes, never decoded.
"""

from __future__ import annotations

from typing import Any

from redis import Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisClusterException
from redis.retry import Retry

from stream.settings import Settings

__all__ = ["connect"]


def connect(settings: Settings) -> Redis | RedisCluster:
    """A thread-safe client with a connection pool; RedisCluster when `redis_cluster` is set.

    A command that fails is not repeated by the client: the caller knows whether that is safe, and backs off.
    (The cluster client still follows moved slots.) RedisCluster asks a node for the slots at once, so it raises
    redis.RedisError when no server answers.
    """
    password = settings.redis_password.get_secret_value() if settings.redis_password else None
    options: dict[str, Any] = {
        "username": settings.redis_username,
        "password": password,
        "decode_responses": False,
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
        "socket_read_size": 1 << 20,  # a batch's states are about a megabyte
    }
    if settings.redis_ssl:
        options["ssl"] = True
        options["ssl_ca_certs"] = str(settings.redis_ssl_cafile) if settings.redis_ssl_cafile else None
    if settings.redis_cluster:
        try:
            return RedisCluster(host=settings.redis_host, port=settings.redis_port, **options)
        except RedisClusterException as error:  # no RedisError
            raise ConnectionError(str(error)) from error
    if settings.redis_unix_socket is not None:
        options["unix_socket_path"] = str(settings.redis_unix_socket)
    return Redis(
        host=settings.redis_host,
        port=settings.redis_port,
        db=settings.redis_db,
        retry=Retry(NoBackoff(), 0),
        **options,
    )
