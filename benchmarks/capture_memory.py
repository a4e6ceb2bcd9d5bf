"""Peak memory of capture.py's recorder at 400 videos against 50, each in a process of its own.

A stub pipeline steps a real DDIMScheduler on latents of AnimateDiff's size (4x16x64x64), 8 steps: kept in
memory, 400 videos would be 1.6 GB more than nothing, and 1.4 GB more than 50 are.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lvd.command import exit_status

SHAPE, STEPS = (4, 16, 64, 64), 8


def peak_megabytes(videos: int) -> float:
    """Record in this process and return the peak of its resident memory."""
    import torch
    from diffusers import DDIMScheduler

    from lvd.capture.recorder import record
    from lvd.capture.source import Recording, Source
    from lvd.latents.format import Sample

    class Stub:
        scheduler = DDIMScheduler(clip_sample=False)

        def __call__(self, prompt: list[str], **_: Any) -> tuple[Any]:
            self.scheduler.set_timesteps(STEPS)
            x_t = torch.randn(len(prompt), *SHAPE)
            for timestep in self.scheduler.timesteps:
                x_t = self.scheduler.step(torch.randn_like(x_t), timestep, x_t).prev_sample
            return (x_t,)

    source = Source(path="stub", category_names=["unsafe"], steps=STEPS, guidance=1.0, layout="BCFHW")
    samples = [Sample(f"s{i}", str(i), f"prompt {i}", i, (), "train") for i in range(videos)]
    with tempfile.TemporaryDirectory() as folder:
        record(source, samples, Path(folder) / "capture", Recording(batch_size=10), pipe=Stub())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    if len(sys.argv) > 1:
        print(peak_megabytes(int(sys.argv[1])))
        return
    peaks = {}
    for videos in (50, 400):
        child = subprocess.run(
            [sys.executable, __file__, str(videos)], stdout=subprocess.PIPE, text=True, check=True
        )
        peaks[videos] = float(child.stdout.split()[-1])
        print(f"{videos} videos: {peaks[videos]:,.0f} MiB at the peak")
    print(f"peak at 400 / peak at 50: {peaks[400] / peaks[50]:.2f} (at most 1.1 is wanted)")


if __name__ == "__main__":
    sys.exit(exit_status(main))
