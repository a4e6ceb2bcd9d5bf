"""What the guard and a capture add to a denoising step on a GPU, on real architectures, as Markdown.

Weights are random, in bfloat16, and sizes real: time needs no real weights. A step is the network's calls for
one video, twice where the pipeline guides by a second call, without text encoder and decoder; the rotary
embedding of CogVideoX is left out. A stub pipeline makes these calls and steps a flow's scheduler: under
`Guard` with `lag` 0 and 1 (five categories, the default detectors), and under capture.py's recorder, which
writes to `--scratch`. What they add is what lies between the end of a step's network and the beginning of the
next one's, by the GPU's own clock, less what lies there without them: medians over the steps but the first
two and the last. A check alone is one that the GPU is waited for before and after. Needs a GPU; what does not
fit its memory is skipped by name. Each row is printed as soon as it is measured.

    python benchmarks/guard_gpu.py [--models Wan HunyuanVideo CogVideoX] [--steps 6]
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import command
import diffusers
import torch
from guard_step import bundle_info, random_detectors
from record_overhead import record_stub
from stub_pipeline import StubPipeline
from torch import Tensor, nn

from lvd.command import exit_status
from lvd.errors import LvdError
from lvd.guard.bundle import Bundle
from lvd.guard.guard import Guard

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
    Model(
        "HunyuanVideo 13B, 512x320, 61 frames",
        26,
        (16, 16, 40, 64),
        1,
        diffusers.HunyuanVideoTransformer3DModel,
        _hunyuan_inputs,
    ),
    Model("CogVideoX-5B, 720x480, 49 frames", 11, (16, 13, 60, 90), 1, _cogvideox, _cogvideox_inputs),
)


def guard_of(pipe: StubPipeline, shape: LatentShape, steps: int, lag: int) -> Guard:
    """Default detectors with random weights, and a vote that looks at all steps and decides at the last."""
    info = bundle_info(pipe, shape, steps, guidance=None)
    return Guard(Bundle(info, "", random_detectors(shape, steps)), lag=lag)


@dataclass(frozen=True)
class Measured:
    """Milliseconds: of a step's network, of a check alone, and what lies between two steps' networks."""

    step: float
    check: float
    bare: float
    between: dict[str, float]

    def row(self, name: str) -> str:
        added = [f"{ms - self.bare:.2f} | {(ms - self.bare) / self.step:.3%}" for ms in self.between.values()]
        return f"| {name} | {self.step:.0f} | {self.check:.2f} | {self.bare:.3f} | {' | '.join(added)} |"


COLUMNS = (
    *("model", "a step, ms", "a check alone, ms", "between steps without, ms"),
    *("the guard adds, ms", "share", "with lag=1, ms", "share", "recording adds, ms", "share"),
)


@torch.inference_mode()
def measure(model: Model, device: str, steps: int, scratch: Path | None = None) -> Measured:
    """Of one model; `steps` is at least 4, of which the first two and the last are not counted."""
    placed = torch.device(device)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with placed:
            network = model.build().to(placed).eval().requires_grad_(False)
            inputs = model.inputs(model.latent_shape)
    finally:
        torch.set_default_dtype(default)

    def denoise() -> None:
        for _ in range(model.calls):
            network(**inputs, return_dict=False)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = StubPipeline(scheduler, torch.randn(1, *model.latent_shape, device=placed), steps, denoise)
    denoise()  # the first call chooses kernels
    guards = [guard_of(pipe, model.latent_shape, steps, lag) for lag in (0, 1)]
    check = _check_alone(guards[0], model.latent_shape, placed)
    _check_alone(guards[1], model.latent_shape, placed)  # its detectors go to the device

    def under(guard: Guard) -> None:
        (decision,) = guard(pipe, prompt=["a prompt"]).decisions
        assert len(decision.scores) == steps, decision.why

    pipe()
    step, bare = statistics.median(pipe.of_network()[1:]), _between(pipe)
    of_each = {}
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        capture = Path(folder) / "capture"
        for name, call in {
            "guard": lambda: under(guards[0]),
            "lag=1": lambda: under(guards[1]),
            "recording": lambda: record_stub(pipe, steps, 1, 1, capture),
        }.items():
            pipe.calls.clear()
            call()
            of_each[name] = 1000 * _between(pipe)
    return Measured(1000 * step, 1000 * check, 1000 * bare, of_each)


def _between(pipe: StubPipeline) -> float:
    """Seconds of the last call; its last step ends with what nothing can be made beside."""
    return statistics.median(pipe.between()[-1][2:-1])


def _check_alone(guard: Guard, shape: LatentShape, device: torch.device) -> float:
    """Seconds, the median of some after the first two, which warm up."""
    x0 = torch.randn(1, *shape, device=device)
    session = guard.session(samples=1)
    steps = guard.bundle.info.origin.steps
    seconds = [_seconds(lambda at=step: session.check(at, x0), device) for step in range(steps)]
    session.close()
    return statistics.median(seconds[2:])


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> int:
    parser = command.parser(__doc__)
    parser.add_argument("--models", nargs="+", default=["Wan", "HunyuanVideo", "CogVideoX"])
    parser.add_argument("--steps", type=int, default=6, help="of each sampling, at least 4")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk that captures are written to")
    options = parser.parse_args()
    if options.steps < 4:
        parser.error("--steps: at least 4")
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Raises: LvdError: there is no GPU."""
    if not torch.cuda.is_available():
        raise LvdError("this measures on a GPU, and there is none: run it on a machine with one")
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}, {card.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, bfloat16\n")
    print(f"| {' | '.join(COLUMNS)} |\n|---|{'---:|' * (len(COLUMNS) - 1)}", flush=True)
    for model in MODELS:
        if not model.name.startswith(tuple(options.models)):
            continue
        try:
            print(measure(model, "cuda", options.steps, options.scratch).row(model.name), flush=True)
        except torch.cuda.OutOfMemoryError:
            print(f"| {model.name} | does not fit: {model.gigabytes} GB of weights |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
