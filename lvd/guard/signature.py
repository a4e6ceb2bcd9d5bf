"""Signatures of bundles: Ed25519 over the bytes of manifest.json, with keys in PEM files.

They are plain: `openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in manifest.json -sigfile
manifest.json.sig` says the same.
"""

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lvd.errors import LvdError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_PEM = "-----BEGIN "


def check_signature(manifest: bytes, signature: bytes, public_key: str | Path, bundle: str) -> None:
    """Refuse a manifest that the holder of the private key has not signed.

    public_key: a PEM file, or the PEM text itself.

    Raises:
        LvdError: the signature is of another key or other bytes, or the key cannot be read.
    """
    ed25519, serialization = _cryptography()
    from cryptography.exceptions import InvalidSignature

    text = isinstance(public_key, str) and public_key.lstrip().startswith(_PEM)
    name = "the public key" if text else str(public_key)
    try:
        key = serialization.load_pem_public_key(
            str(public_key).strip().encode() if text else _read(Path(public_key))
        )
    except ValueError:
        raise LvdError(f"{name} is no public key in PEM") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise LvdError(f"{name} is not of Ed25519")
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise LvdError(f"bundle {bundle} is not signed by {name}: its signature is of another key") from None


def private_key(path: Path, password: bytes | None = None) -> "Ed25519PrivateKey":
    """Read a private key.

    Raises:
        LvdError: it is none of Ed25519, or the password does not open it.
        TypeError: it needs a password, and there is none.
    """
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_private_key(_read(path), password)
    except ValueError:
        raise LvdError(f"{path} is no private key in PEM, or the password is wrong") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise LvdError(f"{path} is not of Ed25519")
    found: Ed25519PrivateKey = key
    return found


def new_key() -> tuple[bytes, bytes]:
    """A new private key and its public key, in PEM."""
    ed25519, serialization = _cryptography()
    key = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LvdError(f"the key {path} is not readable: {error.strerror}") from None


def _cryptography() -> tuple[ModuleType, ModuleType]:
    """The modules ed25519 and serialization of a package that only signatures need."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise LvdError(
            "signatures need the package cryptography, which is not installed: pip install 'lvd[sign]'"
        ) from None
    return ed25519, serialization
