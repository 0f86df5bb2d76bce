"""Batches packed by hand: the same as plain commands, on servers that forget scripts, hang up, or lack a command."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from models.features.layout import Layout
from models.pipeline.spec import Pipeline
from stream.local import LocalServices, free_port
from stream.redis import connect
from stream.store.keys import Position, applied_key, position_key, profile_key, profile_shard, state_key
from stream.store.outbox import Outbox
from stream.store.redis_store import RedisStore, Write
from stream.store.wire import Block, Command, Script, Wire
from tests.conftest import MakeSettings
from tests.stream.batches import CARDS, MERCHANTS, TAG, process, random_columns

ECHO = Script(b"return {KEYS[1], KEYS[2] or 'none', #ARGV, ARGV[1], ARGV[#ARGV]}")
MERCHANT_RINGS = 2


def counted(store: RedisStore) -> int:
    """Events counted in the merchants' rings."""
    return int(store.load({}, {"merchant": MERCHANTS}).rings["merchant"]["count"].sum()) // MERCHANT_RINGS


def test_packed_commands_say_what_plain_ones_say(client: Any, pipeline_name: str) -> None:
    """Text, bytes, numbers and blocks arrive as the arguments redis-py would have sent."""
    keys = [f"{pipeline_name}:{{x}}:{name}" for name in ("a", "ü {b}", "")]
    values = [b"", b"\r\n$3\r\n", bytes(range(256))]
    wire = Wire(client)
    wire.round_trip([Command(key, ("SET", key, value, "PX", 60_000)) for key, value in zip(keys, values, strict=True)])
    assert client.mget(keys) == values
    assert wire.with_values([Command(keys[0], ("STRLEN", k)) for k in keys], [*keys, "nobody"]) == (
        [0, 6, 256], [*values, None],
    )  # fmt: skip
    block = Block(2, memoryview(b"$1\r\nx\r\n$3\r\n\r\n!\r\n"))
    calls = [ECHO.call([keys[0]], (b"first", 7), block), ECHO.call(keys[:2], ("only",))]
    assert wire.round_trip(calls) == [
        [keys[0].encode(), b"none", 4, b"first", b"\r\n!"],
        [keys[0].encode(), keys[1].encode(), 1, b"only", b"only"],
    ]


def test_stored_states_are_the_bytes_of_the_arrays(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """What `store` packs as one block is under each entity's own key, whatever memory the array is a view of."""
    states = store.layout.empty_states(6)
    states["count"] = np.arange(6)
    every_other = states[::2]
    assert store.store([Write(TAG, None, Position(1, 1, 1), Outbox(1, []), ["a", "b", "ç"], every_other)]) == [True]
    found = [client.get(state_key(pipeline_name, TAG, entity)) for entity in ("a", "b", "ç")]
    assert found == [state.tobytes() for state in every_other]
    loaded = store.load({TAG: ["ç", "nobody", "a"]}, {}).states_N
    assert loaded["count"].tolist() == [4, 0, 0]
    loaded["count"] += 1  # a batch's states may be written to


def test_a_forgotten_script_is_sent_again(store: RedisStore, client: Any) -> None:
    """After SCRIPT FLUSH, as after a restart, batches go on; entries of one source still count in their order."""
    held, outboxes = None, []
    for number in range(1, 4):
        client.script_flush()
        _, held, outbox = process(store, random_columns(number, 20, first_id=100 * number), held, apply=False)
        outboxes.append(outbox)
    client.script_flush()
    store.apply([(TAG, outbox) for outbox in outboxes])
    assert counted(store) == 3 * 20


def test_an_error_leaves_the_other_replies_in_their_places(client: Any, pipeline_name: str) -> None:
    """The first error is raised after all replies were read: the connection serves the next call as if new."""
    wire, key = Wire(client), f"{pipeline_name}:{{x}}"
    client.rpush(key, "a list")
    good, bad = Command(key, ("LLEN", key)), Command(key, ("GET", key))
    connections = client.info("stats")["total_connections_received"]
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        wire.round_trip([good, bad, good])
    assert wire.round_trip([good]) == [1]
    assert client.info("stats")["total_connections_received"] == connections


def test_keys_of_another_type_stop_the_batch(store: RedisStore, client: Any, pipeline_name: str) -> None:
    """A position or profile key that holds a list is an error, and nothing was written before it."""
    _, held, outbox = process(store, random_columns(1, 30), None, apply=False)
    key = profile_key(pipeline_name, "merchant", MERCHANTS[0])
    client.rpush(key, "a list")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.apply([(TAG, outbox)])
    shard = profile_shard("merchant", MERCHANTS[0])
    assert client.hget(applied_key(pipeline_name, shard), TAG) is None
    client.delete(key)
    assert store.recover(TAG) == held
    assert counted(store) == 30
    client.delete(position_key(pipeline_name, TAG))
    client.rpush(position_key(pipeline_name, TAG), "a list")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.load({TAG: CARDS}, {})
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        store.store([Write(TAG, held, Position(99, 99, 99), Outbox(99, []))])


@pytest.mark.parametrize("stall", [False, True])
def test_half_a_reply_reaches_nobody(pipeline: Pipeline, make_settings: MakeSettings, stall: bool) -> None:
    """A connection that breaks, or falls silent, within a reply is closed; the next call reads its own reply."""
    with _cutting_proxy(make_settings().redis_port, stall) as (port, cut):
        client = connect(make_settings(redis_port=port, redis_timeout_s=0.5))
        store = RedisStore(client, Layout(pipeline))
        _, held, outbox = process(store, random_columns(1, 30), None)
        for after_bytes in (0, 3, 700, 5000):
            cut.append(after_bytes)
            with pytest.raises(TimeoutError if stall else ConnectionError):
                store.load({TAG: CARDS}, {"merchant": MERCHANTS})
            loaded = store.load({TAG: CARDS[::-1]}, {"device": ["d1"]})
            assert loaded.positions == {TAG: held}
            assert loaded.states_N.tobytes() == store.load({TAG: CARDS}, {}).states_N[::-1].tobytes()
        cut.append(2)  # the server applied it, and we do not know
        with pytest.raises(RedisError):
            store.apply([(TAG, Outbox(outbox.number + 1, outbox.items))])
        store.apply([(TAG, Outbox(outbox.number + 1, outbox.items))])
        assert counted(store) == 2 * 30
        client.close()


def test_a_server_that_was_killed_comes_back(tmp_path: Path, pipeline: Pipeline, make_settings: MakeSettings) -> None:
    """Away it is a connection error, which the worker retries; back, it has its data and is sent the scripts anew."""
    with LocalServices(tmp_path / "services", append_only=True) as services:
        client = connect(make_settings(redis_port=services.redis_port))
        store = RedisStore(client, Layout(pipeline))
        _, held, _ = process(store, random_columns(1, 30), None)
        client.execute_command("WAITAOF", 1, 0, 5000)  # by itself the last second may be lost
        services.kill_redis()
        with pytest.raises(ConnectionError):
            store.load({TAG: CARDS}, {})
        services.start_redis()
        with pytest.raises(ConnectionError, match="made anew"):  # once: it might have lost what was written last
            store.load({TAG: CARDS}, {})
        process(store, random_columns(2, 20, first_id=100), held)
        assert counted(store) == 50
        client.close()


def test_a_server_without_msetex(tmp_path: Path, pipeline: Pipeline, make_settings: MakeSettings) -> None:
    """Redis before 8.4 and Valkey before 9.1 end with the same values and times to live."""
    with OlderRedis(tmp_path / "services") as services:
        client = connect(make_settings(redis_port=services.redis_port))
        with pytest.raises(ResponseError, match="unknown command"):
            client.execute_command("MSETEX", 1, "a", "b")
        store = RedisStore(client, Layout(pipeline))
        process(store, random_columns(1, 30), None)
        assert counted(store) == 30
        assert (store.load({TAG: CARDS}, {}).states_N["count"] > 0).all()
        assert 0 < client.pttl(state_key(pipeline.name, TAG, "c1")) <= store.ttl_ms
        assert 0 < client.pttl(profile_key(pipeline.name, "merchant", "m1")) <= store.profile_ttl_ms
        client.close()


def test_a_cluster_whose_slots_move(tmp_path: Path, pipeline: Pipeline, make_settings: MakeSettings) -> None:
    """A client that remembers another owner is redirected; while a slot is on its way, its batches are refused."""
    with LocalServices(tmp_path / "cluster", cluster=True) as services:
        settings = make_settings(redis_port=services.redis_port, redis_cluster=True)
        client: Any = connect(settings)
        store = RedisStore(client, Layout(pipeline))
        _, held, _ = process(store, random_columns(1, 30), None)
        manager = client.nodes_manager
        for slot, nodes in list(manager.slots_cache.items()):
            manager.slots_cache[slot] = [next(n for n in manager.nodes_cache.values() if n not in nodes)]
        _, held, _ = process(store, random_columns(2, 20, first_id=100), held)
        assert counted(store) == 50
        manager.initialize()  # connects again, which nobody had told the store
        with suppress(ConnectionError):
            counted(store)
        slot, state = client.keyslot(position_key(pipeline.name, "new")), store.layout.empty_states(1)
        write = Write("new", None, Position(1, 1, 1), Outbox(1, []), ["a"], state)
        target = _begin_move(client, slot)
        with pytest.raises(ResponseError):  # a RedisError, which the worker tries again
            store.store([write])
        _end_move(client, slot, target)
        assert store.store([write]) == [True]
        assert store.load({"new": ["a"]}, {}).positions == {"new": Position(1, 1, 1)}
        assert manager.get_node_from_slot(slot) == target
        client.close()


def test_no_cluster_is_a_server_that_is_away(make_settings: MakeSettings) -> None:
    """A cluster of which no node answers is an error that is tried again, like one Redis that does not."""
    with pytest.raises(ConnectionError, match="cannot be connected"):
        connect(make_settings(redis_port=free_port(), redis_cluster=True))


def test_a_cluster_that_is_away_is_a_connection_error(
    tmp_path: Path, pipeline: Pipeline, make_settings: MakeSettings
) -> None:
    """All nodes gone, a batch fails as on one Redis, and goes on when they are back."""
    with LocalServices(tmp_path / "cluster", append_only=True, cluster=True) as services:
        client = connect(make_settings(redis_port=services.redis_port, redis_cluster=True))
        store = RedisStore(client, Layout(pipeline))
        _, held, _ = process(store, random_columns(1, 30), None)
        services.kill_redis()
        for _ in range(2):
            with pytest.raises(ConnectionError):
                store.load({TAG: CARDS}, {"merchant": MERCHANTS})
        services.start_redis()
        losses = store.losses
        for _ in services.redis_ports:  # the connection to each node had been lost, and says so once
            with suppress(ConnectionError):
                store.load({TAG: CARDS}, {"merchant": MERCHANTS})
        assert store.losses - losses <= len(services.redis_ports)
        process(store, random_columns(2, 20, first_id=100), held)
        assert counted(store) == 50
        client.close()


class OlderRedis(LocalServices):
    """A server without the newest commands."""

    def _redis_command(self, node: int) -> list[str]:
        return [*super()._redis_command(node), "--rename-command", "MSETEX", ""]


def _node_id(client: Any, node: Any) -> str:
    return str(client.get_redis_connection(node).execute_command("CLUSTER MYID").decode())


def _begin_move(client: Any, slot: int) -> Any:
    """The first half of a resharding: keys the owner lacks are to be asked for at the target, which is returned."""
    source = client.nodes_manager.get_node_from_slot(slot)
    target = next(node for node in client.get_primaries() if node != source)
    ids = _node_id(client, source), _node_id(client, target)
    client.get_redis_connection(target).execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
    client.get_redis_connection(source).execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
    return target


def _end_move(client: Any, slot: int, target: Any) -> None:
    owner = _node_id(client, target)
    for node in (target, *(n for n in client.get_primaries() if n != target)):
        client.get_redis_connection(node).execute_command("CLUSTER SETSLOT", slot, "NODE", owner)


@contextmanager
def _cutting_proxy(redis_port: int, stall: bool) -> Iterator[tuple[int, list[int]]]:
    """A port that leads to Redis, and a list: a number put there cuts the next reply after so many bytes.

    stall: the rest is withheld, instead of hanging up.
    """
    cut: list[int] = []
    opened: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def forward(source: socket.socket, sink: socket.socket, replies: bool) -> None:
        allowed: int | None = None
        while data := _received(source):
            if replies and allowed is None and cut:
                allowed = cut.pop()
            if allowed is not None:
                data, allowed = data[:allowed], allowed - len(data[:allowed])
            with suppress(OSError):
                sink.sendall(data)
            if allowed == 0:
                if stall:
                    return
                break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                caller = listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", redis_port))
            opened.extend((caller, server))
            for ends in ((caller, server, False), (server, caller, True)):
                threading.Thread(target=forward, args=ends, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1], cut
    finally:
        for end in (listener, *opened):
            end.close()


def _received(source: socket.socket) -> bytes:
    try:
        return source.recv(1 << 16)
    except OSError:
        return b""
