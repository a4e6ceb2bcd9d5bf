"""How noisy x_t is at a step: alpha and sigma of `x_t = alpha x0 + sigma eps`, by the class of the scheduler.

`sigma` is the noise level of Karras et al. (2022), with alpha = 1, or the time of flow matching (Lipman et
al., 2023), with alpha = 1 - sigma; `alpha_bar` is the cumulative product of DDPM (Ho et al., 2020), alpha its
root. The scheduler is only read, before its step.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from lvd.errors import LvdError

# A diffusers scheduler; typed loosely so that a guard needs no diffusers.
Scheduler = Any
Timestep = Tensor | float


def noise_level(scheduler: Scheduler, timestep: Timestep) -> float:
    """Sigma / (alpha + sigma) of the x_t from which `scheduler.step` is about to step, for this timestep.

    1 is noise alone, 0 none: the time of a flow, and of any other sampler the time of the flow with the same
    signal-to-noise ratio, log-SNR = 2 log((1 - level) / level). So levels compare between samplers, and are
    finite where log-SNR is not.

    Raises:
        LvdError: the scheduler is not supported.
    """
    form = _FORMS.get(type(scheduler).__name__)
    if form is None:
        raise LvdError(f"scheduler {type(scheduler).__name__} is not supported: its noise level is not known")
    alpha, sigma = form(scheduler, timestep)
    return sigma / (alpha + sigma)


def by_alpha_bar(scheduler: Scheduler, timestep: Timestep) -> tuple[float, float]:
    """Alpha and sigma of DDPM's noise schedule, which goes by the timestep."""
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def by_log_snr(scheduler: Scheduler, timestep: Timestep) -> tuple[float, float]:
    """Those of the exponential integrators: of DDPM's noise schedule or, with flow sigmas, of a flow's."""
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma_of(scheduler, timestep))
    return float(alpha), float(sigma)


def sigma_of(scheduler: Scheduler, timestep: Timestep) -> float:
    """Of a scheduler with `sigmas`, the one (or the time of a flow) at which the network was asked."""
    return float(unread_sigma_of(scheduler, timestep))


def unread_sigma_of(scheduler: Scheduler, timestep: Timestep) -> Tensor | float:
    """The same as the scheduler has it: on a GPU to read it is to wait, and to multiply by it is not."""
    between = _BETWEEN.get(type(scheduler).__name__)
    if between is not None and not scheduler.state_in_first_order:
        sigma: Tensor | float = between(scheduler)
    else:
        sigma = scheduler.sigmas[_step_index(scheduler, timestep)]
    return sigma


def _by_sigma(scheduler: Scheduler, timestep: Timestep) -> tuple[float, float]:
    return 1.0, sigma_of(scheduler, timestep)


def _by_time(scheduler: Scheduler, timestep: Timestep) -> tuple[float, float]:
    time = sigma_of(scheduler, timestep)
    return 1 - time, time


def _by_invertible_time(scheduler: Scheduler, timestep: Timestep) -> tuple[float, float]:
    """FlowMatchEuler, which for Mochi turns time round."""
    alpha, sigma = _by_time(scheduler, timestep)
    return (sigma, alpha) if scheduler.config.invert_sigmas else (alpha, sigma)


def _step_index(scheduler: Scheduler, timestep: Timestep) -> int:
    """`step_index` is None before the first step; the schedulers then look it up just like this."""
    index: int | None = scheduler.step_index
    if index is None:
        index = scheduler.begin_index
    if index is None:
        if isinstance(timestep, Tensor):
            timestep = timestep.to(scheduler.timesteps.device)
        found: int = scheduler.index_for_timestep(timestep)
        return found
    return index


_FORMS: dict[str, Callable[[Scheduler, Timestep], tuple[float, float]]] = {
    **dict.fromkeys(
        (
            *("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "DDIMScheduler", "DDPMScheduler"),
            *("LCMScheduler", "PNDMScheduler", "TCDScheduler"),
        ),
        by_alpha_bar,
    ),
    **dict.fromkeys(
        (
            *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
            *("SASolverScheduler", "UniPCMultistepScheduler"),
        ),
        by_log_snr,
    ),
    **dict.fromkeys(
        (
            *("DPMSolverSDEScheduler", "EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
            *("EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"),
            *("KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"),
        ),
        _by_sigma,
    ),
    **dict.fromkeys(
        ("FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler"), _by_time
    ),
    "FlowMatchEulerDiscreteScheduler": _by_invertible_time,
}

# DPM-Solver-2 asks the network again between two noise levels (Heun: at the next one, which `sigmas` has).
_BETWEEN: dict[str, Callable[[Scheduler], Any]] = {
    "DPMSolverSDEScheduler": lambda s: s.mid_point_sigma,
    "KDPM2AncestralDiscreteScheduler": lambda s: s.sigmas_interpol[s.step_index - 1],
    "KDPM2DiscreteScheduler": lambda s: s.sigmas_interpol[s.step_index],
}
