"""Is a bundle what was exported, byte by byte, and signed by whom one trusts?

manifest.json has the SHA-256 of every other file, and its own SHA-256 is the bundle's digest. So a digest, or
a signature of manifest.json, stands for every byte. The signature alone is no part of what it signs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvd.errors import LvdError
from lvd.files import sha256
from lvd.guard.pointer import MANIFEST
from lvd.guard.signature import check_signature
from lvd.guard.source import Place, find_directory

BUNDLE_VERSION = 2
VOTES_VERSION = 1  # eta, lam and threshold stood where the rule stands now
SIGNATURE = f"{MANIFEST}.sig"


@dataclass(frozen=True)
class Verified:
    """The contents of a bundle's files, each read once."""

    digest: str
    files: dict[str, bytes]  # without the two below
    manifest: bytes
    signature: bytes | None  # checked where a public key was given


def verify_bundle(directory: Path, digest: str | None = None) -> str:
    """The digest of a bundle whose every byte is as it was exported.

    Raises:
        LvdError: as `verified_files` does.
    """
    return verified_files(find_directory(directory), digest).digest


def verified_files(place: Place, digest: str | None = None, public_key: str | Path | None = None) -> Verified:
    """Read and check every file of a bundle.

    Raises:
        LvdError: a file was changed, added, removed or renamed, the bundle's digest is not `digest`, or it is
            not signed by `public_key`.
    """
    directory, paths = place.directory, dict(place.paths)

    def read(name: str) -> bytes:
        try:
            return paths.pop(name).read_bytes()
        except KeyError:
            raise LvdError(f"no bundle at {directory}: {name} is missing") from None
        except OSError as error:
            raise LvdError(f"bundle {directory}: {name} is not readable: {error.strerror}") from None

    manifest = read(MANIFEST)
    found = sha256(manifest)
    if digest is not None and digest != found:
        raise LvdError(f"bundle {directory} has the digest {found}, not {digest}: it is not the one you mean")
    signature = read(SIGNATURE) if SIGNATURE in paths else None
    if public_key is not None:
        if signature is None:
            raise LvdError(f"bundle {directory} is not signed, and a public key was given")
        check_signature(manifest, signature, public_key, str(directory))
    expected = _listed(manifest, directory)
    files = {}
    for name in sorted(paths):
        if name not in expected:
            raise LvdError(f"bundle {directory} was tampered with: {name} does not belong to it")
        files[name] = read(name)
        if sha256(files[name]) != expected[name]:
            raise LvdError(f"bundle {directory} was tampered with: {name} was changed")
    for name in expected:
        if name not in files:
            raise LvdError(f"bundle {directory} was tampered with: {name} is missing")
    return Verified(found, files, manifest, signature)


def canonical(value: dict[str, Any]) -> bytes:
    """The one way to write it: any other bytes are not it."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _listed(manifest: bytes, directory: Path) -> dict[str, str]:
    """The SHA-256 of each file that a manifest lists."""
    try:
        listed = json.loads(manifest)
        expected: dict[str, str] = dict(listed["files"])
        sound = canonical(listed) == manifest and listed["format_version"] in (VOTES_VERSION, BUNDLE_VERSION)
    except (KeyError, RecursionError, TypeError, ValueError):
        sound = False
    if not sound:
        raise LvdError(f"{directory / MANIFEST} was changed, or is not of bundle version {BUNDLE_VERSION}")
    return expected
