"""A clip in place of what a sampler draws: the network is asked once a step, about the clip under noise.

The pipeline's own loop runs, with its own conditions and guidance. Whatever a step makes of the latent, the
next one begins from the clip again, at its own noise level and under the same noise.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.layout import LatentSize, Layout, from_BCFHW, to_BCFHW
from lvd.sampling.noise import Scheduler, by_log_snr, sigma_of
from lvd.sampling.tap import StepCall, intercept_step


def add_noise(scheduler: Scheduler, x0: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """x_t of a clean latent, by the scheduler's own `add_noise`, at the level of the step that it is at.

    `x0` and `noise` are of one shape and float32, and so is x_t. The schedulers that go by `timestep` need
    one of theirs; the others go by where they are.
    """
    time = timestep.reshape(1).to(x0.device)
    if type(scheduler).__name__ == "SASolverScheduler":  # its own goes by DDPM's table, whatever its levels
        alpha, sigma = by_log_snr(scheduler, timestep)
        return alpha * x0 + sigma * noise
    if hasattr(scheduler, "add_noise"):
        x_t: Tensor = scheduler.add_noise(x0, noise, time)
        return x_t
    if hasattr(scheduler, "scale_noise"):  # flow matching; Mochi's time runs the other way round
        parts = (noise, time, x0) if scheduler.config.get("invert_sigmas") else (x0, time, noise)
        flowed: Tensor = scheduler.scale_noise(*parts)
        return flowed
    time_of_flow = sigma_of(scheduler, timestep)
    return (1 - time_of_flow) * x0 + time_of_flow * noise


@dataclass(frozen=True)
class Start:
    """Where a pipeline's sampling begins, found by two calls that end at their first step."""

    scheduler: Scheduler  # a copy, as it was then
    timestep: Tensor
    scale: float  # the pipeline multiplies the latents that it is given by this
    dtype: torch.dtype
    device: torch.device

    def latents(self, x0_BCFHW: Tensor, noise_BCFHW: Tensor, layout: Layout) -> Tensor:
        """The argument `latents` of a call that is to begin with this x0 under this noise."""
        x_t = add_noise(copy.deepcopy(self.scheduler), x0_BCFHW, noise_BCFHW, self.timestep)
        return _argument(x_t / self.scale, layout).to(self.device, self.dtype)


class _Found(BaseException):
    """The first step was heard. Not an Exception: a pipeline must not catch it."""


def find_start(
    call: Callable[..., Any], scheduler: Scheduler, x0_BCFHW: Tensor, layout: Layout, size: LatentSize | None
) -> Start:
    """How a pipeline's sampling begins; `call` makes it, with further arguments.

    Raises:
        LvdError: its latents are of another shape than `x0_BCFHW`, or it does not begin with those given.
    """
    first = _first_step(call, scheduler)
    drawn = to_BCFHW(first.arguments["sample"], layout, size)
    if drawn.shape != x0_BCFHW.shape:
        raise LvdError(
            f"the clips are encoded as {list(x0_BCFHW.shape[1:])}, and the pipeline samples latents "
            f"{list(drawn.shape[1:])}: give a number of frames, a height and a width in pipeline.call "
            "that the pipeline neither rounds nor pads"
        )
    ones = _argument(torch.ones_like(drawn), layout)
    second = _first_step(call, scheduler, latents=ones)
    scaled = second.arguments["sample"]
    scale = float(scaled.flatten()[0])
    if scaled.shape != first.arguments["sample"].shape or scale <= 0 or not bool((scaled == scale).all()):
        raise LvdError("the pipeline does not begin with the latents that it is given: clips need that")
    timestep = torch.as_tensor(second.timestep)
    return Start(second.scheduler, timestep, scale, drawn.dtype, drawn.device)


@contextmanager
def noised_steps(
    scheduler: Scheduler, x0_BCFHW: Tensor, noise_BCFHW: Tensor, layout: Layout
) -> Iterator[None]:
    """While open, every `scheduler.step` begins from x0 under noise; the call got `Start.latents` of both.

    Raises:
        LvdError: in a step, when the pipeline brings another latent to it.
    """
    x0, noise = from_BCFHW(x0_BCFHW, layout), from_BCFHW(noise_BCFHW, layout)
    made = 0
    due: Tensor | None = None  # what the next step begins from; the first one's is known to `Start` alone

    def around(call: StepCall) -> Any:
        nonlocal made, due
        sample = call.arguments["sample"]
        if due is not None and not torch.equal(sample, due):
            raise LvdError(
                "the pipeline changes its latent between two steps, so that clips cannot take its place"
            )
        output = call.proceed()
        made += 1
        if made == len(scheduler.timesteps):
            return output
        if getattr(scheduler, "step_index", None) is not None:  # it then noises by where it is
            scheduler.set_begin_index(scheduler.step_index)
        x_t = add_noise(scheduler, x0, noise, scheduler.timesteps[made])
        due = x_t.to(sample.device, sample.dtype)
        return _replaced(output, due)

    with intercept_step(scheduler, around):
        yield


def _first_step(call: Callable[..., Any], scheduler: Scheduler, **given: Any) -> StepCall:
    """The first step that a call comes to, as it was before it was made: the scheduler is a copy."""
    heard: list[StepCall] = []

    def around(step: StepCall) -> Any:
        heard.append(StepCall(copy.deepcopy(step.scheduler), step.arguments, step.proceed))
        raise _Found

    try:
        with intercept_step(scheduler, around):
            call(**given)
    except _Found:
        return heard[0]
    raise LvdError("the pipeline made no step of its scheduler")


def _argument(x_BCFHW: Tensor, layout: Layout) -> Tensor:
    """Latents as a call takes them: frames are no videos yet where they are stepped one by one."""
    return x_BCFHW if layout == "(BF)CHW" else from_BCFHW(x_BCFHW, layout)


def _replaced(output: Any, latent: Tensor) -> Any:
    """What a `scheduler.step` returned, with another latent in it."""
    if isinstance(output, tuple):
        return (latent, *output[1:])
    output.prev_sample = latent
    return output
