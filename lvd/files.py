"""Files as lvd writes and reads them: whole or not at all; JSON, SHA-256, and names of step directories."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from lvd.errors import LvdError


def step_name(step: int) -> str:
    """The directory name of a step, in captures, runs and bundles: `step_07`."""
    return f"step_{step:02d}"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Where to write what becomes the file `path` when the block ends, in one move; an error leaves nothing.

    Its content is on the disk before that: whoever reads `path`, even after a power cut, finds a whole file,
    the old or the new one. That it is the new one is certain after `sync_directory`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # several machines may write at once
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file as `atomic_file` does."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def remove_partial_files(directory: Path) -> None:
    """Remove what `atomic_file` left in a directory when its process was killed; nobody else writes there."""
    for partial in directory.glob(".*.tmp"):
        partial.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a rename alone may be lost with the power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LvdError: with the text `missing` when there is no file, or because it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LvdError(missing) from None
    except OSError as error:
        raise LvdError(f"{path} is not readable: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LvdError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LvdError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json_bytes(value))


def json_bytes(value: Mapping[str, Any]) -> bytes:
    """The content of a JSON file: indented, keys in their own order, UTF-8."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def has_fields(raw: Mapping[str, Any], kind: type) -> bool:
    """Whether a JSON object has a dataclass's fields and no others; those with a default may be missing."""
    known = fields(kind)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    return needed <= set(raw) <= {f.name for f in known}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    return sha256(json.dumps(value, sort_keys=True).encode())
