"""The documentation is true where a machine can tell: links, commands, keys and files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import msgspec
import pytest

import models.cli
import stream.cli
import training.cli
from models.pipeline.spec import Field, Pipeline, Profile, State

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
APPS: dict[str, cyclopts.App] = {"models": models.cli.app, "stream": stream.cli.app, "training": training.cli.app}
COMMAND = re.compile(r"python -m (models|stream|training)((?: [^\n`]*)?)")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def commands() -> Iterator[tuple[str, str, str]]:
    """(page, package, arguments) of every command in the documentation."""
    for page in PAGES:
        for package, arguments in COMMAND.findall(page.read_text(encoding="utf-8")):
            yield page.name, package, arguments.split("  #")[0].split("|")[0].strip()


def is_command(app: cyclopts.App, name: str) -> bool:
    try:
        app[name]
    except KeyError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_inside_the_project_lead_somewhere(page: Path) -> None:
    """A reader who follows a relative link finds a file."""
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_every_command_in_the_documentation_exists_with_its_options() -> None:
    """`python -m …` lines name real commands, and options those commands have."""
    wrong = []
    for page, package, arguments in commands():
        app, words = APPS[package], shlex.split(arguments.replace("…", "").replace("'", ""))
        while words and is_command(app, words[0]):
            app = app[words.pop(0)]
        if words and not words[0].startswith("-") and app is APPS[package]:
            wrong.append(f"{page}: no command in {package}: {arguments}")
            continue
        known = {name for argument in app.assemble_argument_collection() for name in argument.names} if words else set()
        options = {word.split("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word)}
        wrong += [f"{page}: {option} in: {arguments}" for option in sorted(options - known - {"--help"})]
    assert list(commands())
    assert wrong == []


def test_the_pipeline_page_explains_every_key() -> None:
    """A key that a pipeline file may have is in docs/pipeline.md."""
    page = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    structs = [*(f.type for f in msgspec.structs.fields(Pipeline) if f.name not in ("fields", "profiles")), Profile]
    structs += [*Field.__args__]
    assert State in structs
    keys = {field.name for struct in structs for field in msgspec.structs.fields(struct)}
    assert sorted(key for key in keys if f"`{key}`" not in page and f".{key}`" not in page) == []


def test_every_page_of_the_documentation_is_reachable_from_the_readme() -> None:
    """No page lies around unlinked."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in (ROOT / "docs").glob("*.md") if f"docs/{p.name}" not in readme] == []


def test_every_constraint_is_one_exact_version() -> None:
    """Two installations a month apart are the same."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not re.fullmatch(r"#.*|[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.!]*", line)] == []
