"""The registry itself: see the package. Readers and writers need no lock."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from models.bundle import MANIFEST, BundleInfo, read_info
from models.clock import now_ms, to_iso
from models.errors import RegistryError
from models.registry.changes import Action, Challenger, Change, Pointers, Stage
from models.registry.storage import storage_of
from models.signing import SIGNATURE, Keys, sign

__all__ = ["Registry"]

NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
VERSION = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
CHANGE = re.compile(r"\d{8}\.json")
CACHE = Path("artifacts/cache/registry")

# from, to, champion, challenger; None for no change
Planned = tuple[str | None, str | None, str | None, Challenger | None]
Plan = Callable[[Pointers], Planned | None]


class _Before(msgspec.Struct):
    """`champion.json`, which earlier releases pointed with."""

    version: str
    since: str = ""
    why: str = ""


class Registry:
    """Bundles and champions below a folder, which need not exist yet, or a URL.

    trusted: when given, only bundles signed with one of these keys are published, promoted or handed out. cache: where
    copies of what is at a URL are kept.
    """

    def __init__(self, root: str | Path, *, trusted: Keys = (), cache: Path = CACHE) -> None:
        self.root, self.trusted = root, trusted
        self._storage = storage_of(root, cache)

    def publish(self, bundle_folder: Path, *, key: Path | None = None) -> str:
        """Copy a bundle in; returns its version. Publishing the same bundle again changes nothing.

        key: a private key to sign it with. Raises BundleError when its checksums do not hold, or nobody who is trusted
        has signed it; RegistryError when another bundle has this version.
        """
        if key is not None:
            read_info(bundle_folder)  # who signs vouches for what is in it
            sign(bundle_folder, key)
        info = read_info(bundle_folder, self.trusted)
        folder = self._version(info.pipeline, info.version)
        there = self._storage.fetch(*folder)
        if there is None:
            self._storage.put(bundle_folder, *folder)
        else:
            self._add_signature(bundle_folder, there, folder)
        there = self._fetched(info.pipeline, info.version)  # what arrived, not what was sent
        if read_info(there, self.trusted) != info:
            raise RegistryError(f"{self._named(folder)} holds another bundle: expected none, or the same")
        return info.version

    def _add_signature(self, bundle: Path, there: Path, folder: tuple[str, str, str]) -> None:
        """A version that was published unsigned may be signed later: one file more, none changed."""
        same = (bundle / MANIFEST).read_bytes() == (there / MANIFEST).read_bytes()
        if same and (bundle / SIGNATURE).exists() and not (there / SIGNATURE).exists():
            self._storage.create((bundle / SIGNATURE).read_bytes(), *folder, SIGNATURE)

    def promote(
        self, pipeline: str, version: str, why: str, *, by: str = "unknown", figures: dict[str, Any] | None = None
    ) -> None:
        """Make a published version the champion; promoting the champion again changes nothing. A challenger stays one
        unless it is this version.

        Raises RegistryError for a version that is not there, BundleError for one that is damaged or not signed.
        """
        self.verify(pipeline, version)

        def plan(now: Pointers) -> Planned | None:
            kept = None if now.challenger and now.challenger.version == version else now.challenger
            return (
                None if now.champion == version and kept == now.challenger else (now.champion, version, version, kept)
            )

        self._change(pipeline, "promote", plan, why, by, figures)

    def challenge(
        self, pipeline: str, version: str, stage: Stage, why: str, *, share: float = 0.0, by: str = "unknown",
        figures: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Let a published version run beside the champion; it takes the place of another challenger.

        share: of the entities a canary decides for. Raises RegistryError and BundleError as `promote`.
        """
        if (stage == "canary") != (0 < share < 1):
            raise RegistryError(
                f"{stage} with share {share:g}: expected 0 of a shadow, and between 0 and 1 of a canary"
            )
        self.verify(pipeline, version)

        def plan(now: Pointers) -> Planned:
            if now.champion in (None, version):
                raise RegistryError(f"{pipeline} has champion {now.champion}: expected another version than {version}")
            found = Challenger(version=version, stage=stage, share=share, since=to_iso(now_ms()))
            return now.champion, version, now.champion, found

        self._change(pipeline, "challenge", plan, why, by, figures)

    def withdraw(
        self, pipeline: str, why: str, *, by: str = "unknown", figures: dict[str, Any] | None = None
    ) -> str | None:
        """Let the challenger run no more; returns which that was. Without one nothing changes."""
        withdrawn = None

        def plan(now: Pointers) -> Planned | None:
            nonlocal withdrawn
            withdrawn = None if now.challenger is None else now.challenger.version
            return None if withdrawn is None else (withdrawn, now.champion, now.champion, None)

        self._change(pipeline, "withdraw", plan, why, by, figures)
        return withdrawn

    def rollback(self, pipeline: str, why: str, *, by: str = "unknown", figures: dict[str, Any] | None = None) -> str:
        """Point back at the version that the champion replaced; returns it. A challenger is withdrawn.

        Raises RegistryError if it replaced none.
        """

        def plan(now: Pointers) -> Planned:
            if now.champion is None:
                raise RegistryError(f"{pipeline} has no champion in {self.root}: nothing to roll back")
            arrivals = [c for c in self.history(pipeline) if c.to == now.champion and c.action == "promote"]
            previous = arrivals[-1].from_ if arrivals else None
            if previous is None:
                raise RegistryError(
                    f"{pipeline} {now.champion} replaced no other version: expected one to roll back to"
                )
            self.verify(pipeline, previous)
            return now.champion, previous, previous, None

        to = self._change(pipeline, "rollback", plan, why, by, figures).champion
        assert to is not None
        return to

    def champion(self, pipeline: str) -> str | None:
        """The version in use, or None."""
        return self.pointers(pipeline).champion

    def pointers(self, pipeline: str) -> Pointers:
        """Champion and challenger, as the newest change says. Raises RegistryError when it cannot be read."""
        names = self._changes(pipeline)
        if not names:
            return self._before(pipeline)
        change = self._read(pipeline, names[-1])
        return Pointers(seq=change.seq, champion=change.champion, challenger=change.challenger, since=change.since,
                        why=change.why)  # fmt: skip

    def path(self, pipeline: str, version: str) -> Path:
        """A local folder with a published bundle that passes `verify`. Raises RegistryError and BundleError."""
        return self._verified(pipeline, version)[0]

    def pipelines(self) -> list[str]:
        """Names of the pipelines that have versions."""
        return [name for name in self._storage.names() if NAME.fullmatch(name) and self.versions(name)]

    def versions(self, pipeline: str) -> list[str]:
        """All published versions, oldest first."""
        names = self._storage.names(self._pipeline(pipeline), "versions")
        return [
            name for name in names
            if VERSION.fullmatch(name) and self._storage.is_whole(pipeline, "versions", name)
        ]  # fmt: skip

    def history(self, pipeline: str) -> list[Change]:
        """All changes, oldest first. Raises RegistryError when one cannot be read."""
        return [self._read(pipeline, name) for name in self._changes(pipeline)]

    def verify(self, pipeline: str, version: str) -> BundleInfo:
        """Check checksums and, where keys are trusted, the signature of a version.

        Raises BundleError, and RegistryError for a version that is not there or a bundle out of place.
        """
        return self._verified(pipeline, version)[1]

    def signed(self, pipeline: str, version: str) -> bool:
        """Whether somebody has signed a version; by whom, only `verify` asks."""
        return (self._fetched(pipeline, version) / SIGNATURE).exists()

    def _verified(self, pipeline: str, version: str) -> tuple[Path, BundleInfo]:
        folder = self._fetched(pipeline, version)
        info = read_info(folder, self.trusted)
        if (info.pipeline, info.version) != (pipeline, version):
            raise RegistryError(f"{folder} holds {info.pipeline} {info.version}: expected {pipeline} {version}")
        return folder, info

    def _fetched(self, pipeline: str, version: str) -> Path:
        found = self._storage.fetch(*self._version(pipeline, version))
        if found is None:
            known = ", ".join(self.versions(pipeline)[-5:]) or "none"
            raise RegistryError(f"{pipeline} has no version {version} in {self.root}: expected one of: {known}")
        return found

    def _change(
        self, pipeline: str, action: Action, plan: Plan, why: str, by: str, figures: dict[str, Any] | None
    ) -> Pointers:
        """Add what `plan` makes of the pointers. Of two writers the later one looks again and plans anew."""
        while True:
            now = self.pointers(pipeline)
            planned = plan(now)
            if planned is None:
                return now
            from_, to, champion, challenger = planned
            at = to_iso(now_ms())
            change = Change(
                seq=now.seq + 1, at=at, by=by, action=action, from_=from_, to=to, why=why, figures=figures or {},
                champion=champion, challenger=challenger, since=at if champion != now.champion else now.since,
            )  # fmt: skip
            data = msgspec.json.format(msgspec.json.encode(change, enc_hook=_plain), indent=1)
            if self._storage.create(data, self._pipeline(pipeline), "changes", f"{change.seq:08d}.json"):
                return Pointers(seq=change.seq, champion=champion, challenger=challenger, since=change.since, why=why)

    def _changes(self, pipeline: str) -> list[str]:
        return [name for name in self._storage.names(self._pipeline(pipeline), "changes") if CHANGE.fullmatch(name)]

    def _read(self, pipeline: str, name: str) -> Change:
        path = (self._pipeline(pipeline), "changes", name)
        try:
            return msgspec.json.decode(self._storage.read(*path) or b"", type=Change)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self._named(path)}: {error}: expected a change of a registry") from error

    def _before(self, pipeline: str) -> Pointers:
        path = (self._pipeline(pipeline), "champion.json")
        data = self._storage.read(*path)
        if data is None:
            return Pointers()
        try:
            found = msgspec.json.decode(data, type=_Before)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RegistryError(f"{self._named(path)}: {error}: expected a champion's version") from error
        return Pointers(champion=found.version, since=found.since, why=found.why)

    def _pipeline(self, pipeline: str) -> str:
        if not NAME.fullmatch(pipeline):
            raise RegistryError(f"pipeline = {pipeline!r}: expected lower-case letters, digits and dashes")
        return pipeline

    def _version(self, pipeline: str, version: str) -> tuple[str, str, str]:
        if not VERSION.fullmatch(version):
            raise RegistryError(f"version = {version!r}: expected the form 20261123T101500-ab12cd")
        return self._pipeline(pipeline), "versions", version

    def _named(self, path: tuple[str, ...]) -> str:
        return "/".join((str(self.root), *path))


def _plain(value: object) -> object:
    """Figures are often numpy scalars."""
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} in a change's figures: expected JSON values")
