"""How long recording holds up a sampler whose steps take 100 ms, and what a capture takes on disk.

A stub pipeline sleeps 100 ms a step, as a program does that waits for a GPU, and steps a real DDIMScheduler
on latents of real sizes; capture.py's recorder taps it, predicts x0 and writes its journal. Held up is what
lies between two calls of the network more than untapped, and all that the recorder does between two calls of
the pipeline. On a GPU, under real networks: guard_gpu.py.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from stub_pipeline import StubPipeline

from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.command import exit_status
from lvd.latents import writer
from lvd.latents.format import Sample

STEPS, BATCHES, STEP_SECONDS = 50, 4, 0.1
SIZES = {  # name: C, F, H, W, and videos in a batch
    "AnimateDiff, 4 at once": ((4, 16, 64, 64), 4),
    "AnimateDiff": ((4, 16, 64, 64), 1),
}


def record_stub(pipe: StubPipeline, steps: int, videos: int, batch: int, directory: Path) -> None:
    """Capture `videos` videos of a stub, `batch` at once, as capture.py does."""
    source = Source(path="stub", category_names=["unsafe"], steps=steps, guidance=1.0, layout="BCFHW")
    samples = [Sample(f"s{i:03d}", str(i), f"prompt {i}", i, (), "train") for i in range(videos)]
    record(source, samples, directory, Recording(batch_size=batch), pipe=pipe)


def measure(shape: tuple[int, ...], batch: int, directory: Path) -> tuple[float, float, float, float]:
    """What recording adds to the sampling's time, in all and of the sampler's own thread's work.

    Also the closing pass's seconds, and the bytes on disk over the payload.
    """
    noise = torch.randn(batch, *shape)
    stub = StubPipeline(DDIMScheduler(clip_sample=False), noise, STEPS, lambda: time.sleep(STEP_SECONDS))
    worked = time.thread_time()
    stub()
    bare_work = time.thread_time() - worked
    bare_step, bare_call = statistics.median(stub.between()[0]), sum(stub.calls[0].seconds())
    stub.calls.clear()

    finish, closing = writer.finish, []

    def timed_finish(capture: Path) -> None:
        started, worked = time.perf_counter(), time.thread_time()
        finish(capture)
        closing.extend([time.perf_counter() - started, time.thread_time() - worked])

    writer.finish = timed_finish
    videos = BATCHES * batch
    started, worked = time.perf_counter(), time.thread_time()
    record_stub(stub, STEPS, videos, batch, directory)
    total, work = time.perf_counter() - started, time.thread_time() - worked
    writer.finish = finish

    in_steps = sum(map(sum, stub.between())) - bare_step * BATCHES * STEPS
    between = total - closing[0] - sum(sum(call.seconds()) for call in stub.calls)
    payload = 2 * videos * STEPS * torch.Size(shape).numel()
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
    sys.exit(exit_status(main))
