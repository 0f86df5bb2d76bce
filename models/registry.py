"""Where bundles are kept, and which one of a pipeline is the champion.

    <root>/<pipeline>/versions/<version>/…   bundles; immutable, put in place by one rename
    <root>/<pipeline>/champion.json          the version in use; replaced by one rename
    <root>/<pipeline>/history.jsonl          every promotion and rollback, appended, never rewritten

A crash leaves either the old or the new champion. The history line is written first: if the process dies
between the two, the history names a promotion that the pointer does not show, and `rollback`, which starts
from the pointer, is not misled. Writers take a file lock; readers need none. The folder may be on any POSIX
file system that the workers share.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from models.bundle import BundleInfo, read_info
from models.clock import now_ms, to_iso
from models.errors import RegistryError

__all__ = ["Change", "Pointer", "Registry"]

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
VERSION = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
INCOMING = ".incoming-"  # prefix of a bundle that is still being copied


class Pointer(msgspec.Struct, frozen=True, kw_only=True):
    """`champion.json`: which version is the champion."""

    version: str
    since: str  # ISO-8601
    why: str


class Change(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """One line of `history.jsonl`. `from_` is None for a pipeline's first champion."""

    at: str  # ISO-8601
    action: Literal["promote", "rollback"]
    from_: str | None
    to: str
    why: str


class Registry:
    """Bundles and champions below one folder, which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def publish(self, bundle_folder: Path) -> str:
        """Copy a bundle in; returns its version. Publishing the same bundle again changes nothing.

        Raises BundleError when its checksums do not hold, RegistryError when another bundle has this version.
        """
        info = read_info(bundle_folder)
        target = self._version_path(info.pipeline, info.version)
        if target.exists():
            if read_info(target) != info:
                raise RegistryError(f"{target} holds another bundle of this version: expected none, or the same")
            return info.version
        incoming = target.with_name(f"{INCOMING}{info.version}-{os.getpid()}")
        try:
            shutil.copytree(bundle_folder, incoming)
            read_info(incoming)  # what arrived, not what was sent
            for file in incoming.iterdir():
                file.chmod(0o444)
                _sync(file)
            _sync(incoming)
            os.rename(incoming, target)
            _sync(target.parent)
        except OSError as error:
            raise RegistryError(f"{target}: {error.strerror or error}: expected to be able to write it") from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
        return info.version

    def promote(self, pipeline: str, version: str, why: str) -> None:
        """Make a published version the champion; promoting the champion again changes nothing.

        Raises RegistryError for a version that is not there, BundleError for one that is damaged.
        """
        self.verify(pipeline, version)
        with self._lock(pipeline):
            current = self.champion(pipeline)
            if current != version:
                self._change(pipeline, "promote", current, version, why)

    def rollback(self, pipeline: str, why: str) -> str:
        """Point back at the version that the champion replaced; returns it. Raises RegistryError if none did."""
        with self._lock(pipeline):
            current = self.champion(pipeline)
            if current is None:
                raise RegistryError(f"{pipeline} has no champion in {self.root}: nothing to roll back")
            arrivals = [c for c in self.history(pipeline) if c.to == current and c.action == "promote"]
            previous = arrivals[-1].from_ if arrivals else None
            if previous is None:
                raise RegistryError(f"{pipeline} {current} replaced no other version: expected one to roll back to")
            self.verify(pipeline, previous)
            self._change(pipeline, "rollback", current, previous, why)
            return previous

    def champion(self, pipeline: str) -> str | None:
        """The version in use, or None."""
        pointer = self.pointer(pipeline)
        return None if pointer is None else pointer.version

    def pointer(self, pipeline: str) -> Pointer | None:
        """The champion with since when and why, or None. Raises RegistryError for an unreadable file."""
        path = self._folder(pipeline) / "champion.json"
        try:
            found = msgspec.json.decode(path.read_bytes(), type=Pointer)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{path}: {error}: expected a champion's version") from error
        self._version_path(pipeline, found.version)
        return found

    def path(self, pipeline: str, version: str) -> Path:
        """The folder of a published bundle. Raises RegistryError when there is none."""
        path = self._version_path(pipeline, version)
        if not path.is_dir():
            known = ", ".join(self.versions(pipeline)[-5:]) or "none"
            raise RegistryError(f"{pipeline} has no version {version} in {self.root}: expected one of: {known}")
        return path

    def pipelines(self) -> list[str]:
        """Names of the pipelines that have versions."""
        return sorted(p.parent.name for p in self.root.glob("*/versions") if NAME.fullmatch(p.parent.name))

    def versions(self, pipeline: str) -> list[str]:
        """All published versions, oldest first."""
        folder = self._folder(pipeline) / "versions"
        return sorted(p.name for p in folder.iterdir() if VERSION.fullmatch(p.name)) if folder.is_dir() else []

    def history(self, pipeline: str) -> list[Change]:
        """All promotions and rollbacks, oldest first; a line that a crash cut short is left out."""
        path = self._folder(pipeline) / "history.jsonl"
        changes = []
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
                changes.append(msgspec.json.decode(line, type=Change))
        return changes

    def verify(self, pipeline: str, version: str) -> BundleInfo:
        """Check all checksums of a version. Raises BundleError, or RegistryError for a bundle out of place."""
        path = self.path(pipeline, version)
        info = read_info(path)
        if (info.pipeline, info.version) != (pipeline, version):
            raise RegistryError(f"{path} holds {info.pipeline} {info.version}: expected {pipeline} {version}")
        return info

    def _folder(self, pipeline: str) -> Path:
        if not NAME.fullmatch(pipeline):
            raise RegistryError(f"pipeline = {pipeline!r}: expected lower-case letters, digits and dashes")
        return self.root / pipeline

    def _version_path(self, pipeline: str, version: str) -> Path:
        if not VERSION.fullmatch(version):
            raise RegistryError(f"version = {version!r}: expected the form 20261123T101500-ab12cd")
        return self._folder(pipeline) / "versions" / version

    @contextlib.contextmanager
    def _lock(self, pipeline: str) -> Iterator[None]:
        folder = self._folder(pipeline)
        if not folder.is_dir():
            raise RegistryError(f"{pipeline} is not in {self.root}: expected one of: {', '.join(self.pipelines())}")
        with open(folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # freed when the file is closed, also by a crash
            yield

    def _change(
        self, pipeline: str, action: Literal["promote", "rollback"], current: str | None, to: str, why: str
    ) -> None:
        folder, at = self._folder(pipeline), to_iso(now_ms())
        change = Change(at=at, action=action, from_=current, to=to, why=why)
        _append_line(folder / "history.jsonl", msgspec.json.encode(change))
        pointer = msgspec.json.encode(Pointer(version=to, since=at, why=why))
        scratch = folder / ".champion.json.tmp"
        with open(scratch, "wb") as file:
            file.write(pointer)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, folder / "champion.json")
        _sync(folder)


def _append_line(path: Path, line: bytes) -> None:
    """Append and sync; a line that a crash cut short is closed first, so that it spoils no other."""
    with open(path, "a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Make a file, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
