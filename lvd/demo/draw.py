"""Run the generator of scenes that ships with lvd."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from lvd.demo.scenes import FRAMES
from lvd.errors import LvdError
from lvd.progress import progress

GENERATOR = Path(__file__).parent / "generator"
STEPS = 50
GUIDANCE = 1.0  # none: one pass of the network a step
DDIM_ETA = 1.0  # DDPM's noise at every step, so that the first noise alone does not decide
_BATCH = 13


def load_pipeline(generator: Path) -> Any:
    """The demo's `AnimateDiffPipeline`, on a GPU if there is one. Raises `LvdError` if it is not there."""
    if not (generator / "model_index.json").is_file():
        raise LvdError(f"no pipeline in {generator}: make one with `python -m lvd.demo.recipe`")
    diffusers.utils.logging.disable_progress_bar()
    pipelines: Any = DiffusionPipeline  # diffusers annotates little
    pipeline = pipelines.from_pretrained(generator, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def sample_videos(pipeline: Any, captions: Sequence[str], seed: int, steps: int = STEPS) -> Tensor:
    """A video of each caption, the i-th from seed `seed + i`, whatever the batch it falls in.

    Returns `[N, FRAMES, 3, SIZE, SIZE]` float32 in [-1, 1].
    """
    videos = []
    with progress("sampling", len(captions), "videos") as advance:
        for start in range(0, len(captions), _BATCH):
            batch = list(captions[start : start + _BATCH])
            frames_BFHWC = pipeline(
                batch,
                num_frames=FRAMES,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                eta=DDIM_ETA,
                generator=[torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(batch))],
                output_type="np",
            ).frames
            videos.append(torch.from_numpy(frames_BFHWC).permute(0, 1, 4, 2, 3) * 2 - 1)
            advance(len(batch))
    return torch.cat(videos)
