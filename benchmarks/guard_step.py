"""What a checked step costs beside the reference's check: decode the video, then classify its pixels.

The guard checks one sample `[4, 16, 64, 64]` in five categories, with the default detector. The reference
decodes x0 with an AutoencoderKL of Stable Diffusion 1.5's size, 16 frames of 512x512, and runs five
VideoMAE-base on `[16, 3, 224, 224]`. Random weights cost the same as trained ones. Minutes on two cores;
`guard_step.py networks` measures the networks alone, in seconds: heads and the trunk's own outputs
(detector=unified) of one step, on one thread, for the demo's latents and for `[4, 16, 64, 64]`, and how large
their weights are. Settings of train.py may follow: `networks encoder.patch=16 encoder.layers=2`.

The bookkeeping is measured twice: as it is, and with an allocator that keeps freed memory. glibc hands a
latent's buffers back to the kernel now and then, which lengthens steps without a guard just as well.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import command
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from lvd.command import exit_status
from lvd.decide.rules import Vote
from lvd.detect.ensemble import Detectors, StepDetectors, UnifiedDetector
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk
from lvd.guard.bundle import Bundle, BundleInfo
from lvd.guard.guard import Guard
from lvd.guard.verify import BUNDLE_VERSION
from lvd.sampling.fingerprint import fingerprint, plain_config
from lvd.sampling.origin import Origin

SHAPE, DEMO_SHAPE = (4, 16, 64, 64), (16, 8, 8, 8)
CATEGORIES = ("distorted_weird", "terrifying", "pornographic", "violent_bloody", "political")
STEPS, GUIDANCE = 50, 7.5


class BarePipeline:
    """The loop of a pipeline around a scheduler, with nothing to denoise: what is left is the guard."""

    def __init__(self) -> None:
        self.unet = SimpleNamespace(config={})  # a guard asks what it was made for
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear")
        self.seconds: list[float] = []

    def __call__(self, prompt: list[str], num_inference_steps: int, **_others: Any) -> tuple[Tensor]:
        self.scheduler.set_timesteps(num_inference_steps)
        latents = torch.randn(len(prompt), *SHAPE)
        for timestep in self.scheduler.timesteps:
            noise = torch.randn(len(prompt), *SHAPE)
            started = time.perf_counter()
            try:
                latents = self.scheduler.step(noise, timestep, latents, return_dict=False)[0]
            finally:
                self.seconds.append(time.perf_counter() - started)
        return (latents,)


def bundle_info(
    pipe: Any, shape: tuple[int, int, int, int], steps: int, guidance: float | None
) -> BundleInfo:
    """Of a pipeline with such latents: with lam=1 all steps are checked, and the last one decides."""
    return BundleInfo(
        format_version=BUNDLE_VERSION,
        rule=Vote(steps, 1.0, 0.5),
        category_names=CATEGORIES,
        origin=Origin(
            pipeline="",
            revision=None,
            pipeline_class=type(pipe).__name__,
            fingerprint=fingerprint(pipe),
            scheduler=type(pipe.scheduler).__name__,
            scheduler_config=plain_config(pipe.scheduler.config),
            layout="BCFHW",
            steps=steps,
            guidance=guidance,
            call={},
            latent_shape=shape,
        ),
        measured={},
    )


class NoNetwork(nn.Module):
    """Flags every step for nothing: what a check then costs is bookkeeping."""

    def forward(self, _step: int, x0_BCFHW: Tensor) -> Tensor:
        return torch.ones(len(x0_BCFHW), len(CATEGORIES))


def random_detectors(shape: tuple[int, int, int, int], steps: int, settings: Sequence[str] = ()) -> Detectors:
    """Heads on a trunk of the size that train.py takes by default, but for these settings."""
    encoder = EncoderConfig.fitted(command.train_config(settings).encoder, shape)
    heads: list[Any] = [HeadDetector(encoder.width) for _ in CATEGORIES]
    nn.init.constant_(heads[0].output.bias, 20.0)  # flags every step, so that the last one decides
    of_steps = {step: StepDetectors(heads) for step in range(steps)}
    return Detectors(Trunk(encoder, steps, len(CATEGORIES)), of_steps).eval().requires_grad_(False)


def step_seconds(detectors: nn.Module | None, calls: int) -> np.ndarray:
    """Seconds of every `scheduler.step`, `[calls, STEPS]`, of a pipeline that is guarded or (None) not."""
    pipe = BarePipeline()
    info = bundle_info(pipe, SHAPE, STEPS, GUIDANCE)
    guard = None if detectors is None else Guard(Bundle(info, "", detectors))
    for _ in range(1 + calls):  # the first one warms up: the detectors go to their device in it
        if guard is None:
            pipe(["a prompt"], STEPS)
        else:
            decision = guard(pipe, prompt=["a prompt"]).decisions[0]
            assert len(decision.scores) == STEPS, decision.why
    return np.array(pipe.seconds).reshape(1 + calls, STEPS)[1:]


@torch.inference_mode()
def decode_seconds() -> float:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
    ).eval()
    frames = torch.randn(SHAPE[1], 4, *SHAPE[2:])
    started = time.perf_counter()
    for frame in frames.split(1):
        vae.decode(frame)
    return time.perf_counter() - started


@torch.inference_mode()
def classify_seconds() -> float:
    classifier = VideoMAEForVideoClassification(VideoMAEConfig(num_labels=2)).eval()
    video = torch.randn(1, 16, 3, 224, 224)
    classifier(video)
    started = time.perf_counter()
    for _ in CATEGORIES:
        classifier(video)
    return time.perf_counter() - started


@torch.inference_mode()
def networks(settings: Sequence[str]) -> str:
    """Milliseconds of one step's networks, of one sample: a line for each shape."""
    torch.set_num_threads(1)
    lines = []
    for shape in (DEMO_SHAPE, SHAPE):
        grid, x0 = random_detectors(shape, STEPS, settings), torch.randn(1, *shape)
        trunk = grid.trunk
        assert trunk is not None
        unified, heads, features = UnifiedDetector(trunk), grid.steps["0"], trunk.features(x0, 0)
        calls = {
            "heads": partial(grid, 0, x0),
            "unified": partial(unified, 0, x0),
            "the trunk's pass": partial(trunk.features, x0, 0),
            "five heads": partial(heads, x0, features),
        }
        timed = ", ".join(f"{name} {_median_ms(call):.2f} ms" for name, call in calls.items())
        tokens = trunk.encoder.videomae.embeddings.patch_embeddings.num_patches
        weights = f"{_megabytes(trunk):.1f} MB, with {STEPS} steps of heads {_megabytes(grid):.1f} MB"
        lines.append(f"{list(shape)}, {tokens} tokens: {timed}; weights {weights}")
    return "\n".join(lines)


def _median_ms(call: Callable[[], object], calls: int = 60) -> float:
    """Of processor time, which other processes disturb less than the clock."""
    seconds = []
    for _ in range(calls):
        started = time.process_time()
        call()
        seconds.append(time.process_time() - started)
    return 1000 * float(np.median(seconds[5:]))


def _megabytes(module: nn.Module) -> float:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values()) / 1e6


def bookkeeping() -> str:
    """What a guard without networks adds to a step, in milliseconds."""
    torch.set_num_threads(1)
    bare = step_seconds(None, 40)
    usual = np.median(bare, axis=0)  # a scheduler's first step takes longer
    added, tail = 1000 * (step_seconds(NoNetwork(), 40) - usual), 1000 * (bare - usual)
    return (
        f"median {np.median(added):.2f}, p99 {np.quantile(added, 0.99):.2f} "
        f"(p99 of an unguarded step above its own median: {np.quantile(tail, 0.99):.2f})"
    )


def in_a_process(**environment: str) -> str:
    arguments = [sys.executable, __file__, "bookkeeping"]
    child = subprocess.run(
        arguments, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return child.stdout.strip()


def main() -> None:
    if sys.argv[1:] == ["bookkeeping"]:
        print(bookkeeping())
        return
    if sys.argv[1:2] == ["networks"]:
        print(networks(sys.argv[2:]))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    as_it_is = in_a_process()
    keeping = in_a_process(MALLOC_TRIM_THRESHOLD_=str(2**30), MALLOC_MMAP_THRESHOLD_=str(2**30))
    detectors = random_detectors(SHAPE, STEPS)
    check = float(np.median(step_seconds(detectors, 4)) - np.median(step_seconds(None, 4)))
    print(f"a checked step: {check * 1000:.2f} ms")
    classify = classify_seconds()
    print(f"the reference's five classifiers: {classify:.1f} s")
    decode = decode_seconds()
    print(f"the reference's decode: {decode:.1f} s")
    print(f"bookkeeping in ms: {as_it_is}")
    print(f"with freed memory kept: {keeping}; at most 1 at p99 is wanted")
    print(
        f"a checked step is {(decode + classify) / check:,.0f}x cheaper than the reference with its decode "
        f"(1,000x is wanted), {classify / check:,.0f}x without (300x)"
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
