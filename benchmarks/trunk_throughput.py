"""What a trunk's training waits for its data: milliseconds a batch from a capture, and a batch from memory.

Captures of random numbers are written to `--scratch`: of the demo's latents and of AnimateDiff's. A trunk
with the defaults of conf/train.yaml trains on each through Lightning as `train.py task=trunk` does, first on
one batch again and again, which lies in memory, then from the capture with each number of workers. `busy` is
the former's time over the latter's: the share of the time in which a GPU that the former keeps busy would
have work. The loader alone is read as fast as it goes. Each row is printed as soon as it is measured.

    python benchmarks/trunk_throughput.py [--workers 0 4 8] [--precision 32-true bf16-mixed] [--batches 60]
"""

import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any

import command
import torch
from guard_step import CATEGORIES
from learning_curves import quiet_lightning
from lightning import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from read import write_capture
from torch import Tensor

from lvd.command import exit_status
from lvd.detect.data import TrunkData
from lvd.detect.fit import Setup, fit_module
from lvd.detect.module import TrunkModule
from lvd.detect.network import EncoderConfig, Trunk
from lvd.detect.recipe import Machine
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader

Shape = tuple[int, int, int, int]

DEFAULTS = command.train_config([])
ENCODER, FIT = DEFAULTS.encoder, replace(DEFAULTS.trunk.fit, epochs=1)
CAPTURES: dict[str, tuple[Shape, int, int]] = {  # C, F, H, W; videos; steps
    "demo": ((16, 8, 8, 8), 200, 20),
    "AnimateDiff": ((4, 16, 64, 64), 100, 8),
}
COLUMNS = (
    "latents",
    "precision",
    "batches from",
    "a batch, ms",
    "batches/s",
    "busy",
    "loader alone, batches/s",
)


def write(name: str, directory: Path) -> CaptureReader:
    """Half of the videos are unsafe; some are of val, which the end of a training looks at."""
    shape, videos, steps = CAPTURES[name]
    samples = [
        Sample(
            *(f"s{i:04d}", str(i), f"prompt {i}", i),
            categories=(CATEGORIES[i // 2 % len(CATEGORIES)],) if i % 2 else (),
            split="val" if i < 20 else "train",
        )
        for i in range(videos)
    ]
    write_capture(directory, samples, shape, steps)
    return CaptureReader(directory)


class Again:
    """One batch again and again, in place of a loader."""

    def __init__(self, batch: tuple[Tensor, ...], times: int) -> None:
        self._batch, self._times = batch, times

    def __len__(self) -> int:
        return self._times

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return repeat(self._batch, self._times)


class FromMemory(LightningDataModule):
    """One batch of another module, in place of all of its batches to train on."""

    def __init__(self, of: TrunkData) -> None:
        super().__init__()
        self._of = of
        loader = of.train_dataloader()
        self._train = Again(next(iter(loader)), len(loader))

    def train_dataloader(self) -> Again:
        return self._train

    def val_dataloader(self) -> Any:
        return self._of.val_dataloader()


class Clock(Callback):
    """Seconds a batch, in the mean of all but the first third, which fill queues and choose kernels."""

    def __init__(self, batches: int) -> None:
        self._first, self._last = batches // 3, batches - 1
        self._started = self._ended = 0.0

    def on_train_batch_end(self, trainer: Trainer, _m: Any, _o: Any, _b: Any, batch_idx: int) -> None:
        if batch_idx in (self._first, self._last):
            if trainer.strategy.root_device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            self._started, self._ended = (now, now) if batch_idx == self._first else (self._started, now)

    def seconds(self) -> float:
        return (self._ended - self._started) / (self._last - self._first)


def trunk_data(capture: CaptureReader, batches: int, workers: int) -> TrunkData:
    return TrunkData(
        capture,
        batches=batches,
        epochs=1,
        batch_size=FIT.batch_size,
        val_steps=[0],
        workers=workers,
        seed=0,
    )


def batch_seconds(capture: CaptureReader, data: LightningDataModule, machine: Machine, batches: int) -> float:
    """Of a training on the batches of `data`."""
    seed_everything(0, verbose=False)
    encoder = EncoderConfig.fitted(ENCODER, capture.info.origin.latent_shape)
    trunk = Trunk(encoder, capture.info.stored_steps, len(capture.info.category_names))
    module = TrunkModule(trunk, capture.info.category_names, FIT, positive_weight=torch.ones(1), seed=0)
    clock = Clock(batches)
    fit_module(module, data, FIT, Setup(ENCODER, machine, seed=0), [clock])
    return clock.seconds()


def loader_seconds(data: TrunkData, batches: int) -> float:
    """Of a batch, of all but the first third."""
    started = 0.0
    for index, _ in enumerate(data.train_dataloader()):
        if index == batches // 3:
            started = time.perf_counter()
    return (time.perf_counter() - started) / (batches - 1 - batches // 3)


def measure(name: str, capture: CaptureReader, machine: Machine, workers: list[int], batches: int) -> None:
    """Print a row for batches from memory, and one for each number of workers."""
    shown = f"{name} {list(capture.info.origin.latent_shape)} | {machine.precision}"
    memory = batch_seconds(capture, FromMemory(trunk_data(capture, batches, 0)), machine, batches)
    print(f"| {shown} | memory | {1000 * memory:.2f} | {1 / memory:.0f} | 100% | |", flush=True)
    for count in workers:
        seconds = batch_seconds(capture, trunk_data(capture, batches, count), machine, batches)
        alone = loader_seconds(trunk_data(capture, batches, count), batches)
        print(
            f"| {shown} | {count} workers | {1000 * seconds:.2f} | {1 / seconds:.0f} | "
            f"{memory / seconds:.0%} | {1 / alone:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--latents", nargs="+", default=list(CAPTURES), choices=list(CAPTURES))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--precision", nargs="+", default=["32-true", "bf16-mixed"])
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--batches", type=int, default=60, help="of each training, at least 6")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk that captures are written to")
    options = parser.parse_args()
    if options.batches < 6:
        parser.error("--batches: at least 6")
    quiet_lightning()
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(f"{card}, torch {torch.__version__}, batches of {FIT.batch_size}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|---|---|{'---:|' * (len(COLUMNS) - 3)}", flush=True)
    for name in options.latents:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            capture = write(name, Path(folder) / "capture")
            for precision in options.precision:
                machine = Machine(accelerator=options.accelerator, precision=precision)
                measure(name, capture, machine, options.workers, options.batches)


if __name__ == "__main__":
    sys.exit(exit_status(main))
