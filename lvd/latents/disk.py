"""Room on a disk: asked for beforehand where it can be, and a sentence where it ran out."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvd.errors import LvdError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_is_a_sentence(directory: Path) -> Iterator[None]:
    """Around whatever writes below `directory`.

    Raises:
        LvdError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not _is_full(error):
            raise
        raise LvdError(
            f"the disk of {directory} is full ({size_text(free_bytes(directory))} free): "
            "make room and run the same command again, it goes on where it stopped"
        ) from error


def _is_full(error: OSError | RuntimeError) -> bool:
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(
        f"errno = {number}," in str(error) for number in _FULL
    )  # how HDF5 says it while closing a file


def need(directory: Path, size: int, what: str) -> None:
    """Check that there is room for `size` bytes below `directory`.

    Raises:
        LvdError: says how much is needed and how much there is.
    """
    free = free_bytes(directory)
    if free < size:
        raise LvdError(
            f"{what} needs {size_text(size)} of room, {directory} has {size_text(free)}: "
            "make room and run the same command again, it goes on where it stopped"
        )


def free_bytes(directory: Path) -> int:
    """What is left for this user on the disk of `directory`, or of its nearest parent that exists."""
    while not directory.exists():
        directory = directory.parent
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def size_text(size: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
