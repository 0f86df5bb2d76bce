"""The registry: immutable versions, one champion that is never half written, and its commands."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import random
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from models.bundle import load_bundle
from models.errors import BundleError, RegistryError
from models.registry import Registry


@pytest.fixture(params=["folder", "memory"])
def any_registry(request, tmp_path: Path) -> Registry:
    """In a folder, and at a URL."""
    root = tmp_path / "registry" if request.param == "folder" else f"memory://{uuid.uuid4().hex}"
    return Registry(root, cache=tmp_path / "cache")


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


def test_a_registry_is_the_same_in_a_folder_and_at_a_url(any_registry, make_bundle, pipeline):
    """Publish, promote, challenge, roll back; what is handed out loads."""
    versions = [any_registry.publish(make_bundle(f"b{n}", created_ms=n * 1000).folder) for n in (1, 2)]
    assert any_registry.publish(make_bundle("again", created_ms=1000).folder) == versions[0]
    assert any_registry.versions("small") == versions
    assert any_registry.pipelines() == ["small"]
    any_registry.promote("small", versions[0], "first")
    any_registry.challenge("small", versions[1], "canary", "perhaps", share=0.2)
    any_registry.promote("small", versions[1], "better")
    assert load_bundle(any_registry.path("small", versions[1]), pipeline).version == versions[1]
    assert any_registry.rollback("small", "worse") == versions[0]
    assert [change.action for change in any_registry.history("small")] == [
        "promote",
        "challenge",
        "promote",
        "rollback",
    ]
    with pytest.raises(RegistryError, match="no version"):
        any_registry.path("small", "20260101T000000-abcdef")


def test_a_bundle_that_was_half_uploaded_to_a_url_is_not_there(make_bundle, tmp_path):
    """Its manifest comes last; publishing again completes it."""
    url = f"memory://{uuid.uuid4().hex}"
    registry, bundle = Registry(url, cache=tmp_path / "cache"), make_bundle()
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{url}/small/versions/{bundle.version}/bundle.json", b"{}")
    assert registry.versions("small") == []
    with pytest.raises(RegistryError, match="no version"):
        registry.path("small", bundle.version)
    assert registry.publish(bundle.folder) == bundle.version
    assert registry.verify("small", bundle.version) == bundle.info


def test_a_url_of_no_known_kind_is_refused_by_name():
    """With what was expected."""
    with pytest.raises(RegistryError, match="nothing://x"):
        Registry("nothing://x")


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
    now = registry.pointers("small")
    assert (now.champion, now.since, now.why) == (a, registry.history("small")[-1].at, "drifted")


def test_of_two_writers_at_one_moment_none_is_lost(registry, publish):
    """Eight processes promote at once: every change has a number of its own and follows the one before."""
    versions = [publish(n) for n in range(1, 4)]
    registry.promote("small", versions[0], "start")
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_promote_some, args=(registry.root, versions, seed)) for seed in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    history = registry.history("small")
    assert [change.seq for change in history] == list(range(1, len(history) + 1))
    assert sum(change.why.startswith("mine") for change in history) == len(history) - 1
    for before, after in itertools.pairwise(history):
        assert after.from_ == before.champion


def _promote_some(root: Path, versions: list[str], seed: int) -> None:
    registry, rng = Registry(root), random.Random(seed)
    for n in range(10):
        registry.promote("small", rng.choice(versions), f"mine {seed} {n}")


def test_a_challenger_is_named_beside_the_champion_until_it_is_promoted_or_withdrawn(registry, publish):
    """Shadow, then canary, then champion; another one is withdrawn, a third by rolling back."""
    a, b, c = publish(1), publish(2), publish(3)
    registry.promote("small", a, "first")
    registry.challenge("small", b, "shadow", "looks better", by="loop", figures={"ap": 0.5})
    shadow = registry.pointers("small").challenger
    assert (shadow.version, shadow.stage, shadow.share) == (b, "shadow", 0.0)
    assert registry.champion("small") == a
    registry.challenge("small", b, "canary", "no worse", share=0.1)
    assert registry.pointers("small").challenger.share == 0.1
    registry.promote("small", b, "better")
    assert registry.pointers("small").challenger is None
    registry.challenge("small", c, "shadow", "next")
    assert registry.withdraw("small", "too many alerts") == c
    assert registry.withdraw("small", "again") is None
    registry.challenge("small", c, "shadow", "once more")
    assert registry.rollback("small", "both are bad") == a
    assert registry.pointers("small").challenger is None
    told = [(x.action, x.from_, x.to) for x in registry.history("small")]
    assert told == [
        ("promote", None, a), ("challenge", a, b), ("challenge", a, b), ("promote", a, b), ("challenge", b, c),
        ("withdraw", c, b), ("challenge", b, c), ("rollback", b, a),
    ]  # fmt: skip
    assert registry.history("small")[1].figures == {"ap": 0.5}
    assert registry.history("small")[1].by == "loop"


@pytest.mark.parametrize(("stage", "share"), [("shadow", 0.1), ("canary", 0.0), ("canary", 1.0)])
def test_a_share_that_makes_no_sense_is_refused(registry, publish, stage, share):
    """A shadow decides nothing; a canary for some entities, neither for none nor for all."""
    a, b = publish(1), publish(2)
    registry.promote("small", a, "")
    with pytest.raises(RegistryError, match=f"{stage} with share"):
        registry.challenge("small", b, stage, "", share=share)
    with pytest.raises(RegistryError, match="another version"):
        registry.challenge("small", a, "shadow", "")


def test_a_registry_of_an_earlier_release_is_read_on(registry, publish):
    """Its champion is where the first change starts from."""
    a, b = publish(1), publish(2)
    told = {"version": a, "since": "2026-01-01T00:00:00.000Z", "why": "before"}
    (Path(registry.root) / "small" / "champion.json").write_text(json.dumps(told))
    assert registry.champion("small") == a
    registry.promote("small", b, "now")
    assert registry.history("small")[0].from_ == a
    assert registry.champion("small") == b
    assert registry.rollback("small", "back") == a


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
        (lambda r: r.rollback("nobody", ""), "nobody has no champion in"),
        (lambda r: r.rollback("small", ""), "small has no champion"),
    ],
)
def test_what_is_not_there_is_refused_by_name(registry, publish, call, message):
    """Unknown pipelines and versions, and names that would leave the folder."""
    publish(1)
    with pytest.raises(RegistryError, match=message):
        call(registry)


def test_an_unreadable_change_is_an_error_not_a_guess(registry, publish):
    """A change that somebody mangled by hand stops with the file's name."""
    registry.promote("small", publish(1), "")
    for text in (b"{}", b"", b'{"seq": "\xff"}'):
        (registry.root / "small" / "changes" / "00000001.json").write_bytes(text)
        with pytest.raises(RegistryError, match=r"00000001\.json"):
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
