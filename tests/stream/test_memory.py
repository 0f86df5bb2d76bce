"""The C library is told to keep freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import numpy as np
from stream.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [np.ones(1 << 18) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
print(keep_freed_memory(), first, faults(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_batches_reuse_memory() -> None:
    """After the call, megabytes that are freed and needed again cost no page faults."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    kept, before, _, after = done.stdout.split()
    if kept == "False":
        pytest.skip("no glibc")
    assert int(before) > 20 * 1000, "each 2 MiB block is 512 pages"
    assert int(after) < 20 * 10
