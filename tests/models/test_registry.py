"""The registry: immutable versions, one champion that is never half written, and its commands."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from models.bundle import load_bundle
from models.errors import BundleError, RegistryError
from models.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def publish(registry, make_bundle) -> Callable[[int], str]:
    """publish(n): a bundle made at second n, published; returns its version."""

    def add(n: int) -> str:
        return registry.publish(make_bundle(f"bundle-{n}", created_ms=n * 1000).folder)

    return add


def test_a_published_bundle_loads_from_the_registry(registry, make_bundle, pipeline):
    """What arrives is the whole bundle, under its own version, and it can no longer be written."""
    bundle = make_bundle()
    version = registry.publish(bundle.folder)
    stored = registry.path("small", version)
    assert load_bundle(stored, pipeline).info == bundle.info
    assert registry.versions("small") == [version]
    assert registry.pipelines() == ["small"]
    assert all(file.stat().st_mode & 0o222 == 0 for file in stored.iterdir())


def test_publishing_again_changes_nothing(registry, make_bundle):
    """A repeat is harmless; another bundle that claims the version is refused."""
    folder = make_bundle().folder
    version = registry.publish(folder)
    assert registry.publish(folder) == version
    impostor = make_bundle("other", created_ms=5).folder
    stored = registry.path("small", version)
    for file in stored.iterdir():
        file.chmod(0o644)
        file.write_bytes((impostor / file.name).read_bytes())
    with pytest.raises(RegistryError, match="another bundle"):
        registry.publish(folder)


def test_a_damaged_bundle_is_not_published(registry, make_bundle):
    """Nothing appears under versions, not even for a moment under a name that lists."""
    folder = make_bundle().folder
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="checksum"):
        registry.publish(folder)
    assert registry.versions("small") == []


def test_promote_and_roll_back_step_by_step(registry, publish):
    """Rollback points back at what the champion replaced, again and again, down to the first."""
    a, b, c = publish(1), publish(2), publish(3)
    assert registry.champion("small") is None
    for version in (a, b, c):
        registry.promote("small", version, f"try {version}")
        assert registry.champion("small") == version
    assert registry.rollback("small", "worse") == b
    assert registry.rollback("small", "worse, too") == a
    assert registry.champion("small") == a
    with pytest.raises(RegistryError, match="replaced no other version"):
        registry.rollback("small", "further")
    assert registry.champion("small") == a


def test_a_roll_back_after_a_new_promotion_skips_what_was_rolled_back(registry, publish):
    """After a, b, back to a, then c: rolling back gives a, not b."""
    a, b, c = publish(1), publish(2), publish(3)
    for version in (a, b):
        registry.promote("small", version, "")
    registry.rollback("small", "")
    registry.promote("small", c, "")
    assert registry.rollback("small", "") == a


def test_history_tells_everything(registry, publish):
    """Each change with when, from, to and why; promoting the champion again is none."""
    a, b = publish(1), publish(2)
    registry.promote("small", a, "first")
    registry.promote("small", a, "again")
    registry.promote("small", b, "better")
    registry.rollback("small", "drifted")
    told = [(c.action, c.from_, c.to, c.why) for c in registry.history("small")]
    assert told == [("promote", None, a, "first"), ("promote", a, b, "better"), ("rollback", b, a, "drifted")]
    pointer = registry.pointer("small")
    assert (pointer.version, pointer.since, pointer.why) == (a, registry.history("small")[-1].at, "drifted")


def test_a_history_line_cut_short_spoils_no_other(registry, publish):
    """A crash in the middle of an append loses that line only, before and after the next change."""
    a, b, c = publish(1), publish(2), publish(3)
    registry.promote("small", a, "")
    registry.promote("small", b, "")
    file = registry.root / "small" / "history.jsonl"
    file.write_bytes(file.read_bytes() + b'{"at":"2026-01-01T00:0')
    assert [x.to for x in registry.history("small")] == [a, b]
    registry.promote("small", c, "")
    assert [x.to for x in registry.history("small")] == [a, b, c]
    assert registry.rollback("small", "") == b


def test_a_promotion_that_died_before_the_pointer_moved_does_not_mislead_rollback(registry, publish):
    """History says c, the pointer says b: b is the champion, and rollback goes to a."""
    a, b, c = publish(1), publish(2), publish(3)
    registry.promote("small", a, "")
    registry.promote("small", b, "")
    pointer = (registry.root / "small" / "champion.json").read_bytes()
    registry.promote("small", c, "")
    (registry.root / "small" / "champion.json").write_bytes(pointer)
    assert registry.champion("small") == b
    assert registry.rollback("small", "") == a


def _promote_for_ever(root: Path, versions: list[str]) -> None:
    registry = Registry(root)
    while True:
        for version in versions:
            registry.promote("small", version, "x" * random.randrange(3000))


def test_killed_writers_leave_a_whole_champion(registry, publish):
    """SIGKILL at any moment of a promotion: the champion is readable, published, and can be replaced."""
    versions = [publish(1), publish(2)]
    registry.promote("small", versions[0], "start")
    for _ in range(15):
        writer = multiprocessing.get_context("fork").Process(target=_promote_for_ever, args=(registry.root, versions))
        writer.start()
        time.sleep(random.uniform(0.02, 0.08))
        assert writer.is_alive()
        writer.kill()
        writer.join()
        champion = registry.champion("small")
        assert champion in versions
        registry.promote("small", versions[1 - versions.index(champion)], "after the kill")
    assert len(registry.history("small")) > 15


def test_a_bundle_damaged_in_the_registry_is_not_promoted(registry, publish):
    """The champion stays what it was."""
    a, b = publish(1), publish(2)
    registry.promote("small", a, "")
    weights = registry.path("small", b) / "weights.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match="checksum"):
        registry.promote("small", b, "")
    assert registry.champion("small") == a


def test_a_bundle_in_the_wrong_place_is_found(registry, publish):
    """A version's folder that holds another version does not verify."""
    a, b = publish(1), publish(2)
    registry.path("small", b).rename(registry.root / "aside")
    registry.path("small", a).rename(registry.root / "small" / "versions" / b)
    with pytest.raises(RegistryError, match=f"holds small {a}: expected small {b}"):
        registry.verify("small", b)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.path("small", "20260101T000000-abcdef"), "no version 20260101T000000-abcdef .*expected one of"),
        (lambda r: r.promote("small", "../../etc", ""), "version = '../../etc': expected the form"),
        (lambda r: r.versions("../small"), "pipeline = '../small': expected lower-case"),
        (lambda r: r.promote("nobody", "20260101T000000-abcdef", ""), "nobody has no version"),
        (lambda r: r.rollback("nobody", ""), "nobody is not in"),
        (lambda r: r.rollback("small", ""), "small has no champion"),
    ],
)
def test_what_is_not_there_is_refused_by_name(registry, publish, call, message):
    """Unknown pipelines and versions, and names that would leave the folder."""
    publish(1)
    with pytest.raises(RegistryError, match=message):
        call(registry)


def test_an_unreadable_champion_is_an_error_not_a_guess(registry, publish):
    """A pointer that somebody mangled by hand stops with the file's name."""
    registry.promote("small", publish(1), "")
    for text in (b"{}", b"", b'{"version": "\xff", "since": "", "why": ""}'):
        (registry.root / "small" / "champion.json").write_bytes(text)
        with pytest.raises(RegistryError, match=r"champion\.json"):
            registry.champion("small")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "models", "registry", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, cwd=root)


def test_the_commands_do_what_the_registry_does(registry, publish):
    """promote, rollback, list and show by command line; a refusal is one line on stderr and exit code 1."""
    a, b = publish(1), publish(2)
    root = ("--registry", str(registry.root))
    assert command("promote", "small", a, *root).stdout == f"{a}\n"
    assert command("promote", "small", b, "--why", "newer labels", *root).returncode == 0
    assert registry.champion("small") == b
    rows = json.loads(command("list", "--json", *root).stdout)
    assert [(r["version"], r["champion"], r["damage"]) for r in rows] == [(a, False, None), (b, True, None)]
    told = command("show", "small", *root).stdout
    assert "newer labels" in told
    assert command("rollback", "small", *root).stdout == f"{a}\n"
    refused = command("rollback", "small", *root)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: small {a} replaced no other version")
    assert refused.stderr.count("\n") == 1


def test_verify_loads_as_a_worker_would(registry, publish, tmp_path):
    """With the pipeline's file, a version made for another pipeline file fails."""
    publish(1)
    text = Path(__file__).with_name("conftest.py").read_text().split('SMALL = """')[1].split('"""')[0]
    file = tmp_path / "small.toml"
    file.write_text(text)
    root = ("--registry", str(registry.root))
    assert command("verify", str(file), *root).stdout.endswith(" ok\n")
    file.write_text(text.replace("length = 20", "length = 21"))
    refused = command("verify", str(file), *root)
    assert (refused.returncode, refused.stderr[:13]) == (1, "error: digest")


def test_engines_shows_a_row_for_every_engine(registry, publish, tmp_path):
    """A user sees what this machine gains from which engine, before setting one."""
    registry.promote("small", publish(1), "test")
    text = Path(__file__).with_name("conftest.py").read_text().split('SMALL = """')[1].split('"""')[0]
    (tmp_path / "small.toml").write_text(text)
    shown = command("engines", str(tmp_path / "small.toml"), "--registry", str(registry.root))
    assert shown.returncode == 0, shown.stderr
    for name in ("native", "native-int16", "onnxruntime", "openvino", "openvino-bf16", "torch"):
        row = next(line for line in shown.stdout.splitlines() if line.split()[1:2] == [name])
        assert re.search(r"\d\.\d .*\de[-+]\d\d|installed|No module", row), row
