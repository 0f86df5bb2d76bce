"""Who has made a bundle: what is not signed, forged, or signed by a stranger is refused where keys are trusted."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path

import pytest

from models.bundle import load_bundle, read_info
from models.errors import BundleError, SettingsError
from models.registry import Registry
from models.signing import keygen, load_keys, sign


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with the key pairs `ours` and, apart from the trusted ones, `theirs`."""
    for name in ("trusted/ours", "theirs"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        keygen(path)
    return tmp_path


def test_what_a_trusted_key_has_signed_is_loaded_published_and_promoted(keys, make_bundle, pipeline, tmp_path):
    """The signature travels with the bundle."""
    bundle, trusted = make_bundle(), load_keys(keys / "trusted")
    registry = Registry(tmp_path / "registry", trusted=trusted)
    version = registry.publish(bundle.folder, key=keys / "trusted/ours")
    registry.promote("small", version, "signed")
    assert registry.signed("small", version)
    assert load_bundle(registry.path("small", version), pipeline, trusted).info == bundle.info


def test_what_is_not_signed_or_by_a_stranger_is_refused_where_keys_are_trusted(keys, make_bundle, tmp_path):
    """By its own reason each; nothing is published. Without a policy both are taken."""
    folder, trusted = make_bundle().folder, load_keys(keys / "trusted")
    registry = Registry(tmp_path / "registry", trusted=trusted)
    with pytest.raises(BundleError, match="unsigned"):
        registry.publish(folder)
    with pytest.raises(BundleError, match="expected one of"):
        registry.publish(folder, key=keys / "theirs")
    assert registry.versions("small") == []
    assert Registry(tmp_path / "registry").publish(folder)


def test_a_manifest_made_anew_is_forged_however_right_its_checksums_are(keys, make_bundle, pipeline):
    """That is what a checksum cannot tell."""
    folder, trusted = make_bundle().folder, load_keys(keys / "trusted")
    sign(folder, keys / "trusted/ours")
    card = (folder / "card.md").read_bytes() + b"approved by everybody"
    (folder / "card.md").write_bytes(card)
    manifest = json.loads((folder / "MANIFEST.json").read_bytes())
    manifest["sha256"]["card.md"] = hashlib.sha256(card).hexdigest()
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    load_bundle(folder, pipeline)
    with pytest.raises(BundleError, match="signature"):
        load_bundle(folder, pipeline, trusted)


@pytest.mark.parametrize("text", ["", "{}", '{"key": "x", "signature": "é"}', '{"key": "x", "signature": "AA"}'])
def test_nonsense_for_a_signature_is_refused_as_any_other(keys, make_bundle, text):
    """Whoever can write the folder must not be able to stop a worker with it."""
    folder = make_bundle().folder
    (folder / "SIGNATURE.json").write_text(text)
    with pytest.raises(BundleError, match="signature"):
        read_info(folder, load_keys(keys / "trusted"))


def test_what_is_damaged_is_not_signed(keys, make_bundle, tmp_path):
    """Who signs vouches for what is in it."""
    folder = make_bundle().folder
    (folder / "card.md").write_bytes(b"")
    with pytest.raises(BundleError, match="checksum"):
        Registry(tmp_path / "registry").publish(folder, key=keys / "trusted/ours")
    assert not (folder / "SIGNATURE.json").exists()


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_version_that_is_there_unsigned_may_be_signed_later(keys, make_bundle, tmp_path, kind):
    """By publishing it again; copies that were made before learn of it. What is there stays, a signature too."""
    root = tmp_path / "registry" if kind == "folder" else f"memory://{uuid.uuid4().hex}"
    folder, cache = make_bundle().folder, tmp_path / "cache"
    version = Registry(root, cache=cache).publish(folder)
    registry = Registry(root, cache=cache, trusted=load_keys(keys / "trusted"))
    for call in (registry.verify, registry.path, lambda *at: registry.promote(*at, "")):
        with pytest.raises(BundleError, match="unsigned"):
            call("small", version)
    registry.publish(folder, key=keys / "trusted/ours")
    registry.promote("small", version, "signed")
    keygen(keys / "trusted/new")
    Registry(root, cache=cache).publish(folder, key=keys / "trusted/new")
    (keys / "trusted/ours.pub").unlink()
    with pytest.raises(BundleError, match="expected one of"):
        Registry(root, cache=cache, trusted=load_keys(keys / "trusted")).publish(folder)


def test_a_private_key_is_for_its_owner_and_never_overwritten(keys):
    """Mode 600; a second keygen to the same place is an error."""
    assert (keys / "theirs").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        keygen(keys / "theirs")


def test_keys_that_cannot_be_used_are_refused_by_name(keys, make_bundle, tmp_path):
    """An empty folder of keys is a slip, not a policy."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SettingsError, match="at least one public key"):
        load_keys(empty)
    (empty / "x.pub").write_text("nonsense")
    with pytest.raises(SettingsError, match=r"x\.pub"):
        load_keys(empty)
    with pytest.raises(SettingsError, match="signing key"):
        sign(make_bundle().folder, keys / "trusted/ours.pub")
    assert load_keys(None) == ()
