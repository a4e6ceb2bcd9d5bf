"""The clean latent x0 that a sampler predicts at a step, from the inputs of `scheduler.step`.

Symbols follow the papers: `x_t` the noisy latent, `alpha_bar` the cumulative product of DDPM (Ho et
al., 2020), `sigma` the noise level of Karras et al. (2022) or the time of flow matching (Lipman et
al., 2023). Everything is computed in float32 whatever the sampler's dtype (float64 stays float64).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError

# A diffusers scheduler; typed loosely so that a guard needs no diffusers.
Scheduler = Any


def predict_x0(scheduler: Scheduler, model_output: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
    """The x0 that `scheduler.step(model_output, timestep, x_t)` is about to use.

    Takes the arguments of `scheduler.step` before it is called, any shape, and returns x0 in that
    shape, clipped or thresholded where the scheduler does so.

    Raises:
        LvdError: the scheduler or its prediction type is not supported.
    """
    formula = _FORMULAS.get(type(scheduler).__name__)
    if formula is None:
        raise LvdError(
            f"scheduler {type(scheduler).__name__} is not supported: x0 is known for {', '.join(supported())}"
        )
    if model_output.shape != x_t.shape:
        raise LvdError(
            f"the model's output {tuple(model_output.shape)} has another shape than the latent "
            f"{tuple(x_t.shape)}: a learned variance is not supported"
        )
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    return formula(scheduler, model_output.to(dtype), timestep, x_t.to(dtype))


def supported() -> list[str]:
    """The scheduler classes whose x0 is known, by name."""
    return sorted(_FORMULAS)


def _x0_from_alpha_bar(scheduler: Scheduler, output: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
    """DDPM and DDIM (Song et al., 2021, eq. 12)."""
    alpha_bar = scheduler.alphas_cumprod[int(timestep)].to(x_t.device, x_t.dtype)
    prediction_type = scheduler.config.prediction_type
    x0: Tensor
    if prediction_type == "epsilon":
        x0 = (x_t - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
    elif prediction_type == "v_prediction":
        x0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * output
    elif prediction_type == "sample":
        x0 = output
    else:
        raise _unsupported_prediction(scheduler)

    if scheduler.config.thresholding:
        x0 = scheduler._threshold_sample(x0)
    elif scheduler.config.clip_sample:
        x0 = x0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    return x0


def _x0_from_sigma(scheduler: Scheduler, output: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
    """Euler samplers in the variance-exploding form x_t = x0 + sigma eps (Karras et al., 2022)."""
    sigma = _current_sigma(scheduler, timestep, x_t)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return x_t - sigma * output
    if prediction_type == "v_prediction":
        return x_t / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    if prediction_type in ("sample", "original_sample"):
        return output
    raise _unsupported_prediction(scheduler)


def _x0_from_flow(scheduler: Scheduler, output: Tensor, timestep: Tensor | float, x_t: Tensor) -> Tensor:
    """Flow matching: x_t = (1 - sigma) x0 + sigma eps and the output is eps - x0; Mochi inverts both."""
    sigma = _current_sigma(scheduler, timestep, x_t)
    if scheduler.config.invert_sigmas:
        return x_t + (1 - sigma) * output
    return x_t - sigma * output


def _current_sigma(scheduler: Scheduler, timestep: Tensor | float, like: Tensor) -> Tensor:
    """`step_index` is None before the first step; the schedulers then look it up just like this."""
    index = scheduler.step_index
    if index is None:
        index = (
            scheduler.index_for_timestep(timestep) if scheduler.begin_index is None else scheduler.begin_index
        )
    sigma: Tensor = scheduler.sigmas[index]
    return sigma.to(like.device, like.dtype)


def _unsupported_prediction(scheduler: Scheduler) -> LvdError:
    return LvdError(
        f"prediction_type={scheduler.config.prediction_type} of {type(scheduler).__name__} is not supported"
    )


_FORMULAS: dict[str, Callable[[Scheduler, Tensor, Tensor | float, Tensor], Tensor]] = {
    "DDIMScheduler": _x0_from_alpha_bar,
    "DDPMScheduler": _x0_from_alpha_bar,
    "EulerDiscreteScheduler": _x0_from_sigma,
    "EulerAncestralDiscreteScheduler": _x0_from_sigma,
    "FlowMatchEulerDiscreteScheduler": _x0_from_flow,
}
