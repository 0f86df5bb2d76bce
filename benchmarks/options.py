"""Options that every benchmark has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

__all__ = ["DEFAULTS", "Options"]


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Options:
    """Of every benchmark.

    Parameters
    ----------
    quick
        Small sizes: does it run and are the answers right? The figures mean little.
    seed
        Of the workload.
    json
        File for the figures as JSON; artifacts/benchmarks/NAME.json when left out.
    pin
        The worker gets a core to itself, everything else shares the next one.
    """

    quick: bool = False
    seed: int = 7
    json: Annotated[Path | None, Parameter(name="--json")] = None
    pin: bool = True

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full


DEFAULTS = Options()
