"""Where a registry's files are: what a folder and a URL promise, and which storage is refused."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models.errors import BundleError, RegistryError
from models.registry import Registry
from models.registry.storage import Folder, Storage, Url, storage_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["folder", "memory"])
def root(request, tmp_path: Path) -> str | Path:
    return tmp_path / "registry" if request.param == "folder" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def storage(root, tmp_path: Path) -> Storage:
    return storage_of(root, tmp_path / "cache")


class Careless(MemoryFileSystem):
    """Storage that passes over `mode`, as some kinds do."""

    protocol = "careless"

    def pipe_file(self, path, value, mode="overwrite", **options):
        super().pipe_file(path, value, mode="overwrite", **options)


def test_a_file_is_created_once(storage):
    """Another one under its name is refused; the same bytes again are the same file, whose answer was lost."""
    assert storage.create(b"1", "a", "b")
    assert storage.create(b"1", "a", "b")
    assert not storage.create(b"2", "a", "b")
    assert storage.read("a", "b") == b"1"
    assert storage.read("a", "c") is None
    assert storage.names("a") == ["b"]


def test_of_many_writers_one_wins(storage):
    """Threads that create one name at one moment: the file is the winner's, and nobody else thinks to have won."""
    won, start = [], threading.Barrier(8)

    def write(n: int) -> None:
        start.wait()
        if storage.create(str(n).encode() * 1000, "changes", "1"):
            won.append(n)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [storage.read("changes", "1")] == [str(n).encode() * 1000 for n in won]


def test_storage_that_replaces_what_is_there_is_refused_before_the_first_change(make_bundle, tmp_path):
    """On it one of two changes would be lost in silence."""
    fsspec.register_implementation("careless", Careless, clobber=True)
    registry = Registry(f"careless://{uuid.uuid4().hex}", cache=tmp_path)
    version = registry.publish(make_bundle().folder)
    with pytest.raises(RegistryError, match="expected storage that can refuse"):
        registry.promote("small", version, "")
    assert registry.history("small") == []


def test_a_file_where_a_folder_should_be_is_an_error_and_no_endless_wait(make_bundle, tmp_path):
    """What cannot be written is not taken for another writer's."""
    url = f"memory://{uuid.uuid4().hex}"
    registry = Registry(url, cache=tmp_path)
    version = registry.publish(make_bundle().folder)
    fsspec.filesystem("memory").pipe_file(f"{url}/small/changes", b"")
    with pytest.raises(RegistryError, match="changes"):
        registry.promote("small", version, "")


def test_a_copy_that_was_damaged_is_made_again(make_bundle, tmp_path):
    """The disk of a worker may fail; what is at the URL is whole."""
    registry = Registry(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    bundle = make_bundle()
    registry.publish(bundle.folder)
    weights = registry.path("small", bundle.version) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert registry.verify("small", bundle.version) == bundle.info
    assert [p.name for p in weights.parents[1].iterdir()] == [bundle.version]


def test_what_is_damaged_at_the_url_leaves_no_copy(make_bundle, tmp_path):
    """So it loads as soon as it is mended."""
    url, bundle = f"memory://{uuid.uuid4().hex}", make_bundle()
    Registry(url, cache=tmp_path / "first").publish(bundle.folder)
    registry, files = Registry(url, cache=tmp_path / "cache"), fsspec.filesystem("memory")
    weights = f"{url}/small/versions/{bundle.version}/weights.safetensors"
    files.pipe_file(weights, b"half")
    with pytest.raises(BundleError, match="checksum"):
        registry.path("small", bundle.version)
    files.pipe_file(weights, (bundle.folder / "weights.safetensors").read_bytes())
    assert registry.verify("small", bundle.version) == bundle.info


def _publish(root: Path, folder: Path, start: threading.Barrier) -> None:
    start.wait()
    Registry(root).publish(folder)


def test_the_same_bundle_published_by_several_at_once_is_there_once(make_bundle, tmp_path):
    """Nobody is told of an error, and nothing hidden stays."""
    bundle, context = make_bundle(), multiprocessing.get_context("fork")
    for turn in range(5):
        root, start = tmp_path / f"registry-{turn}", context.Barrier(4)
        writers = [context.Process(target=_publish, args=(root, bundle.folder, start)) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert [writer.exitcode for writer in writers] == [0] * 4
        assert [p.name for p in (root / "small" / "versions").iterdir()] == [bundle.version]


def test_what_a_killed_publisher_left_is_not_listed_and_hinders_nobody(make_bundle, tmp_path):
    """A folder on its way has a hidden name of its own."""
    registry, bundle = Registry(tmp_path / "registry"), make_bundle()
    left = tmp_path / "registry/small/versions" / f".incoming-{bundle.version}-7"
    left.mkdir(parents=True)
    (left / "MANIFEST.json").write_bytes(b"{")
    (tmp_path / "registry/small/changes").mkdir()
    (tmp_path / "registry/small/changes/.00000001.json.7").write_bytes(b'{"seq"')
    assert registry.versions("small") == []
    registry.publish(bundle.folder)
    registry.promote("small", bundle.version, "")
    assert registry.champion("small") == bundle.version


def test_figures_may_be_of_numpy_and_what_is_no_json_is_named(root, make_bundle, tmp_path):
    """They come from measuring."""
    registry = Registry(root, cache=tmp_path / "cache")
    version = registry.publish(make_bundle().folder)
    registry.promote("small", version, "", figures={"ap": np.float32(0.5), "events": np.int64(3)})
    assert registry.history("small")[0].figures == {"ap": 0.5, "events": 3}


def test_a_file_url_is_a_folder(tmp_path):
    """A plain file that fsspec creates can be seen half written."""
    found = storage_of(f"file://{tmp_path}/registry", tmp_path)
    assert isinstance(found, Folder)
    assert found.path == tmp_path / "registry"
    assert isinstance(storage_of("memory://x", tmp_path), Url)


@pytest.mark.parametrize(
    ("url", "outcome"),
    [("s3://bucket/x", "expected `pip install 'lepton[remote]'`"), ("artifacts/registry", "nothing raised")],
)
def test_fsspec_is_asked_for_by_a_url_only(url, outcome):
    """A folder needs no extra; a URL says which."""
    code = f"""
import sys
sys.modules["fsspec"] = None
from models.errors import RegistryError
from models.registry import Registry
try:
    Registry({url!r})
    print("nothing raised")
except RegistryError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert outcome in done.stdout
