"""Random reads of single samples through the reader, against np.memmap of the same bytes.

Samples have AnimateDiff's size (4x16x64x64 float16, 0.5 MiB), the cache is warm, the two take turns.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch

from lvd.command import exit_status
from lvd.files import step_name
from lvd.latents import journal, writer
from lvd.latents.format import FORMAT_VERSION, CaptureInfo, Sample
from lvd.latents.reader import CaptureReader
from lvd.sampling.origin import Origin

SAMPLES, READS, ROUNDS = 256, 512, 15
SHAPE = (4, 16, 64, 64)


def write_capture(
    directory: Path, samples: list[Sample], shape: tuple[int, int, int, int], steps: int = 1
) -> None:
    """A capture of random numbers, of the samples' categories."""
    info = CaptureInfo(
        format_version=FORMAT_VERSION,
        origin=Origin(
            pipeline="random numbers",
            revision=None,
            pipeline_class="none",
            call={},
            scheduler="none",
            scheduler_config={},
            fingerprint={},
            layout="BCFHW",
            steps=steps,
            guidance=1.0,
            latent_shape=shape,
        ),
        dtype="float16",
        category_names=tuple(sorted({name for sample in samples for name in sample.categories})),
        versions={},
    )
    writer.begin(directory, info, samples)
    for start in range(0, len(samples), 32):
        ids = [sample.sample_id for sample in samples[start : start + 32]]
        journal.append(directory, ids, torch.randn(len(ids), steps, *shape).half())
    writer.finish(directory)


def seconds(read: Callable[[int], np.ndarray], rows: list[int]) -> float:
    target = np.empty(SHAPE, np.float16)
    started = time.perf_counter()
    for row in rows:
        target[:] = read(row)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "capture"
        samples = [
            Sample(f"s{i:04d}", str(i), f"prompt {i}", i, ("unsafe",), "train") for i in range(SAMPLES)
        ]
        write_capture(directory, samples, SHAPE)
        reader = CaptureReader(directory).step(0)
        path = directory / step_name(0) / "shard_0000.h5"
        with h5py.File(path) as file:
            offset = file["x0"].id.get_offset()
        plain = np.memmap(path, "<f2", "r", offset, (SAMPLES, *SHAPE))

        rows = random.Random(0).choices(range(SAMPLES), k=READS)
        seconds(reader.__getitem__, rows), seconds(plain.__getitem__, rows)  # warm
        pairs = [(seconds(plain.__getitem__, rows), seconds(reader.__getitem__, rows)) for _ in range(ROUNDS)]
    megabytes = READS * np.prod(SHAPE) * 2 / 1e6
    for name, times in zip(("np.memmap", "reader"), zip(*pairs, strict=True), strict=True):
        print(f"{name}: {megabytes / statistics.median(times):,.0f} MB/s, median of {ROUNDS} rounds")
    ratio = statistics.median(plain / through for plain, through in pairs)
    print(f"reader / np.memmap: {ratio:.2f} (at least 0.9 is wanted)")


if __name__ == "__main__":
    sys.exit(exit_status(main))
