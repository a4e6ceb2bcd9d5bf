"""Where a bundle lies: a directory, or a repository of the Hugging Face Hub."""

import re
from dataclasses import dataclass
from pathlib import Path

from lvd.errors import LvdError
from lvd.guard.hub import GIT_ATTRIBUTES, fetch
from lvd.guard.pointer import MANIFEST, pointed_to

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Place:
    """A bundle's files, not yet verified."""

    directory: Path
    paths: dict[str, Path]  # of the file of each name
    on_hub: bool


def find_bundle(source: str | Path, revision: str | None = None) -> Place:
    """A directory, the pointer to one, or where there is neither and `source` is "org/name", the Hub.

    revision: a commit, branch or tag of the Hub's repository; without it, the branch `main`.

    Raises:
        LvdError: there is no bundle, it cannot be fetched, or a directory is asked for a revision.
    """
    if isinstance(source, str) and not Path(source).exists() and _HUB_NAME.fullmatch(source):
        return _snapshot(fetch(source, revision))
    if revision is not None:
        raise LvdError(
            f"{source} is no repository of the Hub, and has no revision {revision}: "
            "the digest says which bundle a directory must hold"
        )
    return find_directory(Path(source))


def find_directory(directory: Path) -> Place:
    """The files of a directory, in which a link is no part of a bundle.

    A link in the place of the directory itself is followed, once: the pointer may move meanwhile.

    Raises:
        LvdError: there is no such directory, or it holds something else than files.
    """
    try:
        directory = pointed_to(directory)
        if not (directory / MANIFEST).exists():
            raise FileNotFoundError(2, "No such file or directory")
        entries = [entry for entry in directory.rglob("*") if entry.is_symlink() or not entry.is_dir()]
    except OSError as error:
        raise LvdError(f"no bundle at {directory}: {error.strerror}") from None
    paths = {entry.relative_to(directory).as_posix(): entry for entry in entries}
    for name, path in paths.items():
        if path.is_symlink() or not path.is_file():
            raise LvdError(f"bundle {directory} was tampered with: {name} does not belong to it")
    return Place(directory, paths, on_hub=False)


def _snapshot(directory: Path) -> Place:
    """The files of a snapshot in the Hub's cache, which are links to where it keeps their content."""
    paths = {
        name: entry
        for entry in directory.rglob("*")
        if (entry.is_symlink() or not entry.is_dir())
        and (name := entry.relative_to(directory).as_posix()) != GIT_ATTRIBUTES
    }
    return Place(directory, paths, on_hub=True)
