"""A training that can be killed: after each epoch everything it goes on from is in one file.

The file is safetensors: tensors by name, and in the header's metadata a JSON object with the progress, a digest of all
of it, and the identity of the training: digests of the recipe, the data and the start. It is renamed into place, so it
is whole or the one before; a file of another training is refused with the part that differs. Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors
import safetensors.torch
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from training.errors import CheckpointError

__all__ = ["Checkpoint", "digest_of"]

FORMAT = 1
KEY = "lepton"  # of the metadata


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    identity: dict[str, str]
    facts: dict[str, Any]
    digest: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file. identity: what has to be the same for a resumed training to end where an uninterrupted one does."""

    path: Path
    identity: Mapping[str, str]

    def save(self, tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> None:
        """Replace the file. facts: JSON values."""
        arrays = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        header = _Header(format=FORMAT, identity=dict(self.identity), facts=facts, digest=_digest(arrays, facts))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        hidden = self.path.with_name(f".{self.path.name}")
        hidden.write_bytes(safetensors.torch.save(arrays, {KEY: msgspec.json.encode(header).decode()}))
        with hidden.open("rb") as file:
            os.fsync(file.fileno())
        hidden.replace(self.path)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts, None without a file.

        Raises CheckpointError with reason `format` (unreadable, or of another version), `digest` (damaged), or the name
        of the part of the identity that differs, such as `recipe` or `data`.
        """
        if not self.path.exists():
            return None
        try:
            with safetensors.safe_open(self.path, "pt") as file:
                header = msgspec.json.decode((file.metadata() or {})[KEY], type=_Header)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (SafetensorError, msgspec.MsgspecError, KeyError) as error:
            raise CheckpointError("format", f"{self.path}: {error}: expected a checkpoint of this project") from error
        if header.format != FORMAT:
            raise CheckpointError("format", f"{self.path} has format {header.format}: expected {FORMAT}")
        for name in (*self.identity, *sorted(header.identity.keys() - self.identity.keys())):  # the broadest first
            found, expected = header.identity.get(name), self.identity.get(name)
            if found != expected:
                raise CheckpointError(
                    name, f"{self.path} is of a training with another {name} ({found}): expected {expected}; "
                    "remove it, or name another folder",
                )  # fmt: skip
        if (actual := _digest(tensors, header.facts)) != header.digest:
            raise CheckpointError("digest", f"{self.path} has digest {actual}: expected {header.digest}")
        return tensors, header.facts

    def remove(self) -> None:
        """When what it was for is done."""
        self.path.unlink(missing_ok=True)


def digest_of(*parts: NDArray[Any] | str) -> str:
    """Of arrays (their types and shapes, too) and texts: 32 hex digits, which name data and do not hide it."""
    hashed = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, str):
            hashed.update(f"{len(part)}:{part}".encode())
        else:
            hashed.update(f"{part.dtype.str}{part.shape}".encode())
            hashed.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return hashed.hexdigest()


def _digest(tensors: Mapping[str, Tensor], facts: dict[str, Any]) -> str:
    arrays = [part for name in sorted(tensors) for part in (name, tensors[name].numpy())]
    return digest_of(*arrays, msgspec.json.encode(facts, order="deterministic").decode())
