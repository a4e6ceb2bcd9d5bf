"""The clean latent x0 that a sampler predicts at a step, from the inputs of `scheduler.step`.

x0 is what the network, asked once, says of the clean latent, in the form in which the scheduler goes on
with it: clipped or thresholded where the scheduler does so, and past a consistency model's boundary
condition. Where the scheduler returns `pred_original_sample` (LCM: `denoised`), x0 is that. A multistep
solver goes on to combine it with those of the steps before; these are not mixed in.

Symbols follow the papers: `x_t = alpha x0 + sigma eps` is the noisy latent (`lvd.sampling.noise`). Everything
is computed in float32 whatever the sampler's dtype (float64 stays float64), and the scheduler is only read.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.noise import Scheduler, Timestep, by_alpha_bar, by_log_snr, sigma_of, unread_sigma_of


def predict_x0(scheduler: Scheduler, model_output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """The x0 that `scheduler.step(model_output, timestep, x_t)` is about to use.

    Takes the arguments of `scheduler.step` before it is called. `x_t` has any shape and floating dtype,
    `model_output` the same shape, or twice the channels (axis 1) where the scheduler's configuration has a
    learned variance. Returns x0 in the shape of `x_t`, float32 or float64.

    Raises:
        LvdError: the scheduler, its prediction type or a combination of its options is not supported.
    """
    formula = _FORMULAS.get(type(scheduler).__name__)
    if formula is None:
        raise LvdError(
            f"scheduler {type(scheduler).__name__} is not supported: "
            f"x0 is known for {', '.join(supported_schedulers())}"
        )
    mean = _without_variance(scheduler, model_output, x_t)
    if mean.shape != x_t.shape:
        raise LvdError(
            f"the model's output {tuple(model_output.shape)} has another shape than the latent "
            f"{tuple(x_t.shape)}, and the scheduler is not set to a learned variance"
        )
    dtype = torch.promote_types(x_t.dtype, torch.float32)
    return formula(scheduler, mean.to(dtype), timestep, x_t.to(dtype))


def supported_schedulers() -> list[str]:
    """The scheduler classes whose x0 is known, by name."""
    return sorted(_FORMULAS)


def opens_step(scheduler: Scheduler) -> bool:
    """Whether the next `scheduler.step` is the first of its denoising step.

    A solver of second order asks the network again within a step, and PNDM's first three steps ask it four
    times: the first evaluation is the step's own, at the noise level where the step begins.
    """
    if type(scheduler).__name__ == "PNDMScheduler":
        if scheduler.config.skip_prk_steps:
            return bool(scheduler.counter != 1)
        return bool(scheduler.counter >= len(scheduler.prk_timesteps) or scheduler.counter % 4 == 0)
    return bool(getattr(scheduler, "state_in_first_order", True))


def step_timesteps(scheduler: Scheduler) -> Tensor:
    """The timestep of each denoising step of a whole run, `[steps]`, after `scheduler.set_timesteps`.

    `scheduler.timesteps` has one for each call of `scheduler.step`; here are those of the calls that open a
    step.
    """
    timesteps: Tensor = scheduler.timesteps
    if hasattr(scheduler, "state_in_first_order"):
        return timesteps[::2]  # the last step has no second evaluation
    if type(scheduler).__name__ == "PNDMScheduler":
        if scheduler.config.skip_prk_steps:
            return torch.cat([timesteps[:1], timesteps[2:]])
        runge_kutta = len(scheduler.prk_timesteps)
        return torch.cat([timesteps[:runge_kutta:4], timesteps[runge_kutta:]])
    return timesteps


def _from_alpha_bar(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """DDPM's noise schedule (Ho et al., 2020), by the timestep. CogVideoX, PNDM and TCD never clip."""
    return _solve(scheduler, output, x_t, *by_alpha_bar(scheduler, timestep))


def _from_alpha_bar_clipped(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """DDPM and DDIM, which threshold (Saharia et al., 2022) or else clip."""
    x0 = _from_alpha_bar(scheduler, output, timestep, x_t)
    return _threshold(scheduler, x0) if scheduler.config.thresholding else _clip(scheduler, x0)


def _from_consistency(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """LCM (Luo et al., 2023): what it denoises with, and ends on, is past its boundary condition."""
    x0 = _from_alpha_bar_clipped(scheduler, output, timestep, x_t)
    # The scheduler's own function for these two sets an attribute of it.
    sigma_data = 0.5
    time: float = int(timestep) * scheduler.config.timestep_scaling
    c_skip = sigma_data**2 / (time**2 + sigma_data**2)
    c_out = time / math.sqrt(time**2 + sigma_data**2)
    return c_out * x0 + c_skip * x_t


def _from_sigma(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """The samplers of k-diffusion, which step x_t = x0 + sigma eps (Karras et al., 2022) and never clip."""
    sigma = sigma_of(scheduler, timestep)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return x_t - sigma * output
    if prediction_type == "v_prediction":
        return x_t / (sigma**2 + 1) - output * sigma / math.sqrt(sigma**2 + 1)
    if prediction_type in ("sample", "original_sample"):
        return output
    raise _unsupported_prediction(scheduler)


def _from_sigma_clipped(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """Heun (Karras et al., 2022, algorithm 1), in diffusers the only one of its kind that clips."""
    return _clip(scheduler, _from_sigma(scheduler, output, timestep, x_t))


def _from_log_snr(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """The exponential integrators, over DDPM's noise schedule or over a flow's.

    DPM-Solver and DPM-Solver++ (Lu et al., 2022), DEIS (Zhang & Chen, 2023), UniPC (Zhao et al., 2023) and
    SA-Solver (Xue et al., 2023). Whether they go on with x0 or with the noise it implies, x0 is the same. Of
    UniPC, x0 comes from the sample that came in, which its corrector then replaces.
    """
    if scheduler.config.prediction_type == "flow_prediction":
        x0 = x_t - sigma_of(scheduler, timestep) * output
    else:
        x0 = _solve(scheduler, output, x_t, *by_log_snr(scheduler, timestep))
    # UniPC in its noise form thresholds nothing, DPM-Solver in its noise form does.
    thresholds = scheduler.config.thresholding and getattr(scheduler, "predict_x0", True)
    return _threshold(scheduler, x0) if thresholds else x0


def _from_preconditioned(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """EDM's preconditioned network, x0 = c_skip x_t + c_out output (Karras et al., 2022, table 1)."""
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise _unsupported_prediction(scheduler)
    x0: Tensor = scheduler.precondition_outputs(x_t, output, sigma_of(scheduler, timestep))
    return x0


def _from_preconditioned_thresholded(
    scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor
) -> Tensor:
    x0 = _from_preconditioned(scheduler, output, timestep, x_t)
    return _threshold(scheduler, x0) if scheduler.config.thresholding else x0


def _from_flow(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """Flow matching (Lipman et al., 2023): the output is the velocity eps - x0."""
    return x_t - unread_sigma_of(scheduler, timestep) * output


def _from_invertible_flow(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """FlowMatchEuler, which for Mochi turns time and velocity round: x_t = sigma x0 + (1 - sigma) eps."""
    if not scheduler.config.invert_sigmas:
        return _from_flow(scheduler, output, timestep, x_t)
    if scheduler.config.stochastic_sampling:  # it takes its x0 as if nothing were turned round
        raise LvdError(f"{type(scheduler).__name__} inverts sigmas or samples stochastically, not both")
    return x_t + (1 - sigma_of(scheduler, timestep)) * output


def _from_flow_of_one_size(scheduler: Scheduler, output: Tensor, timestep: Timestep, x_t: Tensor) -> Tensor:
    """FlowMatchLCM, unless it grows the latent as it goes."""
    if scheduler._scale_factors and scheduler._upscale_mode:
        raise LvdError(f"{type(scheduler).__name__} with scale_factors is not supported")
    return _from_flow(scheduler, output, timestep, x_t)


def _solve(scheduler: Scheduler, output: Tensor, x_t: Tensor, alpha: float, sigma: float) -> Tensor:
    """x_t = alpha x0 + sigma eps for x0: DDIM (Song et al., 2021, eq. 12), v of Salimans & Ho (2022)."""
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * output
    if prediction_type == "sample":
        return output
    raise _unsupported_prediction(scheduler)


def _clip(scheduler: Scheduler, x0: Tensor) -> Tensor:
    if not scheduler.config.clip_sample:
        return x0
    return x0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)


def _threshold(scheduler: Scheduler, x0: Tensor) -> Tensor:
    thresholded: Tensor = scheduler._threshold_sample(x0)
    return thresholded


def _without_variance(scheduler: Scheduler, output: Tensor, x_t: Tensor) -> Tensor:
    """The output without a learned variance, its second half of channels (Nichol & Dhariwal, 2021)."""
    if scheduler.config.get("variance_type") not in ("learned", "learned_range") or x_t.ndim < 2:
        return output
    channels = x_t.shape[1]
    return output[:, :channels] if output.shape[1] == 2 * channels else output


def _unsupported_prediction(scheduler: Scheduler) -> LvdError:
    return LvdError(
        f"prediction_type={scheduler.config.prediction_type} of {type(scheduler).__name__} is not supported"
    )


# By class, never by what the configuration holds: `from_config` carries options over that a class ignores.
_FORMULAS: dict[str, Callable[[Scheduler, Tensor, Timestep, Tensor], Tensor]] = {
    "CogVideoXDDIMScheduler": _from_alpha_bar,
    "CogVideoXDPMScheduler": _from_alpha_bar,
    "DDIMScheduler": _from_alpha_bar_clipped,
    "DDPMScheduler": _from_alpha_bar_clipped,
    "DEISMultistepScheduler": _from_log_snr,
    "DPMSolverMultistepScheduler": _from_log_snr,
    "DPMSolverSDEScheduler": _from_sigma,
    "DPMSolverSinglestepScheduler": _from_log_snr,
    "EDMDPMSolverMultistepScheduler": _from_preconditioned_thresholded,
    "EDMEulerScheduler": _from_preconditioned,
    "EulerAncestralDiscreteScheduler": _from_sigma,
    "EulerDiscreteScheduler": _from_sigma,
    "FlowMatchEulerDiscreteScheduler": _from_invertible_flow,
    "FlowMatchHeunDiscreteScheduler": _from_flow,
    "FlowMatchLCMScheduler": _from_flow_of_one_size,
    "HeunDiscreteScheduler": _from_sigma_clipped,
    "KDPM2AncestralDiscreteScheduler": _from_sigma,
    "KDPM2DiscreteScheduler": _from_sigma,
    "LCMScheduler": _from_consistency,
    "LMSDiscreteScheduler": _from_sigma,
    "LTXEulerAncestralRFScheduler": _from_flow,
    "PNDMScheduler": _from_alpha_bar,
    "SASolverScheduler": _from_log_snr,
    "TCDScheduler": _from_alpha_bar,
    "UniPCMultistepScheduler": _from_log_snr,
}
