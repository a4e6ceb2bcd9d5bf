"""The journal of a capture that is running: finished batches, each whole or absent.

journal/batch_000000/step_07.safetensors   x0 [B, C, F, H, W] float16 of one step
journal/batch_000000/samples.json          whose they are, in order

A batch is written step by step while it is sampled, in a directory that gets its name when all is there.
Several processes may write: each numbers its own batches.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lvd.errors import LvdError
from lvd.files import step_name, sync_directory

QUEUED_STEPS = 4  # of one batch that wait to be written: what bounds the memory of a capture


@dataclass(frozen=True)
class Batch:
    """A finished batch."""

    directory: Path
    sample_ids: tuple[str, ...]

    def rows(self, step: int, start: int, count: int) -> npt.NDArray[np.float16]:
        """x0 `[count, C, F, H, W]` of some of its samples at one step.

        Raises:
            LvdError: the step's file is missing or unreadable.
        """
        path = self.directory / _file_name(step)
        try:
            with safe_open(path, framework="np") as file:
                x0: npt.NDArray[np.float16] = file.get_slice("x0")[start : start + count]
        except (OSError, SafetensorError) as error:
            raise LvdError(f"{path} is not readable: {error}; remove {self.directory} and go on") from None
        return x0

    def discard(self, step: int) -> None:
        """Free the room of a step that stands in shards."""
        (self.directory / _file_name(step)).unlink(missing_ok=True)


class Entry:
    """A batch on its way into the journal: `add` every step in turn, then `commit`.

    Steps are written in a thread of their own, so that the sampler goes on. Left without `commit`, the batch
    leaves nothing. An error of the thread is raised by the next `add`, or by `commit`.
    """

    def __init__(
        self, capture: Path, sample_ids: Sequence[str], steps: int, worker: int | None = None
    ) -> None:
        prefix = "batch_" if worker is None else f"batch_worker{worker}_"
        journal = capture / "journal"
        numbers = [path.name.removeprefix(prefix) for path in journal.glob(f"{prefix}*")]
        number = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
        self.sample_ids = list(sample_ids)
        self.steps = steps
        self.latent_shape: tuple[int, ...] = ()
        self._path = journal / f"{prefix}{number:06d}"
        self._partial = self._path.with_suffix(".tmp")
        self._next = 0
        self._committed = False
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()

    def add(self, step: int, x0_BCFHW: Tensor) -> None:
        """Queue the x0 of the next step: float16, on the CPU, of all samples, and not changed afterwards.

        Raises:
            LvdError: it is of other samples, another step or another shape than the batch.
        """
        if step == 0:
            self.latent_shape = tuple(x0_BCFHW.shape[1:])
        if step != self._next or x0_BCFHW.shape != (len(self.sample_ids), *self.latent_shape):
            raise LvdError(
                f"x0 of step {step} of samples {self.sample_ids[0]} to {self.sample_ids[-1]} is "
                f"{tuple(x0_BCFHW.shape)}, expected step {self._next} and {self.latent_shape} of each sample"
            )
        if step == 0:
            shutil.rmtree(self._partial, ignore_errors=True)  # of a process that was killed
            self._partial.mkdir(parents=True)
        self._next += 1
        while len(self._waiting) >= QUEUED_STEPS:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, step, x0_BCFHW))

    def commit(self) -> None:
        """Wait for the thread and make the batch count.

        It survives the process from here on. That it survives the machine, too, is seen to by the thread: a
        disk that others use may take longer for that than the sampler for a step.

        Raises:
            LvdError: a step is missing.
        """
        if self._next != self.steps:
            raise LvdError(f"{self._partial} has {self._next} of {self.steps} steps: it cannot count")
        while self._waiting:
            self._waiting.popleft().result()
        (self._partial / "samples.json").write_bytes(json.dumps(self.sample_ids).encode())
        self._partial.rename(self._path)
        self._thread.submit(_settle, self._path)
        self._committed = True

    def __enter__(self) -> "Entry":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._committed:
            self._thread.shutdown(wait=False)
            return
        self._thread.shutdown(cancel_futures=True)
        shutil.rmtree(self._partial, ignore_errors=True)
        with suppress(OSError):  # others' batches are in it
            self._path.parent.rmdir()

    def _write(self, step: int, x0_BCFHW: Tensor) -> None:
        (self._partial / _file_name(step)).write_bytes(save({"x0": x0_BCFHW.contiguous()}))


def append(capture: Path, sample_ids: Sequence[str], x0: Tensor) -> None:
    """Commit one finished batch: x0 `[B, steps, C, F, H, W]` float16, all of it or nothing."""
    with Entry(capture, sample_ids, x0.shape[1]) as entry:
        for step in range(x0.shape[1]):
            entry.add(step, x0[:, step])
        entry.commit()


def batches(capture: Path) -> list[Batch]:
    """The finished batches.

    Raises:
        LvdError: one of them does not say whose latents it holds.
    """
    found = []
    for directory in sorted((capture / "journal").glob("batch_*")):
        if directory.suffix == ".tmp":
            continue
        try:
            found.append(Batch(directory, tuple(json.loads((directory / "samples.json").read_bytes()))))
        except (OSError, ValueError, TypeError) as error:
            raise LvdError(f"{directory} is not readable: {error}; remove it and go on") from None
    return found


def journalled(capture: Path) -> set[str]:
    """The ids of the samples that are safe in the journal."""
    return {sample_id for batch in batches(capture) for sample_id in batch.sample_ids}


def _file_name(step: int) -> str:
    return f"{step_name(step)}.safetensors"


def _settle(directory: Path) -> None:
    """Have the system write what it still holds of a batch, unless the closing pass was there before."""
    with suppress(FileNotFoundError):
        for path in directory.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_directory(directory)
        sync_directory(directory.parent)
