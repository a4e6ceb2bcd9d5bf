"""Run the generator of scenes that ships with lvd."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from omegaconf import OmegaConf
from torch import Tensor

from lvd.capture.frames import inference_device
from lvd.errors import LvdError
from lvd.progress import progress
from lvd.sampling.call import call_arguments

GENERATOR = Path(__file__).parent / "generator"
SETTINGS = Path(__file__).parents[2] / "conf" / "pipeline" / "demo.yaml"  # how it is called
_BATCH = 13


def load_pipeline(generator: Path) -> Any:
    """The demo's `AnimateDiffPipeline`, on a GPU if there is one. Raises `LvdError` if it is not there."""
    if not (generator / "model_index.json").is_file():
        raise LvdError(f"no pipeline in {generator}: make one with `python -m lvd.demo.recipe`")
    diffusers.utils.logging.disable_progress_bar()
    pipelines: Any = DiffusionPipeline  # diffusers annotates little
    pipeline = pipelines.from_pretrained(generator, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(inference_device("auto"))


def call_settings() -> dict[str, Any]:
    """`steps`, `guidance` and `call` of the demo's pipeline, from conf/pipeline/demo.yaml.

    Raises:
        LvdError: it is not there.
    """
    if not SETTINGS.is_file():
        raise LvdError(f"{SETTINGS} is missing: the demo runs in a checkout of lvd")
    settings = OmegaConf.to_container(OmegaConf.load(SETTINGS))
    assert isinstance(settings, dict)
    return {name: settings[name] for name in ("steps", "guidance", "call")}


def sample_videos(pipeline: Any, captions: Sequence[str], seed: int, steps: int | None = None) -> Tensor:
    """A video of each caption, the i-th from seed `seed + i`, whatever the batch it falls in.

    It is called as a capture calls it; `steps` in place of its own. Returns `[N, FRAMES, 3, SIZE, SIZE]`
    float32 in [-1, 1].

    Raises:
        LvdError: `conf/` is not beside lvd.
    """
    settings = call_settings()
    steps = settings["steps"] if steps is None else steps
    videos = []
    with progress("sampling", len(captions), "videos") as advance:
        for start in range(0, len(captions), _BATCH):
            batch = list(captions[start : start + _BATCH])
            frames_BFHWC = pipeline(
                batch,
                **call_arguments(pipeline, steps, settings["guidance"], settings["call"], len(batch)),
                generator=[torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(batch))],
                output_type="np",
            ).frames
            videos.append(torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3) * 2 - 1)
            advance(len(batch))
    return torch.cat(videos)
