"""A run's bundles lie side by side in `bundles/`, each under its digest, and are never changed.

`bundle` beside them points to the one that was exported last: a link, or where there are none, a file that
names it.
"""

import ctypes
import os
import re
import uuid
from pathlib import Path

from lvd.files import sha256, sync_directory, write_atomically

MANIFEST = "manifest.json"  # of every bundle
_FOLDER = "bundles"
_DIGEST_DIGITS = 12  # of a bundle's digest, in the name of its directory


def bundle_directory(pointer: Path, digest: str) -> Path:
    """Where the bundle of this digest lies."""
    return pointer.parent / _FOLDER / digest[:_DIGEST_DIGITS]


def point_to(pointer: Path, directory: Path) -> None:
    """Let `pointer` point to a bundle beside it, in one move: a link, or where that cannot be, a file."""
    target = directory.relative_to(pointer.parent)
    link = pointer.with_name(f".{pointer.name}.{uuid.uuid4().hex}.tmp")
    try:
        link.symlink_to(target)
    except (OSError, NotImplementedError):  # a file system without links
        write_atomically(pointer, f"{target.as_posix()}\n".encode())
    else:
        link.replace(pointer)
    sync_directory(pointer.parent)


def pointed_to(pointer: Path) -> Path:
    """The directory that a pointer points to now; any other path is itself."""
    if pointer.is_symlink():
        return Path(os.path.realpath(pointer))
    if pointer.is_file():
        named = pointer.read_bytes()[:64].decode(errors="replace").strip()
        if re.fullmatch(rf"{_FOLDER}/[0-9a-f]{{{_DIGEST_DIGITS}}}", named):
            return pointer.parent / named
    return pointer


def move_old_bundle(pointer: Path) -> None:
    """Earlier versions wrote the bundle into `pointer` itself: it moves to its digest's place, whole.

    Where the system can, the directory and the link to it change places at once.
    """
    if pointer.is_symlink() or not pointer.is_dir():
        return
    manifest = pointer / MANIFEST
    bundles = pointer.parent / _FOLDER
    content = manifest.read_bytes() if manifest.is_file() else b""
    name = sha256(content)[:_DIGEST_DIGITS] if content else "without_manifest"
    place, number = bundles / name, 1
    while place.exists():  # the same again, or a bundle that was changed: both stay
        place, number = bundles / f"{name}_{number}", number + 1
    place.unlink(missing_ok=True)  # the link of a move that was killed
    try:
        place.symlink_to(place.relative_to(pointer.parent))  # as it is to be at the pointer's place
        moved = _exchanged(place, pointer)
    except (OSError, NotImplementedError):  # a file system without links
        moved = False
    if not moved:
        place.unlink(missing_ok=True)
        pointer.rename(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Let two paths change places in one move (Linux's renameat2); False: it cannot be done here."""
    at_cwd, exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), exchange) == 0)
