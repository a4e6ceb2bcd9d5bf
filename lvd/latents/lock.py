"""Who may write a capture: one process alone, or workers side by side.

Locks are the kernel's (flock): a killed process leaves none behind, whatever files it leaves. A worker holds
the capture's lock together with other workers, and one of its own.
"""

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lvd.errors import LvdError

_PATIENCE_SECONDS = 5.0  # a worker that finishes holds the lock for a moment, to see whether it is the last


@contextmanager
def exclusive(capture: Path) -> Iterator[None]:
    """Write a capture with no one else.

    Raises:
        LvdError: another process writes it.
    """
    with _held(capture / ".lock", fcntl.LOCK_EX, 0.0, f"another process is writing capture {capture}"):
        yield


@contextmanager
def shared_by_worker(capture: Path, worker: int) -> Iterator[None]:
    """Write a capture as one of several workers.

    Raises:
        LvdError: a process writes it alone, or another one is this worker.
    """
    taken = f"another process is writing capture {capture}"
    with (
        _held(capture / ".lock", fcntl.LOCK_SH, _PATIENCE_SECONDS, taken),
        _held(capture / f".lock_worker{worker}", fcntl.LOCK_EX, 0.0, f"{taken} as worker {worker}"),
    ):
        yield


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Hold the lock `path` alone, after whoever holds it now."""
    with _held(path, fcntl.LOCK_EX, math.inf, ""):
        yield


@contextmanager
def exclusive_if_last(capture: Path) -> Iterator[bool]:
    """Whether no one else writes the capture; if so, it stays so while this is open."""
    descriptor = _take(capture / ".lock", fcntl.LOCK_EX)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(capture / ".lock", descriptor)


@contextmanager
def _held(path: Path, kind: int, patience: float, refusal: str) -> Iterator[None]:
    deadline = time.monotonic() + patience
    while (descriptor := _take(path, kind)) is None:
        if time.monotonic() > deadline:
            raise LvdError(f"{refusal}: wait until it ends")
        time.sleep(0.05)
    try:
        yield
    finally:
        _release(path, descriptor)


def _take(path: Path, kind: int) -> int | None:
    """A descriptor that holds the lock, or None: someone else does."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the directory was removed by the one before
            continue
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # the file was removed by the one before


def _release(path: Path, descriptor: int) -> None:
    """Give the lock back; without other holders, its file and an empty capture go too."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            path.unlink()
            with suppress(OSError):
                path.parent.rmdir()
    os.close(descriptor)
