"""`python -m models registry …`: look at bundles and move the champion. It parses, calls `Registry`, prints.

Promoting here moves the pointer only; workers that are running learn of it through `python -m training
promote`, or when they start.
"""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from models.bundle import load_bundle
from models.bundle_diff import diff as bundle_diff
from models.engines import LARGE, SMALL, measure
from models.errors import LeptonError
from models.pipeline.load import load_pipeline
from models.registry import Registry
from models.scorer import load_scorer
from models.signing import keygen as make_keys
from models.signing import load_keys
from models.signing import sign as sign_bundle

__all__ = ["app"]

app = App(name="registry", help="Model bundles: list, show, compare, promote, roll back, sign, verify.")

Root = Annotated[str, Parameter(name="--registry", help="The registry's folder or URL.")]
Trusted = Annotated[
    Path | None, Parameter(name="--trusted-keys", help="Folder of public keys: refuse what none of them has signed.")
]
By = Annotated[str | None, Parameter(help="Who; else the system's user.")]
Why = Annotated[str, Parameter(help="The reason, for the history.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON instead of a table.")]
DEFAULT_ROOT = "artifacts/registry"
LONGEST = 60  # of a fact in a table


@app.command(name="list")
def list_versions(pipeline: str | None = None, *, registry: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """List the versions of a pipeline, or of all, oldest first.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file; all pipelines when left out.
    """
    store = Registry(registry)
    names = store.pipelines() if pipeline is None else [_name(pipeline)]
    rows = [_row(store, name, version) for name in names for version in store.versions(name)]
    if as_json:
        return _print_json(rows)
    table = Table("pipeline", "version", "in use", "signed", "architecture", "digest", "metrics or damage")
    for row in rows:
        numbers = [f"{k} {v:.4g}" for k, v in row["metrics"].items() if isinstance(v, int | float)]
        note = row["damage"] or ", ".join(numbers[:4])
        facts = (row["in_use"], "yes" if row["signed"] else "", row["architecture"], row["digest"], note)
        table.add_row(row["pipeline"], row["version"], *facts)
    return Console().print(table)


@app.command
def show(pipeline: str, version: str | None = None, *, registry: Root = DEFAULT_ROOT, as_json: AsJson = False) -> None:
    """Show a version's model card and the pipeline's history.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    version
        The champion when left out.
    """
    store, name = Registry(registry), _name(pipeline)
    chosen = version or store.champion(name)
    if chosen is None:
        raise SystemExit(f"{name} has no champion in {registry}; name a version, or promote one")
    info, history = store.verify(name, chosen), store.history(name)
    if as_json:
        return _print_json({"pointers": store.pointers(name), "bundle": info, "history": history})
    console = Console()
    console.print(Markdown((store.path(name, chosen) / "card.md").read_text(encoding="utf-8")))
    table = Table("at", "by", "action", "from", "to", "why", title="history")
    for change in history:
        table.add_row(change.at, change.by, change.action, change.from_ or "", change.to or "", change.why)
    return console.print(table)


@app.command
def promote(
    pipeline: str, version: str, *, why: Why = "by hand", by: By = None, registry: Root = DEFAULT_ROOT,
    trusted: Trusted = None,
) -> None:  # fmt: skip
    """Make a version the champion.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    version
        A published version.
    """
    Registry(registry, trusted=load_keys(trusted)).promote(_name(pipeline), version, why, by=by or getpass.getuser())
    print(version)


@app.command
def rollback(
    pipeline: str, *, why: Why = "by hand", by: By = None, registry: Root = DEFAULT_ROOT, trusted: Trusted = None
) -> None:
    """Make the version that the champion replaced the champion again.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    """
    store = Registry(registry, trusted=load_keys(trusted))
    print(store.rollback(_name(pipeline), why, by=by or getpass.getuser()))


@app.command
def verify(
    pipeline: str, version: str | None = None, *, registry: Root = DEFAULT_ROOT, trusted: Trusted = None
) -> None:
    """Load a version as a worker would: signature, checksums, digest, weights, golden case. All when left out.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    version
        A published version.
    """
    spec, keys = load_pipeline(pipeline), load_keys(trusted)
    store = Registry(registry, trusted=keys)
    versions = [version] if version else store.versions(spec.name)
    for each in versions:
        load_scorer(store.path(spec.name, each), spec, trusted=keys)
        print(f"{each} ok")
    if not versions:
        raise SystemExit(f"{spec.name} has no versions in {registry}")


@app.command
def diff(
    pipeline: str, version: str, other: str | None = None, *, registry: Root = DEFAULT_ROOT, as_json: AsJson = False
) -> None:
    """Compare two versions: facts, metrics, calibration, and how far each weight has moved.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    version
        A published version.
    other
        The one it is compared with; the champion when left out.
    """
    store, name = Registry(registry), _name(pipeline)
    second = other or store.champion(name)
    if second is None:
        raise SystemExit(f"{name} has no champion in {registry}; name another version")
    found = bundle_diff(store.path(name, version), store.path(name, second))
    if as_json:
        return _print_json(found)
    console = Console()
    table = Table("", version, second, title="facts")
    for fact, sides in found["facts"].items():
        table.add_row(fact, *(_shown(side) for side in sides))
    console.print(table)
    table = Table("tensor", "largest change", "mean change", "cosine", title="weights")
    for tensor, moved in found["weights"].items():
        table.add_row(tensor, *(f"{v:.4g}" for v in moved.values()) if moved else ("another shape", "", ""))
    return console.print(table)


@app.command
def keygen(out: Path) -> None:
    """Make a key pair to sign bundles with; prints its fingerprint. The public key is beside it, as OUT.pub.

    Parameters
    ----------
    out
        A new file for the private key.
    """
    print(make_keys(out))


@app.command
def sign(bundle: Path, *, key: Annotated[Path, Parameter(help="The private key.")]) -> None:
    """Sign the bundle in a folder, before it is published.

    Parameters
    ----------
    bundle
        Its folder.
    """
    sign_bundle(bundle, key)


@app.command
def engines(pipeline: str, version: str | None = None, *, registry: Root = DEFAULT_ROOT, threads: int = 1) -> None:
    """Run a version on every engine there is, and show times and golden differences.

    Parameters
    ----------
    pipeline
        A shipped name or a TOML file.
    version
        The champion when left out.
    threads
        Of the engine.
    """
    spec, store = load_pipeline(pipeline), Registry(registry)
    chosen = version or store.champion(spec.name)
    if chosen is None:
        raise SystemExit(f"{spec.name} has no champion in {registry}; name a version, or promote one")
    table = Table("engine", f"µs an event in {SMALL}", f"in {LARGE}", "golden difference", "left out")
    for row in measure(load_bundle(store.path(spec.name, chosen), spec), threads):
        small, large = ("" if s is None else f"{s * 1e6:.1f}" for s in (row.small_s, row.large_s))
        table.add_row(row.engine, small, large, "" if row.golden is None else f"{row.golden:.1e}", row.left_out or "")
    Console().print(table)


def _row(store: Registry, pipeline: str, version: str) -> dict[str, Any]:
    """What `list` tells of a version; a damaged one is told of, too."""
    now = store.pointers(pipeline)
    in_use = "champion" if version == now.champion else ""
    if now.challenger is not None and version == now.challenger.version:
        in_use = now.challenger.stage
    row = {"pipeline": pipeline, "version": version, "in_use": in_use, "champion": version == now.champion,
           "signed": False}  # fmt: skip
    try:
        info = store.verify(pipeline, version)
        row["signed"] = store.signed(pipeline, version)
    except LeptonError as error:
        return row | {"architecture": "", "digest": "", "metrics": {}, "damage": str(error)}
    return row | {
        "architecture": info.architecture, "digest": info.digest, "metrics": info.metrics, "damage": None,
    }  # fmt: skip


def _shown(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _name(name_or_path: str) -> str:
    """A pipeline's name: from its file where one is given, so that a file's location is as good as its name."""
    return load_pipeline(name_or_path).name if Path(name_or_path).suffix == ".toml" else name_or_path


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
