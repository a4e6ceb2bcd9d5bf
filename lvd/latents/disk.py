"""A disk that is written to: checked beforehand for room and permission, and its errors as messages."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lvd.errors import LvdError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)


@contextmanager
def translate_errors(directory: Path) -> Iterator[None]:
    """Around whatever writes below `directory`.

    Raises:
        LvdError: the disk, or the user's share of it, is full; or the directory is not one to write in.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = _errno(error)
        if number in _FULL:
            raise LvdError(
                f"the disk of {directory} is full ({size_text(free_bytes(directory))} free): "
                "make room and run the same command again, it goes on where it stopped"
            ) from error
        if number in _CLOSED and isinstance(error, OSError) and _is_below(error.filename, directory):
            raise LvdError(_not_writable(directory, f"{error.filename}: {os.strerror(number)}")) from error
        raise


def write_problem(directory: Path) -> str | None:
    """Why nothing can be written below `directory`, which need not be there; None: it seems that it can."""
    existing = _existing(directory)
    if not existing.is_dir():
        return _not_writable(directory, f"{existing}: {os.strerror(errno.ENOTDIR)}")
    if not os.access(existing, os.W_OK | os.X_OK):
        denied = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
        return _not_writable(directory, f"{existing}: {os.strerror(denied)}")
    return None


def _not_writable(directory: Path, why: str) -> str:
    return f"nothing can be written to {directory} ({why}): give a folder that may be written"


def _errno(error: OSError | RuntimeError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"errno = (\d+),", str(error))  # how HDF5 says it while closing a file
    return int(found[1]) if found else None


def _is_below(path: object, directory: Path) -> bool:
    """Whether an error is about `directory`, what is in it, or a folder that it is in."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    named, asked = Path(os.fsdecode(path)).resolve(), directory.resolve()
    return named.is_relative_to(asked) or asked.is_relative_to(named)


def _existing(directory: Path) -> Path:
    """`directory`, or its nearest parent that is there."""
    while not os.path.lexists(directory):
        directory = directory.parent
    return directory


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
    room = os.statvfs(_existing(directory))
    return room.f_bavail * room.f_frsize


def size_text(size: float) -> str:
    """Bytes as people read them: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
