"""The C library is told to keep freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from stream.memory import keep_freed_memory

def faults(count=3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(1 << 18) for _ in range(count)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def in_thread():
    with ThreadPoolExecutor(1) as pool:
        return [pool.submit(faults, count=40).result() for _ in range(2)][-1]

first = faults()
print(keep_freed_memory(), first, faults(), faults(), in_thread())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_batches_reuse_memory() -> None:
    """After the call, megabytes that are freed and needed again cost no page faults, in a thread neither."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    kept, before, _, after, in_thread = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert int(before) > 20 * 1000, "each 2 MiB block is 512 pages"
    assert int(after) < 20 * 10
    assert int(in_thread) < 20 * 10
