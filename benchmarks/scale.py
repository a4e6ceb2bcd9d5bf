"""What a capture and its sweep cost at any size: bytes, files, reading and sweep time. See docs/scale.md.

    python benchmarks/scale.py --videos 1000000 --shape 4 16 64 64 --steps 50

Sizes are exact. Times follow from the trunk's pass, which is timed here on this machine with random weights,
and from --read and --job, for which docs/scale.md says how to measure your own.
"""

import math
import sys
import time
from dataclasses import dataclass

import command
import torch

from lvd.command import exit_status
from lvd.detect.network import EncoderConfig, Trunk, choose_patch
from lvd.latents.disk import size_text
from lvd.latents.writer import SHARD_BYTES

SAMPLE_ROW = 120  # bytes of samples.csv, with a prompt of 80
SHARD_ENTRY = 180  # bytes of manifest.json


@dataclass(frozen=True)
class Scale:
    """How much is captured and trained on."""

    videos: int
    shape: tuple[int, int, int, int]
    steps: int
    categories: int
    batch: int

    @property
    def sample_bytes(self) -> int:
        """x0 of one video at one step."""
        return 2 * math.prod(self.shape)

    @property
    def step_bytes(self) -> int:
        return self.videos * self.sample_bytes

    @property
    def total_bytes(self) -> int:
        return self.steps * self.step_bytes

    @property
    def shards(self) -> int:
        return self.steps * math.ceil(self.videos / max(1, SHARD_BYTES // self.sample_bytes))

    @property
    def journal_files(self) -> int:
        """At most, before the closing pass."""
        return math.ceil(self.videos / self.batch) * (self.steps + 1)


def feature_seconds(shape: tuple[int, int, int, int]) -> float:
    """The trunk's pass over one x0 on this machine, encoder=tiny."""
    patch = choose_patch(shape, tubelet=2)
    config = EncoderConfig(shape, width=96, layers=4, heads=4, patch=patch, tubelet=2)
    trunk, x0 = Trunk(config, steps=1, categories=5).eval(), torch.randn(8, *shape)
    with torch.inference_mode():
        trunk.features(x0, 0)
        started = time.perf_counter()
        for _ in range(3):
            trunk.features(x0, 0)
    return (time.perf_counter() - started) / 24


def time_text(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def rows(scale: Scale, read: float, job: float, jobs: int, feature: float) -> list[tuple[str, str]]:
    """What to print; `read` in bytes a second, `job` and `feature` in seconds."""
    cells = scale.steps * scale.categories
    scored = math.ceil(0.4 * scale.videos) * cells  # val and test
    return [
        ("x0 of a video", size_text(scale.steps * scale.sample_bytes)),
        ("capture", f"{size_text(scale.total_bytes)} in {scale.shards:,} shards"),
        ("a step of it, and the room that closing needs", size_text(scale.step_bytes)),
        ("files of the journal before closing", f"{scale.journal_files:,}"),
        ("samples.csv, manifest.json", f"{size_text(scale.videos * SAMPLE_ROW)}, "
                                       f"{size_text(scale.shards * SHARD_ENTRY)}"),
        ("memory of the recorder, beside the pipeline", size_text(6 * scale.batch * scale.sample_bytes)),
        ("reading a step", time_text(scale.step_bytes / read)),
        ("reading all: verify=true, or the trunk's statistics", time_text(scale.total_bytes / read)),
        ("features of all steps, once", time_text(scale.steps * scale.videos * feature)),
        ("features of a step in memory", size_text(scale.videos * 96 * 4)),
        (f"{cells} heads, {jobs} at a time", time_text(math.ceil(cells / jobs) * job)),
        ("rows of scores.csv", f"{scored:,}"),
    ]  # fmt: skip


def main() -> None:
    parser = command.parser(__doc__)
    parser.add_argument("--videos", type=int, default=1_874)
    parser.add_argument("--shape", type=int, nargs=4, default=(4, 16, 64, 64), metavar=tuple("CFHW"))
    parser.add_argument("--steps", type=int, default=50, help="recorded ones")
    parser.add_argument("--categories", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="videos in one call of the pipeline")
    parser.add_argument("--read", type=float, default=500.0, help="MB/s that the disk reads")
    parser.add_argument("--job", type=float, default=1.5, help="seconds of one head's job")
    parser.add_argument("--jobs", type=int, default=2, help="jobs at a time")
    args = parser.parse_args()
    shape = tuple(args.shape)
    scale = Scale(args.videos, shape, args.steps, args.categories, args.batch)
    feature = feature_seconds(shape)
    size = "x".join(map(str, shape))
    print(f"{args.videos:,} videos, {size}, {args.steps} steps, {args.categories} categories;")
    print(f"{args.read:g} MB/s, {args.job:g} s a job, the trunk's pass {feature * 1000:.1f} ms (timed)")
    for name, value in rows(scale, args.read * 1e6, args.job, args.jobs, feature):
        print(f"{name:52} {value}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
