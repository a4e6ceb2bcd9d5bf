"""Read a capture: random access to the x0 of one step, at the speed of a memory map.

h5py is used to check a shard's structure and to find where its contiguous data lies; the data itself is
memory-mapped. Maps are opened lazily, in the process that reads, and never travel in a pickle.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lvd.errors import LvdError
from lvd.latents.format import Shard, read_info, read_manifest, read_samples, step_name

Float16 = npt.NDArray[np.float16]


class CaptureReader:
    """A complete capture. Rows are samples, in the order of samples.csv, at every step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.info = read_info(directory)
        self.samples = read_samples(directory)
        self._shards = read_manifest(directory)

    def step(self, step: int) -> "StepReader":
        """The x0 of every sample at one step.

        Raises:
            LvdError: the capture does not have the step.
        """
        shards = [shard for shard in self._shards if shard.step == step]
        if not shards:
            raise LvdError(f"capture {self.directory} has no step {step}: it has 0..{self.info.steps - 1}")
        return StepReader(
            self.directory, shards, self.info.latent_shape, [sample.sample_id for sample in self.samples]
        )


class StepReader:
    """x0 of one step: `reader[row]` is `[C, F, H, W]` float16, a read-only view of the file."""

    def __init__(
        self,
        directory: Path,
        shards: Sequence[Shard],
        latent_shape: tuple[int, int, int, int],
        sample_ids: Sequence[str],
    ) -> None:
        self._directory = directory
        self._shards = list(shards)
        self._latent_shape = latent_shape
        self._sample_ids = list(sample_ids)
        counts = [shard.count for shard in shards]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).tolist()
        if self._starts[-1] != len(self._sample_ids):
            raise LvdError(
                f"{directory / step_name(shards[0].step)} holds {self._starts[-1]} samples, "
                f"samples.csv has {len(self._sample_ids)}"
            )

    def __len__(self) -> int:
        return len(self._sample_ids)

    def __getitem__(self, row: int) -> Float16:
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = bisect_right(self._starts, row) - 1
        x0: Float16 = self._maps[shard][row - self._starts[shard]]
        return x0

    def read(self, rows: Sequence[int]) -> Float16:
        """Copy `rows` into one array `[len(rows), C, F, H, W]` float16."""
        out = np.empty((len(rows), *self._latent_shape), dtype=np.float16)
        for i, row in enumerate(rows):
            out[i] = self[row]
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_maps"}

    @cached_property
    def _maps(self) -> list[Float16]:
        return [
            self._map(shard, self._sample_ids[start : start + shard.count])
            for shard, start in zip(self._shards, self._starts, strict=False)
        ]

    def _map(self, shard: Shard, sample_ids: list[str]) -> Float16:
        path = self._directory / shard.path
        if not path.is_file():
            raise LvdError(f"{path} is missing: the manifest lists it")
        if path.stat().st_size != shard.bytes:
            raise LvdError(f"{path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}")
        shape = (shard.count, *self._latent_shape)
        try:
            with h5py.File(path, "r") as file:
                offset = _contiguous_offset(file, path, shape)
                stored_ids = [sample_id.decode() for sample_id in file["sample_id"][:]]
        except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
            raise LvdError(f"{path} is not a readable shard: {error}") from None
        if stored_ids != sample_ids:
            raise LvdError(f"{path} holds other samples than samples.csv, or in another order")
        return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=shape)


def _contiguous_offset(file: h5py.File, path: Path, shape: tuple[int, ...]) -> int:
    """Where x0's bytes lie in the file; anything but plain contiguous float16 in this file is refused."""
    if not isinstance(file.get("x0", getlink=True), h5py.HardLink):
        raise LvdError(f"{path}: x0 is missing or a link to somewhere else")
    dataset = file["x0"]
    if not isinstance(dataset, h5py.Dataset):
        raise LvdError(f"{path}: x0 is not a dataset")
    plain = (
        dataset.chunks is None
        and dataset.external is None
        and not dataset.is_virtual
        and dataset.dtype == np.dtype("<f2")
    )
    if not plain or dataset.shape != shape:
        raise LvdError(
            f"{path}: x0 is {dataset.dtype} {dataset.shape}, "
            f"expected contiguous float16 {shape} in the file itself"
        )
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > path.stat().st_size:
        raise LvdError(f"{path}: x0 does not lie whole in the file")
    return int(offset)
