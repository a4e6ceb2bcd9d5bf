"""The guard's share of a denoising step on a GPU, on real architectures at real sizes, as Markdown.

Weights are random, in bfloat16: time needs no real ones. A step is the network's calls for one video, twice
where the pipeline guides by a second call, without text encoder and decoder; a check is `Session.check` of
one x0 in five categories with the default detectors, the GPU waited for before and after. The last two
columns are of whole samplings that nothing waits for but the guard: how much longer than unguarded they take
with `lag` 0 and 1, the medians of three. The rotary embedding of CogVideoX is left out. Needs a GPU; what
does not fit its memory is skipped by name.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from guard_step import CATEGORIES, HEADS, LAYERS, TUBELET, WIDTH
from torch import Tensor, nn

from lvd.decide.rules import Vote
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk, choose_patch
from lvd.guard.bundle import BUNDLE_VERSION, Bundle, BundleInfo
from lvd.guard.guard import Guard
from lvd.sampling.origin import Origin

LatentShape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Model:
    """A denoiser, and what it is called with for one video."""

    name: str
    gigabytes: float  # of its weights in bfloat16
    latent_shape: LatentShape  # C, F, H, W
    calls: int  # of the network in a step
    build: Callable[[], nn.Module]
    inputs: Callable[[LatentShape], dict[str, Tensor]]


def _wan() -> nn.Module:
    return diffusers.WanTransformer3DModel(
        num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30
    )


def _wan_inputs(shape: LatentShape) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, *shape),
        "timestep": torch.full((1,), 500),
        "encoder_hidden_states": torch.randn(1, 512, 4096),
    }


def _cogvideox() -> nn.Module:
    return diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=48, num_layers=42, use_rotary_positional_embeddings=True
    )


def _cogvideox_inputs(shape: LatentShape) -> dict[str, Tensor]:
    channels, frames, *size = shape
    return {
        "hidden_states": torch.randn(2, frames, channels, *size),  # guidance in one call
        "timestep": torch.full((2,), 500),
        "encoder_hidden_states": torch.randn(2, 226, 4096),
    }


def _hunyuan_inputs(shape: LatentShape) -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, *shape),
        "timestep": torch.full((1,), 500),
        "encoder_hidden_states": torch.randn(1, 256, 4096),
        "encoder_attention_mask": torch.ones(1, 256),
        "pooled_projections": torch.randn(1, 768),
        "guidance": torch.full((1,), 6000.0),
    }


MODELS = (
    Model("Wan 2.1 1.3B, 832x480, 81 frames", 3, (16, 21, 60, 104), 2, _wan, _wan_inputs),
    Model("CogVideoX-5B, 720x480, 49 frames", 11, (16, 13, 60, 90), 1, _cogvideox, _cogvideox_inputs),
    Model(
        "HunyuanVideo 13B, 512x320, 61 frames",
        26,
        (16, 16, 40, 64),
        1,
        diffusers.HunyuanVideoTransformer3DModel,
        _hunyuan_inputs,
    ),
)


def guard_of(shape: LatentShape, steps: int, lag: int = 0) -> Guard:
    """Default detectors with random weights, and a vote that looks at all steps and decides at the last."""
    encoder = EncoderConfig(shape, WIDTH, LAYERS, HEADS, choose_patch(shape, TUBELET), TUBELET)
    heads: list[Any] = [HeadDetector(WIDTH) for _ in CATEGORIES]
    nn.init.constant_(heads[0].output.bias, 20.0)  # flags every step
    of_steps = {step: StepDetectors(heads) for step in range(steps)}
    detectors = Detectors(Trunk(encoder, steps, len(CATEGORIES)), of_steps).eval().requires_grad_(False)
    origin = Origin(
        pipeline="",
        revision=None,
        pipeline_class="",
        fingerprint={},
        scheduler="",
        scheduler_config={},
        layout="BCFHW",
        steps=steps,
        guidance=None,
        call={},
        latent_shape=shape,
    )
    info = BundleInfo(BUNDLE_VERSION, Vote(steps, 1.0, 0.5), CATEGORIES, origin, {})
    return Guard(Bundle(info, "", detectors), lag=lag)


def measure(model: Model, device: str, steps: int) -> str:
    """A row: medians over the steps, the first of which warms up."""
    placed = torch.device(device)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with placed:
            network = model.build().eval().requires_grad_(False)
            inputs = model.inputs(model.latent_shape)
    finally:
        torch.set_default_dtype(default)
    session = guard_of(model.latent_shape, steps).session(samples=1, steps=steps)
    x0 = torch.randn(1, *model.latent_shape, device=placed)
    of_step, of_check = [], []

    @torch.inference_mode()
    def denoise() -> None:
        for _ in range(model.calls):
            network(**inputs, return_dict=False)

    def sample(guard: Guard | None) -> None:
        session = None if guard is None else guard.session(samples=1, steps=steps)
        for step in range(steps):
            denoise()
            if session is not None:
                session.check(step, x0)

    for step in range(steps):
        of_step.append(_seconds(denoise, placed))
        of_check.append(_seconds(lambda at=step: session.check(at, x0), placed))
    (decision,) = session.close()
    assert len(decision.scores) == steps, decision.why
    a_step, a_check = np.median(of_step[1:]), np.median(of_check[1:])
    guards = [None, *(guard_of(model.latent_shape, steps, lag) for lag in (0, 1))]
    for guard in guards[1:]:
        sample(guard)  # its detectors go to the device
    without, *with_lag = np.median(
        [[_seconds(lambda each=guard: sample(each), placed) for guard in guards] for _ in range(3)], axis=0
    )
    longer = " | ".join(f"{seconds / without - 1:.3%}" for seconds in with_lag)
    share = f"{a_check / a_step:.3%}"
    return f"| {model.name} | {1000 * a_step:.0f} | {1000 * a_check:.2f} | {share} | {longer} |"


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> int:
    if not torch.cuda.is_available():
        print(
            "error: this measures on a GPU, and there is none: run it on a machine with one", file=sys.stderr
        )
        return 1
    card = torch.cuda.get_device_properties(0)
    rows = []
    for model in MODELS:
        print(f"measuring {model.name}", flush=True)
        try:
            rows.append(measure(model, "cuda", steps=8))
        except torch.cuda.OutOfMemoryError:
            rows.append(f"| {model.name} | does not fit: {model.gigabytes} GB of weights | | | | |")
        torch.cuda.empty_cache()
    print(f"\n{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, bfloat16\n")
    print("| model | a step, ms | a check, ms | share | a sampling longer by | with lag=1 |")
    print(f"|---|{'---:|' * 5}")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
