"""Files of a registry: in a folder, or at any URL that fsspec knows (s3, gs, az, memory, …)."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any, Protocol

from models.bundle import read_info
from models.errors import BundleError, RegistryError
from models.signing import SIGNATURE

__all__ = ["Folder", "Storage", "Url", "storage_of"]

LAST = "MANIFEST.json"  # of a bundle's files; without it a folder at a URL is not there yet
HIDDEN = ".incoming-"
PROBE = ".never-replaced"  # shows whether a URL refuses to create what is there
LOCAL = ("file://", "local://")


class Storage(Protocol):
    """What a registry needs; paths are names below the root. Raises RegistryError for what it cannot read or write."""

    root: str

    def names(self, *path: str) -> list[str]:
        """Of the files and folders in a folder, sorted; none where there is no such folder."""

    def read(self, *path: str) -> bytes | None:
        """A file, or None."""

    def create(self, data: bytes, *path: str) -> bool:
        """Write a file that is not there, whole or not at all; False where there is another one.

        A file with these very bytes is this one: its acknowledgement was lost and the request repeated.
        """

    def put(self, local: Path, *path: str) -> None:
        """Copy a folder of files in; it is seen when it is whole."""

    def is_whole(self, *path: str) -> bool:
        """Whether a folder that was put in is there with all its files."""

    def fetch(self, *path: str) -> Path | None:
        """A local folder with the files of a folder, or None where it is not there, or not whole.

        Raises BundleError when a copy had to be made and its checksums do not hold.
        """


class Folder:
    """On a POSIX file system that all who use the registry share."""

    def __init__(self, root: Path) -> None:
        self.path, self.root = root, str(root)

    def names(self, *path: str) -> list[str]:
        folder = self.path.joinpath(*path)
        return sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []

    def read(self, *path: str) -> bytes | None:
        try:
            return self.path.joinpath(*path).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _cannot("read", self.path.joinpath(*path), error) from error

    def create(self, data: bytes, *path: str) -> bool:
        target = self.path.joinpath(*path)
        scratch = target.with_name(f".{target.name}.{uuid.uuid4().hex}")  # containers share process numbers
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(scratch, target)  # unlike a rename, it fails where there is one
            _sync(target.parent)
        except FileExistsError as error:
            return _is_ours(self.read(*path), data, _cannot("write", target, error))
        except OSError as error:
            raise _cannot("write", target, error) from error
        finally:
            scratch.unlink(missing_ok=True)
        return True

    def put(self, local: Path, *path: str) -> None:
        target = self.path.joinpath(*path)
        incoming = target.with_name(f"{HIDDEN}{target.name}-{uuid.uuid4().hex}")
        try:
            shutil.copytree(local, incoming)
            for file in incoming.iterdir():
                file.chmod(0o444)
                _sync(file)
            _sync(incoming)
            os.rename(incoming, target)
            _sync(target.parent)
        except OSError as error:
            if not target.is_dir():  # else another process was faster
                raise _cannot("write", target, error) from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    def is_whole(self, *path: str) -> bool:
        return self.path.joinpath(*path).is_dir()  # it came by a rename

    def fetch(self, *path: str) -> Path | None:
        folder = self.path.joinpath(*path)
        return folder if folder.is_dir() else None


class Url:
    """An object store. `create` has it refuse what is there (S3: If-None-Match); `fetch` keeps copies in `cache`."""

    def __init__(self, url: str, cache: Path) -> None:
        try:
            import fsspec  # noqa: PLC0415, an extra, and slow to import
        except ImportError as error:
            raise RegistryError(f"registry {url}: {error}: expected `pip install 'lepton[remote]'`") from error
        try:
            self.fs, self.base = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise RegistryError(f"registry {url}: {error}: expected the package of this kind of storage") from error
        except ValueError as error:
            raise RegistryError(f"registry {url}: {error}: expected a folder, or a URL that fsspec knows") from error
        self.root, self.cache = url, cache
        self._refuses = False

    def names(self, *path: str) -> list[str]:
        try:
            self.fs.invalidate_cache()
            found = self.fs.ls(self._at(path), detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._cannot("list", path, error) from error
        return sorted(name for name in (str(f).rstrip("/").rsplit("/", 1)[-1] for f in found) if name)

    def read(self, *path: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(self._at(path)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._cannot("read", path, error) from error

    def create(self, data: bytes, *path: str) -> bool:
        self._probe()
        return self._create(data, path)

    def _probe(self) -> None:
        """Some kinds of storage pass over `mode`: changes would replace each other and nobody would notice."""
        if not self._refuses:
            self._create(b"1", (PROBE,))
            if self._create(b"2", (PROBE,)):
                raise RegistryError(
                    f"registry {self.root}: it replaces files that are there: expected storage that can refuse to"
                )
            self._refuses = True

    def _create(self, data: bytes, path: tuple[str, ...]) -> bool:
        try:
            self.fs.makedirs(self._at(path[:-1]), exist_ok=True)
            self.fs.pipe_file(self._at(path), data, mode="create")
        except FileExistsError as error:
            return _is_ours(self.read(*path), data, self._cannot("write", path, error))
        except Exception as error:
            raise self._cannot("write", path, error) from error
        return True

    def put(self, local: Path, *path: str) -> None:
        files = sorted(local.iterdir(), key=lambda file: file.name == LAST)
        try:
            self.fs.makedirs(self._at(path), exist_ok=True)
            for file in files:
                self.fs.pipe_file(self._at((*path, file.name)), file.read_bytes())
        except Exception as error:
            raise self._cannot("write", path, error) from error

    def is_whole(self, *path: str) -> bool:
        return LAST in self.names(*path)

    def fetch(self, *path: str) -> Path | None:
        kept = self.cache.joinpath(uuid.uuid5(uuid.NAMESPACE_URL, self.root).hex, *path)
        if _is_whole(kept) and ((kept / SIGNATURE).exists() or SIGNATURE not in self.names(*path)):
            return kept
        names = self.names(*path)
        if LAST not in names:
            return None
        incoming, damaged = (kept.with_name(f"{HIDDEN}{kept.name}-{uuid.uuid4().hex}") for _ in range(2))
        try:
            incoming.mkdir(parents=True)
            for name in names:
                (incoming / name).write_bytes(self.read(*path, name) or b"")
            read_info(incoming)  # a download that broke off must not stay
            if kept.is_dir():
                os.rename(kept, damaged)
            os.rename(incoming, kept)
        except OSError as error:
            if not _is_whole(kept):  # else another process was faster
                raise _cannot("write", kept, error) from error
        finally:
            for folder in (incoming, damaged):
                shutil.rmtree(folder, ignore_errors=True)
        return kept

    def _at(self, path: tuple[str, ...]) -> str:
        return "/".join((self.base, *path))

    def _cannot(self, what: str, path: tuple[str, ...], error: Exception) -> RegistryError:
        return RegistryError(f"{'/'.join((self.root, *path))}: {error!r}: expected to be able to {what} it")


def storage_of(root: str | Path, cache: Path) -> Storage:
    """By whether it is a URL; a file's is a folder, which needs no copies. Raises RegistryError for an unknown kind."""
    text = str(root)
    for local in LOCAL:
        if text.startswith(local):
            return Folder(Path(text.removeprefix(local)))
    return Url(text, cache) if "://" in text else Folder(Path(root))


def _is_ours(found: bytes | None, data: bytes, error: RegistryError) -> bool:
    """Whether what is there, where something is said to be, is what we wrote. Raises the error where nothing is."""
    if found is None:
        raise error
    return found == data


def _is_whole(folder: Path) -> bool:
    try:
        read_info(folder)
    except BundleError:
        return False
    return True


def _cannot(what: str, path: Path, error: OSError) -> RegistryError:
    return RegistryError(f"{path}: {error.strerror or error}: expected to be able to {what} it")


def _sync(path: Path) -> None:
    """Make a file, or a folder's entries, survive a power cut."""
    descriptor: Any = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
