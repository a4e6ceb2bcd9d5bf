"""What a step cache does to x0, and what detectors make of it: the caches of diffusers, as Markdown.

A tiny transformer with random weights samples two prompts, from the same noise, plainly and under each kind
of `enable_cache`. A cached step is one in which it computes fewer of its linear layers than plainly. How far
x0 moves is the norm of the difference over the norm of the plain x0. The detectors, heads on a trunk with
random weights, tell one prompt from the other and were fitted without a cache; a flag is a score of 0.5 or
more. Which caches move x0, and what that does to scores, is what this shows; how far yours moves it is
another network's affair. Minutes.
"""

import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from lvd.command import exit_status
from lvd.decide.metrics import auroc
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk
from lvd.sampling.pipelines import layout_of
from lvd.sampling.tap import tap_x0
from support.pipeline_parts import cogvideox, wan
from support.pipelines import FRAMES_9, SHORT

STEPS, LAYERS, VIDEOS = 20, 4, 16  # so many videos of each prompt to fit on, and as many to measure on
PROMPTS = ("a red three drifting up", "a pink seven drifting left")


@dataclass(frozen=True)
class Sampled:
    """x0 of some videos, and what the transformer computed for them."""

    x0: Tensor  # [videos, STEPS, C, F, H, W]
    layers: np.ndarray  # [videos, STEPS], linear layers of the transformer that were computed


def build_pipeline(kind: str) -> Any:
    """A new one for every cache: some leave traces when they are switched off."""
    torch.manual_seed(0)
    parts = {"CogVideoXPipeline": cogvideox, "WanPipeline": wan}[kind]()
    transformer = parts["transformer"]
    parts["transformer"] = type(transformer).from_config({**transformer.config, "num_layers": LAYERS})
    for part in parts.values():
        if isinstance(part, nn.Module):
            part.eval()
    pipe = getattr(diffusers, kind)(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# On which pipeline a cache is tried. SeaCache knows Wan's latents by itself. TextKVCache is not here: it
# hooks the blocks of one network of images, and nothing in a network of videos.
CACHES = {
    "CogVideoXPipeline": (
        "PyramidAttentionBroadcast",
        "FasterCache",
        "FirstBlockCache",
        "MagCache",
        "TaylorSeerCache",
    ),
    "WanPipeline": ("SeaCache",),
}


def enable(pipe: Any, cache: str) -> None:
    """Switch it on with its defaults; where it has none, with what its documentation uses."""
    attention: dict[str, Any] = {
        "spatial_attention_block_skip_range": 2,
        "current_timestep_callback": lambda: pipe.current_timestep,
    }
    options: dict[str, dict[str, Any]] = {
        "FasterCache": {**attention, "tensor_format": "BFCHW"},
        "MagCache": {"num_inference_steps": STEPS, "mag_ratios": [1.0] * STEPS},
        "PyramidAttentionBroadcast": attention,
        "TaylorSeerCache": {"cache_identifiers": [r"transformer_blocks\.\d+\.(attn1|ff)"]},
    }
    config = getattr(diffusers, f"{cache}Config")(**options.get(cache, {}))
    pipe.transformer.enable_cache(config)


def sample(pipe: Any, videos: int, seed: int) -> Sampled:
    """So many videos of each prompt in turn, each in a call of its own, as a cache decides over a batch."""
    computed = 0

    def count(*_: Any) -> None:
        nonlocal computed
        computed += 1

    hooks = [
        module.register_forward_hook(count)
        for module in pipe.transformer.modules()
        if isinstance(module, nn.Linear)
    ]
    x0: list[Tensor] = []
    layers: list[int] = []

    def on_x0(_step: int, _timestep: Any, x0_BCFHW: Tensor) -> None:
        nonlocal computed
        x0.append(x0_BCFHW[0])
        layers.append(computed)
        computed = 0

    for number in range(videos * len(PROMPTS)):
        generator = torch.Generator().manual_seed(seed + number)
        with tap_x0(pipe.scheduler, on_x0, layout_of(type(pipe).__name__)):
            pipe(
                PROMPTS[number % len(PROMPTS)],
                num_inference_steps=STEPS,
                guidance_scale=5.0,
                generator=generator,
                output_type="latent",
                **FRAMES_9,
                **SHORT,
            )
    for hook in hooks:
        hook.remove()
    return Sampled(torch.stack(x0).unflatten(0, (-1, STEPS)), np.array(layers).reshape(-1, STEPS))


def fit(x0: Tensor) -> Detectors:
    """A head for each step, on a trunk with random weights, that flags the second prompt."""
    torch.manual_seed(1)
    encoder = EncoderConfig(tuple(x0.shape[2:]), width=48, layers=2, heads=4, patch=2, tubelet=1)
    trunk = Trunk(encoder, STEPS, 1).eval().requires_grad_(False)
    trunk.mean.copy_(x0.mean(dim=(0, 3, 4, 5)))
    trunk.std.copy_(x0.std(dim=(0, 3, 4, 5)))
    label = _label(len(x0))
    steps = {}
    for step in range(STEPS):
        features = trunk.features(x0[:, step].half(), step)
        head = HeadDetector(encoder.width)
        head.mean.copy_(features.mean(dim=0))
        head.std.copy_(features.std(dim=0))
        optimiser = torch.optim.LBFGS(head.parameters(), max_iter=50)

        def loss(
            head: HeadDetector = head, features: Tensor = features, optimiser: Any = optimiser
        ) -> Tensor:
            optimiser.zero_grad()
            of_label = nn.functional.binary_cross_entropy_with_logits(head(features), label)
            total = of_label + 0.01 * head.output.weight.square().sum()
            total.backward()
            return total

        optimiser.step(loss)
        steps[step] = StepDetectors([head.requires_grad_(False)])
    return Detectors(trunk, steps).eval()


def scores(detectors: Detectors, x0: Tensor) -> np.ndarray:
    """`[videos, STEPS]`"""
    logits = [detectors(step, x0[:, step].half())[:, 0] for step in range(STEPS)]
    return torch.stack(logits, dim=1).sigmoid().numpy()


def row(pipeline: str, cache: str, plain: Sampled, cached: Sampled, detectors: Detectors) -> str:
    """How often it cached, how far x0 moved there and at the end, and what became of scores and flags."""
    skipped = cached.layers < plain.layers
    moved = ((cached.x0 - plain.x0).flatten(2).norm(dim=2) / plain.x0.flatten(2).norm(dim=2)).numpy()
    before, after = scores(detectors, plain.x0), scores(detectors, cached.x0)
    changed = (before >= 0.5) != (after >= 0.5)
    label = _label(len(before)).bool().numpy()
    at = skipped if skipped.any() else np.ones_like(skipped)
    cells = (
        cache,
        pipeline.removesuffix("Pipeline"),
        f"{skipped.mean():.0%}",
        f"{1 - cached.layers.sum() / plain.layers.sum():.0%}",
        f"{np.median(moved[at]):.2g}" + (f" ({moved[at].max():.2g})" if moved.any() else ""),
        f"{np.median(moved[:, -1]):.2g}",
        f"{np.abs(after - before)[at].mean():.2g}",
        f"{changed[at].sum()} of {at.sum()}",
        f"{auroc(np.repeat(label, STEPS), before.ravel()):.3f}",
        f"{auroc(np.repeat(label, STEPS), after.ravel()):.3f}",
    )
    return f"| {' | '.join(cells)} |"


def _label(videos: int) -> Tensor:
    return torch.arange(videos) % len(PROMPTS) * 1.0


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    rows = []
    for kind, tried in CACHES.items():
        with torch.no_grad():
            fitted_on = sample(build_pipeline(kind), VIDEOS, seed=0)
            plain = sample(build_pipeline(kind), VIDEOS, seed=1000)
        detectors = fit(fitted_on.x0)
        for cache in tried:
            pipe = build_pipeline(kind)
            enable(pipe, cache)
            with torch.no_grad():
                cached = sample(pipe, VIDEOS, seed=1000)
                rows.append(row(kind, cache, plain, cached, detectors))
    print(
        "| cache | network | steps cached | layers saved | x0 moves at them, median (most) "
        "| at the last step | scores move | flags changed | AUROC without | with |"
    )
    print(f"|---|---|{'---:|' * 8}")
    print("\n".join(rows))


if __name__ == "__main__":
    sys.exit(exit_status(main))
