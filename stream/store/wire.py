"""Commands to Redis in one round trip, packed by hand: to one server, or to all nodes of a cluster at once.

redis-py's pipelines spend more time on a value than Redis itself. Here a batch is packed by hiredis and handed to
the connection as it is; large values are views of the arrays they come from. Connections are redis-py's, out of its
pool, so authentication, TLS, time limits and reconnecting are its own. An exchange that did not come to its end
closes its connection: no half-read reply reaches whoever uses it next.

Private to redis-py is nothing but `nodes_manager` (where a slot is, a slot that moved). Not done here: retries. An
error passes through, and the caller knows whether to try again. One of them is a slot on its way to another node:
until it is there, neither node can serve commands of several keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakSet

import hiredis
from redis import RedisCluster
from redis.crc import key_slot
from redis.exceptions import (
    ConnectionError,
    MovedError,
    NoScriptError,
    RedisClusterException,
    ResponseError,
    TimeoutError,
)

__all__ = ["Block", "Command", "Script", "Wire"]

SMALL = 1 << 18  # bytes that are copied sooner than sent by themselves
PASSES = 8  # of one round trip: a script to be sent in full, a slot that has moved, and moved again


class Script:
    """A Lua script, called by its hash, and sent in full to a server that does not know it."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()

    def call(self, keys: Sequence[str], arguments: Iterable[Any], block: Block | None = None) -> Command:
        """keys: all of one slot, at least one."""
        return Command(keys[0], ("EVALSHA", self.sha, len(keys), *keys, *arguments), block, self)


@dataclass(frozen=True, slots=True)
class Block:
    """The last arguments of a command: `count` of them, packed already."""

    count: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Command:
    """key: one of its keys, which decides the node. args: text, bytes and numbers. block: arguments after these."""

    key: str
    args: tuple[Any, ...]
    block: Block | None = None
    script: Script | None = None

    def in_full(self) -> Command:
        """The script itself in place of its hash."""
        assert self.script is not None
        return replace(self, args=("EVAL", self.script.source, *self.args[2:]))

    def pieces(self) -> list[bytes | memoryview]:
        """What is sent, to be read as one."""
        packed: bytes = hiredis.pack_command(self.args)
        if self.block is None:
            return [packed]
        count = b"*%d" % (len(self.args) + self.block.count)  # in place of the one hiredis wrote
        return [count + packed[packed.index(b"\r\n") :], self.block.data]


class _MadeAnewError(ConnectionError):
    """A connection was lost, and is there again."""


class Wire:
    """A client of redis-py, Redis or RedisCluster, used for batches. May be shared by threads.

    losses: how often a server was found to be away, or to have been.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._cluster = isinstance(client, RedisCluster)
        self._known: WeakSet[Any] = WeakSet()  # connections that were used before
        self._made_anew: WeakSet[Any] = WeakSet()  # of them, those that have been connected again since
        self.losses = 0

    def round_trip(self, commands: Sequence[Command]) -> list[Any]:
        """The replies, in order; raises the first error after all of them have been read.

        Commands of different slots may run in any order; of one slot in theirs, unless a script was unknown.
        """
        sent, replies = list(commands), [None] * len(commands)
        todo = list(range(len(sent)))
        for _ in range(PASSES):
            if not todo:
                break
            self._exchange(sent, todo, replies)
            todo = [i for i in todo if isinstance(replies[i], NoScriptError | MovedError)]
            redirected = [(i, self._follow(sent[i], replies[i])) for i in todo]
            todo = [i for i, command in redirected if command is not None]
            for i, command in redirected:
                sent[i] = command or sent[i]
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return replies

    def values(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of keys of any slot; None where there is none, or one of another type."""
        return self.with_values([], keys)[1]

    def with_values(self, commands: Sequence[Command], keys: Sequence[str]) -> tuple[list[Any], list[bytes | None]]:
        """The replies to commands and the values of keys, in one round trip."""
        if not self._cluster:
            replies = self.round_trip([*commands, *([Command(keys[0], ("MGET", *keys))] if keys else [])])
            return replies[: len(commands)], replies[len(commands)] if keys else []
        tags: dict[str, list[int]] = {}  # MGET takes keys of one slot
        for i, key in enumerate(keys):
            tags.setdefault(key[key.index("{") + 1 : key.index("}")], []).append(i)
        gets = [Command(keys[at[0]], ("MGET", *(keys[i] for i in at))) for at in tags.values()]
        replies = self.round_trip([*commands, *gets])
        values: list[bytes | None] = [None] * len(keys)
        for at, reply in zip(tags.values(), replies[len(commands) :], strict=True):
            for i, value in zip(at, reply, strict=True):
                values[i] = value
        return replies[: len(commands)], values

    def _exchange(self, commands: list[Command], todo: list[int], replies: list[Any]) -> None:
        """Send to every node before anything is read; an error reply is kept as one."""
        open_ = self._open(commands, todo)
        read = 0
        try:
            for _, connection, members in open_:
                connection.send_packed_command(_joined([piece for i in members for piece in commands[i].pieces()]))
            for _, connection, members in open_:
                for i in members:
                    replies[i] = _reply(connection)
                read += 1
        except (ConnectionError, TimeoutError):
            self.losses += 1
            self._look_again()
            raise
        finally:
            for n, (pool, connection, _) in enumerate(open_):
                if n >= read:
                    connection.disconnect()
                    self._known.discard(connection)  # the caller has been told
                pool.release(connection)

    def _open(self, commands: list[Command], todo: list[int]) -> list[tuple[Any, Any, list[int]]]:
        """A connection to each server, and the commands it gets.

        Raises ConnectionError, once, when redis-py has had to connect again: the server may have come back without its
        last writes, and whoever relied on them must know.
        """
        open_: list[tuple[Any, Any, list[int]]] = []
        try:
            for pool, members in self._pools(commands, todo):
                open_.append((pool, pool.get_connection(), members))
            new = [self._is_new(connection) for _, connection, _ in open_]  # each of them is asked
            if any(new):
                raise _MadeAnewError("the connection to Redis had been lost, and was made anew")
        except (ConnectionError, TimeoutError) as error:
            self.losses += 1
            for pool, connection, _ in open_:
                pool.release(connection)
            if not isinstance(error, _MadeAnewError):
                self._look_again()
            raise
        return open_

    def _is_new(self, connection: Any) -> bool:
        """Whether a connection was made anew since it was last asked about."""
        new = connection in self._known and connection in self._made_anew
        self._made_anew.discard(connection)
        if connection not in self._known:
            self._known.add(connection)
            connection.register_connect_callback(self._connected)
        return new

    def _connected(self, connection: Any) -> None:
        self._made_anew.add(connection)

    def _pools(self, commands: list[Command], todo: list[int]) -> list[tuple[Any, list[int]]]:
        """The connection pool of each server, and the commands it gets."""
        if not self._cluster:
            return [(self._client.connection_pool, todo)]
        pools: dict[Any, list[int]] = {}
        for i in todo:
            pools.setdefault(self._node(commands[i]), []).append(i)
        return [(self._client.get_redis_connection(node).connection_pool, members) for node, members in pools.items()]

    def _node(self, command: Command) -> Any:
        try:
            return self._client.nodes_manager.get_node_from_slot(key_slot(command.key.encode()))
        except RedisClusterException as error:  # no RedisError: to the caller it is a server that is away
            self._look_again()
            raise ConnectionError(str(error)) from error

    def _follow(self, command: Command, error: Any) -> Command | None:
        """The command as it must be sent again; None when the error stands."""
        if isinstance(error, NoScriptError):
            return command.in_full() if command.script is not None else None
        if self._cluster:
            self._client.nodes_manager.move_slot(error)
            return command
        return None

    def _look_again(self) -> None:
        """Ask the cluster who has which slot, for the next attempt."""
        if self._cluster:
            try:
                self._client.nodes_manager.initialize()
            except RedisClusterException as error:
                raise ConnectionError(str(error)) from error


def _joined(pieces: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """The same bytes in fewer pieces, since each costs a system call; large ones stay as they are."""
    joined: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) <= SMALL:
            small.append(piece)
            continue
        joined += [b"".join(small), piece] if small else [piece]
        small = []
    return [*joined, b"".join(small)] if small else joined


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
