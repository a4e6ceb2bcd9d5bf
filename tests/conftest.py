"""A small capture with a signal that a detector can learn, made by the project's own writer."""

from collections.abc import Callable
from pathlib import Path

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
