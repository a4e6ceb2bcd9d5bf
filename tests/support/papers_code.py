"""What the paper's public code saves: its loop's two lines, around the step of any DDIM pipeline."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def papers_code(scheduler: Any, predx_0: list[Tensor], predx_t: list[Tensor]) -> Iterator[None]:
    """While open, append what MagicTimePipeline does after each step: the latent, and its x0."""
    original = scheduler.step

    @functools.wraps(original)
    def step(noise_pred: Tensor, t: Tensor, latents: Tensor, **extra_step_kwargs: Any) -> Any:
        output = original(noise_pred, t, latents, **extra_step_kwargs)
        latents = output[0]
        predx_t.append(latents.detach().clone())
        again = original(noise_pred, t, latents, **{**extra_step_kwargs, "return_dict": True})
        predx_0.append(again.pred_original_sample.detach().clone())
        return output

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
