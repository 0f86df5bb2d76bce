"""Local services start, answer, come back after a kill, and leave no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from kafka import KafkaAdminClient
from redis import Redis

from models.errors import LeptonError
from stream.local import LocalServices


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
            return True
        time.sleep(0.05)
    return False


def test_both_answer_and_stop(tmp_path: Path) -> None:
    """Inside the context both servers answer; after it their processes are gone."""
    with LocalServices(tmp_path) as services:
        pids = services.pids
        assert len(pids) == 2
        KafkaAdminClient(bootstrap_servers=services.kafka_brokers).close()
        assert Redis(port=services.redis_port).ping()
    assert _gone(pids)
    assert services.pids == []


def test_redis_comes_back_from_its_file(tmp_path: Path) -> None:
    """After SIGKILL an append-only Redis is on the same port with what was written."""
    with LocalServices(tmp_path, append_only=True) as services:
        port = services.redis_port
        with Redis(port=port) as client:
            client.set("x", "1")
        services.kill_redis()
        assert len(services.pids) == 1
        services.start_redis()
        with Redis(port=port) as client:
            assert client.get("x") == b"1"


def test_a_server_that_cannot_start_says_why(tmp_path: Path, services: LocalServices) -> None:
    """On a taken port the error carries the end of the server's log; another's answer is not taken for its own."""
    second = LocalServices(tmp_path)
    with pytest.raises(LeptonError, match=r"redis did not start .*(?s:.*)in use"):
        second._start_redis_on([services.redis_port])
    assert second.pids == []


DEV = [sys.executable, "-m", "stream", "dev"]


def _started(process: subprocess.Popen[str]) -> list[int]:
    """Waits for the printed variables; the pids of the services."""
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(2)]
    assert [line.split("=")[0] for line in lines] == ["export LEPTON_KAFKA_BROKERS", "export LEPTON_REDIS_PORT"]
    return [child.pid for child in psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_dev_leaves_no_process(number: signal.Signals) -> None:
    """`python -m stream dev` ends its services when it is interrupted, terminated, and even when killed."""
    if number == signal.SIGKILL and not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends the children of a killed process")
    process = subprocess.Popen(DEV, stdout=subprocess.PIPE, text=True)
    pids = _started(process)
    assert len(pids) == 2
    os.kill(process.pid, number)
    assert process.wait(15) == (-number if number == signal.SIGKILL else 0)
    assert _gone(pids)
    assert process.stdout is not None
    process.stdout.close()


def test_dev_ends_by_itself() -> None:
    """`--seconds` bounds the run."""
    assert subprocess.run([*DEV, "--seconds", "0.1"], capture_output=True, timeout=30, check=True).stdout
