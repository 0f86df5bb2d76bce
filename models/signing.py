"""Who made a bundle: an Ed25519 signature over its manifest (RFC 8032).

Checksums show damage: whoever can write the folder can write the manifest, too. A signature shows forgery: only the
holder of the private key can make one. It lies beside the manifest as SIGNATURE.json and covers, through the manifest's
checksums, every file that is read. Whether bundles must be signed, and by whom, is for the reader to say.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from models.errors import BundleError, SettingsError

# cryptography is imported where it is used: a worker without a policy does not pay for it
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = ["SIGNATURE", "Keys", "check_signature", "keygen", "load_keys", "sign"]

SIGNATURE = "SIGNATURE.json"
DOMAIN = b"lepton bundle manifest v1\0"  # else a signature of the same bytes for another purpose would do
Keys = Sequence["Ed25519PublicKey"]


class _Signature(msgspec.Struct):
    key: str  # fingerprint: which of the trusted keys to try
    signature: str  # base64


def keygen(path: Path) -> str:
    """Write a new private key to `path`, for its owner's eyes only, and its public key beside it as `<path>.pub`.

    Returns the fingerprint. Raises FileExistsError.
    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    key = Ed25519PrivateKey.generate()
    raw = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(serialization.Encoding.PEM, *raw))
    public = key.public_key()
    path.with_name(path.name + ".pub").write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return _fingerprint(public)


def sign(folder: Path, private: Path) -> None:
    """Sign a bundle's manifest as it is. Raises SettingsError for a key that cannot be used."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(private.read_bytes(), password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SettingsError(f"signing key {private}: {error}: expected an Ed25519 key as `keygen` makes it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"signing key {private} is of another kind: expected Ed25519")
    made = base64.b64encode(key.sign(DOMAIN + (folder / "MANIFEST.json").read_bytes())).decode()
    scratch = folder / f".{SIGNATURE}.{os.getpid()}"
    scratch.write_bytes(msgspec.json.encode(_Signature(_fingerprint(key.public_key()), made)))
    scratch.replace(folder / SIGNATURE)


def load_keys(folder: Path | None) -> Keys:
    """The public keys in a folder, files ending in `.pub`; none without a folder. Raises SettingsError: a policy that
    trusts nobody because of a slip would refuse all, one that trusts all would be none."""
    if folder is None:
        return ()
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    files = sorted(folder.glob("*.pub"))
    if not files:
        raise SettingsError(f"trusted keys {folder}: no file ends in .pub: expected at least one public key")
    keys = []
    for file in files:
        try:
            key = serialization.load_pem_public_key(file.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise SettingsError(f"trusted key {file}: {error}: expected a public Ed25519 key") from error
        if not isinstance(key, Ed25519PublicKey):
            raise SettingsError(f"trusted key {file} is of another kind: expected Ed25519")
        keys.append(key)
    return tuple(keys)


def check_signature(folder: Path, manifest: bytes, trusted: Keys) -> None:
    """That one of these keys has signed this manifest; nothing to ask where there are none.

    Raises BundleError with reason `unsigned` (no signature), or `signature` (forged, or of a key that is not trusted).
    """
    if not trusted:
        return
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415

    try:
        found = msgspec.json.decode((folder / SIGNATURE).read_bytes(), type=_Signature)
        made = base64.b64decode(found.signature, validate=True)
    except FileNotFoundError as error:
        raise BundleError("unsigned", f"{folder}: no {SIGNATURE}: expected one by a trusted key") from error
    except (OSError, msgspec.MsgspecError, ValueError) as error:  # whatever is in it, it must not stop a worker
        raise BundleError("signature", f"{folder / SIGNATURE}: {error}: expected a signature") from error
    for key in trusted:
        if _fingerprint(key) != found.key:
            continue
        try:
            key.verify(made, DOMAIN + manifest)
        except InvalidSignature as error:
            raise BundleError("signature", f"{folder}: not what key {found.key} has signed: expected that") from error
        return
    known = ", ".join(_fingerprint(key) for key in trusted)
    raise BundleError("signature", f"{folder} is signed with key {found.key}: expected one of: {known}")


def _fingerprint(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]
