"""How long recording holds up a sampler whose steps take 100 ms, and what a capture takes on disk.

A stub pipeline sleeps 100 ms a step, as a program does that waits for a GPU, and steps a real DDIMScheduler
on latents of real sizes; capture.py's recorder taps it, predicts x0 and writes its journal. Held up is what
`scheduler.step` takes more than untapped, and all that the recorder does between two calls of the pipeline.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler

from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.latents import writer
from lvd.latents.format import Sample

STEPS, BATCHES, STEP_SECONDS = 50, 4, 0.1
SOURCE = Source(path="stub", category_names=["unsafe"], steps=STEPS, guidance=1.0, layout="BCFHW")
SIZES = {  # name: C, F, H, W, and videos in a batch
    "AnimateDiff, 4 at once": ((4, 16, 64, 64), 4),
    "AnimateDiff": ((4, 16, 64, 64), 1),
}


class Stub:
    """A pipeline that knows how long its calls and its scheduler's steps took."""

    def __init__(self, shape: tuple[int, ...], batch: int) -> None:
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.noise = torch.randn(batch, *shape)
        self.call_seconds: list[float] = []
        self.step_seconds: list[float] = []

    def __call__(self, **_: Any) -> tuple[Any]:
        started = time.perf_counter()
        self.scheduler.set_timesteps(STEPS)
        x_t = self.noise
        for timestep in self.scheduler.timesteps:
            time.sleep(STEP_SECONDS)
            asked = time.perf_counter()
            x_t = self.scheduler.step(self.noise, timestep, x_t).prev_sample
            self.step_seconds.append(time.perf_counter() - asked)
        self.call_seconds.append(time.perf_counter() - started)
        return (x_t,)


def measure(shape: tuple[int, ...], batch: int, directory: Path) -> tuple[float, float, float, float]:
    """What recording adds to the sampling's time, in all and of the sampler's own thread's work.

    Also the closing pass's seconds, and the bytes on disk over the payload.
    """
    stub = Stub(shape, batch)
    worked = time.thread_time()
    stub()
    bare_work = time.thread_time() - worked
    bare_step, bare_call = statistics.median(stub.step_seconds), stub.call_seconds[0]
    stub.step_seconds, stub.call_seconds = [], []

    finish, closing = writer.finish, []

    def timed_finish(capture: Path) -> None:
        started, worked = time.perf_counter(), time.thread_time()
        finish(capture)
        closing.extend([time.perf_counter() - started, time.thread_time() - worked])

    writer.finish = timed_finish
    samples = [Sample(f"s{i:03d}", str(i), f"prompt {i}", i, (), "train") for i in range(BATCHES * batch)]
    started, worked = time.perf_counter(), time.thread_time()
    record(SOURCE, samples, directory, Recording(batch_size=batch), pipe=stub)
    total, work = time.perf_counter() - started, time.thread_time() - worked
    writer.finish = finish

    in_steps = sum(stub.step_seconds) - bare_step * len(stub.step_seconds)
    between = total - closing[0] - sum(stub.call_seconds)
    payload = 2 * len(samples) * STEPS * torch.Size(shape).numel()
    stored = sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())
    sampling = BATCHES * bare_call
    work -= closing[1] + BATCHES * bare_work
    return (in_steps + between) / sampling, work / sampling, closing[0], stored / payload


def main() -> None:
    for name, (shape, batch) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            overhead, work, closing, size = measure(shape, batch, Path(folder) / "capture")
        print(
            f"{name} {shape}: recording adds {overhead:.2%} to {STEPS} steps of {1000 * STEP_SECONDS:.0f} ms "
            f"(its work in the sampler's thread: {work:.2%}); {size:.4f} bytes on disk a byte "
            f"of x0; closing {BATCHES * batch} videos took {closing:.2f} s"
        )
    print(f"recording / sampling: {overhead:.2%} (at most 2% is wanted)")


if __name__ == "__main__":
    main()
