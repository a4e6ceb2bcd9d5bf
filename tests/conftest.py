"""A small capture with a signal that a detector can learn, made by the project's own writer.

Also a real AnimateDiffPipeline with random weights, small enough to run in a test.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lvd.latents import writer
from lvd.latents.format import FORMAT_VERSION, CaptureInfo, Sample
from lvd.latents.splits import assign_splits

NAMES = ("alpha", "beta")
SHAPE = (4, 4, 8, 8)
STEPS = 3


def capture_info(**changes: object) -> CaptureInfo:
    values = {
        "format_version": FORMAT_VERSION,
        "pipeline": "nowhere/at-all",
        "revision": None,
        "pipeline_class": "AnimateDiffPipeline",
        "call": {"num_frames": 4},
        "scheduler": "DDIMScheduler",
        "scheduler_config": {"beta_start": 0.1},
        "steps": STEPS,
        "guidance": 5.0,
        "latent_shape": SHAPE,
        "dtype": "float16",
        "category_names": NAMES,
        "labelled": True,
        "versions": {},
    }
    return CaptureInfo(**{**values, **changes})  # type: ignore[arg-type]


def make_samples(count: int) -> list[Sample]:
    """A quarter alpha, a quarter beta, half safe; prompts all differ."""
    prompts = [f"prompt number {i}" for i in range(count)]
    categories = [((NAMES[i % 4],) if i % 4 < 2 else ()) for i in range(count)]
    splits = assign_splits(prompts, prompts, categories, seed=0)
    return [Sample(f"s{i:03d}", prompts[i], prompts[i], i, categories[i], splits[i]) for i in range(count)]


def latents_of(samples: list[Sample]) -> torch.Tensor:
    """x0 `[N, STEPS, *SHAPE]` float16: noise, and a category's own channel raised in the middle."""
    x0 = torch.randn(len(samples), STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))
    for row, sample in enumerate(samples):
        for name in sample.categories:
            x0[row, :, NAMES.index(name), :, 2:6, 2:6] += 1.5
    return x0.half()


def write_capture(directory: Path, count: int, **changes: object) -> Path:
    samples = make_samples(count)
    writer.begin(directory, capture_info(**changes), samples)
    x0 = latents_of(samples)
    for start in range(0, count, 16):
        ids = [sample.sample_id for sample in samples[start : start + 16]]
        writer.append(directory, ids, x0[start : start + 16])
    writer.finish(directory)
    return directory


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("captures") / "tiny", 80)


@pytest.fixture
def new_capture(tmp_path: Path) -> Callable[..., Path]:
    def make(count: int = 40, **changes: object) -> Path:
        return write_capture(tmp_path / "captures" / "tiny", count, **changes)

    return make


@pytest.fixture(scope="session")
def tiny_pipeline_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AnimateDiffPipeline of 8-frame 32x32 videos, as `save_pretrained` leaves it."""
    from diffusers import AnimateDiffPipeline

    from lvd.demo import recipe

    torch.manual_seed(0)
    tokenizer = recipe.build_tokenizer()
    pipeline = AnimateDiffPipeline(
        vae=recipe.build_vae(),
        text_encoder=recipe.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=recipe.build_unet(),
        motion_adapter=None,
        scheduler=recipe.build_scheduler(),
    )
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path


@pytest.fixture
def tiny_pipeline(tiny_pipeline_path: Path) -> Any:
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(tiny_pipeline_path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def trained_run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `capture`: a small trunk and a head for each of the six cells. Copy it to change it."""
    from lvd.detect.training import (
        DetectorRecipe,
        EncoderSize,
        Fit,
        Machine,
        TrunkRecipe,
        train_detector,
        train_trunk,
    )
    from lvd.latents.reader import CaptureReader

    run = tmp_path_factory.mktemp("runs") / "tiny"
    reader, machine = CaptureReader(capture), Machine("cpu", "32-true", 0)
    size = EncoderSize(width=32, layers=1, heads=2, tubelet=2, patch=None)
    fit = Fit(epochs=3, batch_size=32, learning_rate=3e-3, weight_decay=0.05, shift=1)
    train_trunk(reader, run / "trunk", TrunkRecipe(size, fit, batches=20), machine, seed=0, logger=None)
    head = Fit(epochs=10, batch_size=4096, learning_rate=1e-2, weight_decay=1.0, shift=0)
    recipe = DetectorRecipe(size, "trunk", "head", "balanced", head=head, network=fit)
    for name in NAMES:
        for step in range(STEPS):
            directory = run / name / f"step_{step:02d}"
            train_detector(reader, run, directory, name, step, recipe, machine, seed=step, logger=None)
    return run
