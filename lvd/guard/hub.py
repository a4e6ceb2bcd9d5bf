"""Bundles on the Hugging Face Hub: fetched into its cache, pushed as one commit.

HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE and the like are huggingface_hub's own.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lvd.errors import LvdError
from lvd.guard.pointer import MANIFEST

GIT_ATTRIBUTES = ".gitattributes"  # the Hub's own file in every repository


def fetch(name: str, revision: str | None) -> Path:
    """A repository's snapshot in the Hub's cache; what is there already is not fetched again.

    Raises:
        LvdError: it cannot be had, and why.
    """
    with _told(f"{name} is no directory here, and", name, revision):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, ignore_patterns=[GIT_ATTRIBUTES]))


def push(name: str, files: Mapping[str, bytes], *, public: bool, message: str) -> str:
    """Make a repository hold these files and no others, in one commit; returns the commit.

    The repository is made where there is none, private unless `public`.

    Raises:
        LvdError: it cannot be written, is public already though that was not asked for, or holds something
            else than a bundle.
    """
    with _told("", name, None):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        hub = HfApi()
        hub.create_repo(name, private=not public, exist_ok=True)
        found = hub.model_info(name)
        if not public and not found.private:
            raise LvdError(f"{name} is there, and public: --public pushes to it all the same")
        held = {file.rfilename for file in found.siblings or ()} - {GIT_ATTRIBUTES}
        if held and MANIFEST not in held:
            raise LvdError(f"{name} holds other files ({min(held)}): a bundle needs a repository of its own")
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in files.items()]
        operations += [CommitOperationDelete(path) for path in sorted(held - files.keys())]
        return str(hub.create_commit(name, operations, commit_message=message, parent_commit=found.sha).oid)


@contextmanager
def _told(before: str, name: str, revision: str | None) -> Iterator[None]:
    """Say in a sentence what huggingface_hub raises in pages."""
    try:
        from huggingface_hub import errors
    except ImportError:
        raise LvdError(
            f"{before} huggingface_hub is not installed: pip install huggingface_hub".strip()
        ) from None
    try:
        yield
    except errors.HFValidationError as error:
        told = f"{name} is no name of a repository: {_first_line(error)}"
    except errors.GatedRepoError:
        told = f"the Hub's repository {name} is gated: ask for access on its page"
    except errors.RepositoryNotFoundError:
        told = f"the Hub shows no repository {name}: log in where it is private (hf auth login)"
    except errors.RevisionNotFoundError:
        told = f"the Hub's repository {name} has no revision {revision or 'main'}"
    except errors.LocalEntryNotFoundError:
        at = revision or "main"
        told = f"the Hub cannot be reached, and its cache here does not hold all of {name} at {at}"
    except LvdError:
        raise
    except Exception as error:  # of httpx, Xet, the disk
        told = f"the Hub's repository {name} failed with {type(error).__name__}: {_first_line(error)}"
    else:
        return
    raise LvdError(f"{before} {told}".strip())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
