"""Read a capture: random access to the x0 of one step, at the speed of a memory map.

h5py is used to check a shard's structure and to find where its contiguous data lies; the data itself is
memory-mapped. Maps are opened lazily, in the process that reads, and never travel in a pickle.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from lvd.errors import LvdError
from lvd.files import sha256, step_name
from lvd.latents.format import read_info, read_samples
from lvd.latents.manifest import Shard, read_manifest

__all__ = ["CaptureReader", "StepReader"]

Float16 = npt.NDArray[np.float16]


class CaptureReader:
    """A complete capture. Rows are samples, in the order of samples.csv, at every step."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.info = read_info(directory)
        self.samples = read_samples(directory)
        self._shards = read_manifest(directory).shards

    @property
    def latents_digest(self) -> str:
        """A digest of all shards' digests: it stands for the latents, whatever their labels."""
        return sha256(repr([astuple(shard) for shard in self._shards]).encode())

    def step(self, step: int) -> "StepReader":
        """The x0 of every sample at one step.

        Raises:
            LvdError: the capture does not have the step.
        """
        shards = [shard for shard in self._shards if shard.step == step]
        if not shards:
            raise LvdError(f"capture {self.directory} has no step {step}: it has {self.info.steps_text()}")
        return StepReader(
            self.directory,
            shards,
            self.info.origin.latent_shape,
            [sample.sample_id for sample in self.samples],
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
            map_shard(
                self._directory, shard, self._latent_shape, self._sample_ids[start : start + shard.count]
            )
            for shard, start in zip(self._shards, self._starts, strict=False)
        ]


def map_shard(
    directory: Path, shard: Shard, latent_shape: tuple[int, ...], sample_ids: Sequence[str]
) -> Float16:
    """The x0 `[N, C, F, H, W]` float16 of a shard, a read-only map of the file.

    Nothing but its structure is read before all of it is known to be as expected.

    Raises:
        LvdError: the file is missing, or anything but what docs/format.md says.
    """
    path = directory / shard.path
    if not path.is_file():
        raise LvdError(f"{path} is missing: the manifest lists it")
    if path.stat().st_size != shard.bytes:
        raise LvdError(f"{path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}")
    expected_ids = [sample_id.encode() for sample_id in sample_ids]
    id_type = np.dtype(f"S{max(map(len, expected_ids), default=1)}")
    shape = (shard.count, *latent_shape)
    with _opened(path) as file:
        offset = int(_plain_dataset(file, path, "x0", np.dtype("<f2"), shape).id.get_offset())
        stored_ids = _plain_dataset(file, path, "sample_id", id_type, (shard.count,))[:].tolist()
    if stored_ids != expected_ids:
        raise LvdError(f"{path} holds other samples than samples.csv, or in another order")
    return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=shape)


def read_checksums(path: Path, count: int) -> npt.NDArray[np.uint32]:
    """The CRC-32 `[N]` of each sample's bytes in a shard, as they were written.

    Raises:
        LvdError: the shard has none, or anything but plain ones.
    """
    with _opened(path) as file:
        checksums: npt.NDArray[np.uint32] = _plain_dataset(file, path, "crc32", np.dtype("<u4"), (count,))[:]
    return checksums


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except LvdError:
        raise
    except Exception as error:  # HDF5 answers a damaged file with whatever it stumbles over
        raise LvdError(f"{path} is not a readable shard: {' '.join(str(error).split())}") from None


def _plain_dataset(
    file: h5py.File, path: Path, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> h5py.Dataset:
    """A dataset that is plain contiguous data in this file; anything else is refused without reading it.

    HDF5 follows links, external storage and virtual sources silently, into any file that this user may read,
    and a file of a kilobyte can declare terabytes.
    """
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise LvdError(f"{path}: {name} is missing or a link to somewhere else")
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset):
        raise LvdError(f"{path}: {name} is not a dataset")
    expected = h5py.h5t.py_create(dtype, logical=True)
    creation = dataset.id.get_create_plist()
    plain = (
        creation.get_layout() == h5py.h5d.CONTIGUOUS
        and creation.get_nfilters() == 0
        and creation.get_external_count() == 0
        and dataset.id.get_type().equal(expected)
    )
    if not plain or dataset.shape != shape:
        raise LvdError(
            f"{path}: {name} is {dataset.dtype} {dataset.shape}, "
            f"expected contiguous {dtype} {shape} in the file itself"
        )
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > path.stat().st_size:
        raise LvdError(f"{path}: {name} does not lie whole in the file")
    return dataset
