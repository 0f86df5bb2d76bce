"""What every table of a pipeline file is made of."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

__all__ = ["Duration", "Part"]

Duration = Annotated[str, Meta(pattern=r"^\d+(\.\d+)?(ms|s|m|h|d|w)$")]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file: immutable, and a key nobody reads is an error."""
