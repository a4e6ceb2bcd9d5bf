"""What trunk and detectors train on: rows of a capture, their labels, and Lightning data modules.

Train rows fit weights and normalisation, val rows are measured; test rows are never read.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler, SequentialSampler

from lvd.detect.rows import labelled_rows
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader, StepReader

Batch = tuple[Tensor, ...]


def label_matrix(
    samples: Sequence[Sample], rows: Sequence[int], categories: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Targets and weights `[rows, K]` float32 of all detectors at once.

    An unsafe sample counts for its own categories only, a safe one for all of them, an unlabelled one for
    none.
    """
    target = torch.tensor([[samples[row].has(name) for name in categories] for row in rows]).float()
    safe = torch.tensor([samples[row].is_safe for row in rows])
    return target, torch.where(safe[:, None], torch.ones_like(target), target)


def channel_statistics(step: StepReader, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x0 over `rows`, per channel: two `[C]` float32 tensors."""
    count = 0
    sums = torch.zeros(2, 1, dtype=torch.float64)  # of x and of x squared, for each channel
    for start in range(0, len(rows), 256):
        x = torch.from_numpy(step.read(rows[start : start + 256])).double()
        sums = sums + torch.stack([x.sum(dim=(0, 2, 3, 4)), x.square().sum(dim=(0, 2, 3, 4))])
        count += x.numel() // x.shape[1]
    mean = sums[0] / count
    std = (sums[1] / count - mean.square()).clamp_min(0).sqrt()
    return mean.float(), std.clamp_min(1e-4).float()


class CellData(LightningDataModule):
    """Batches `(input, label [B])` of one cell.

    `read(rows)` gives the inputs: x0 `[B, C, F, H, W]` of one step, or a trunk's features `[B, D]`.
    Any number of workers gives the same batches, since their order is drawn here, by `seed`.
    """

    def __init__(
        self,
        read: Callable[[Sequence[int]], Tensor],
        train: tuple[list[int], list[int]],
        val: tuple[list[int], list[int]],
        *,
        batch_size: int,
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._train = _CellRows(read, *train)
        self._val = _CellRows(read, *val)
        self._batch_size = batch_size
        self._workers = workers
        self._order = torch.Generator().manual_seed(seed)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._train, RandomSampler(self._train, generator=self._order))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self._val, SequentialSampler(self._val))

    def _loader(self, rows: "_CellRows", order: Sampler[int]) -> DataLoader[Batch]:
        # The order's generator is not the loader's: a loader draws from its own, with workers less often.
        return _loader(self, rows, self._workers, batch_size=self._batch_size, sampler=order)


def _loader(data: LightningDataModule, rows: Dataset[Batch], workers: int, **order: Any) -> DataLoader[Batch]:
    """Batches as `rows` gives them; for a GPU in pinned memory, out of which copies are not waited for."""
    to_gpu = data.trainer is not None and data.trainer.strategy.root_device.type == "cuda"
    return DataLoader(
        rows,
        collate_fn=_as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=to_gpu,
        **order,
    )


class _CellRows(Dataset[Batch]):
    def __init__(self, read: Callable[[Sequence[int]], Tensor], rows: list[int], labels: list[int]) -> None:
        self._read = read
        self._rows = rows
        self._labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        return self._read([self._rows[index] for index in indices]), self._labels[indices]


class TrunkData(LightningDataModule):
    """Batches `(x0 [B, C, F, H, W] float16, step [B], target [B, K], weight [B, K])` over all steps.

    All `batches` are drawn beforehand and dealt to `epochs`. A train batch holds random (sample, step)
    pairs of the train split, half of them safe and half unsafe; the val batches hold every labelled val
    sample at `val_steps`. Where several processes fit together, each has its share of a train batch, and all
    of the val batches. Training that goes on begins with its epoch's batches.
    """

    def __init__(
        self,
        capture: CaptureReader,
        *,
        batches: int,
        epochs: int,
        batch_size: int,
        val_steps: Sequence[int],
        workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._pairs = _Pairs(capture)
        rows = {split: labelled_rows(capture.samples, split) for split in ("train", "val")}
        unsafe = [row for row in rows["train"] if capture.samples[row].is_unsafe]
        safe = [row for row in rows["train"] if capture.samples[row].is_safe]
        rng = np.random.default_rng(seed)
        self._batches = _draw_pairs(rng, safe, unsafe, capture.info.stored_steps, batches, batch_size)
        self._val_batches = [
            [(row, step) for row in rows["val"][start : start + 256]]
            for step in val_steps
            for start in range(0, len(rows["val"]), 256)
        ]
        self._epochs = epochs
        self._counted = count()
        self._workers = workers

    def train_dataloader(self) -> DataLoader[Batch]:
        number, of = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        share = [batch[number::of] for batch in self._batches]
        batches = _Batches(share, self._epochs, self._epoch)
        return _loader(self, self._pairs, self._workers, batch_sampler=batches)

    def _epoch(self) -> int:
        """The trainer's, which also knows where a training goes on; without one, they are counted."""
        return self.trainer.current_epoch if self.trainer else next(self._counted)

    def val_dataloader(self) -> DataLoader[Batch]:
        batches = _Batches(self._val_batches, 1, lambda: 0)
        return _loader(self, self._pairs, self._workers, batch_sampler=batches)


class _Pairs(Dataset[Batch]):
    """(row, step) -> what a trunk learns from it. Keys are pairs, not numbers."""

    def __init__(self, capture: CaptureReader) -> None:
        self._steps = [capture.step(step) for step in range(capture.info.stored_steps)]
        everything = range(len(capture.samples))
        self._target, self._weight = label_matrix(capture.samples, everything, capture.info.category_names)

    def __getitems__(self, pairs: list[tuple[int, int]]) -> Batch:
        x0 = torch.from_numpy(np.stack([self._steps[step][row] for row, step in pairs]))
        rows = [row for row, _ in pairs]
        return x0, torch.tensor([step for _, step in pairs]), self._target[rows], self._weight[rows]


class _Batches(Sampler[list[tuple[int, int]]]):
    """Deals batches to epochs: each iteration gives its epoch's share, and after the last the first again."""

    def __init__(self, batches: list[list[tuple[int, int]]], epochs: int, epoch: Callable[[], int]) -> None:
        self._share = len(batches) // epochs
        self._shares = [batches[i * self._share : (i + 1) * self._share] for i in range(epochs)]
        self._epoch = epoch

    def __len__(self) -> int:
        return self._share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # Asked at the first batch: a loader with workers calls iter() twice.
        yield from self._shares[self._epoch() % len(self._shares)]


def _draw_pairs(
    rng: np.random.Generator, safe: list[int], unsafe: list[int], steps: int, batches: int, batch_size: int
) -> list[list[tuple[int, int]]]:
    half = batch_size // 2
    drawn = []
    for _ in range(batches):
        rows: npt.NDArray[np.int64] = np.concatenate(
            [rng.choice(unsafe, size=half), rng.choice(safe, size=batch_size - half)]
        )
        drawn.append(list(zip(rows.tolist(), rng.integers(steps, size=batch_size).tolist(), strict=True)))
    return drawn


def _as_is(batch: Any) -> Any:
    return batch
