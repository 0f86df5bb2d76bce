"""Payments in flow, and services that may be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stream.local import LocalServices


@pytest.fixture
def mortal_services(tmp_path: Path) -> Iterator[LocalServices]:
    """Services of this test alone, with a Redis that comes back from its append-only file."""
    with LocalServices(tmp_path / "services", append_only=True) as running:
        yield running
