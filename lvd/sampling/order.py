"""Whether the calls of `scheduler.step` that are heard are those of one run, each once and in order."""

from typing import Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.noise import Scheduler, Timestep
from lvd.sampling.x0 import step_timesteps


class StepOrder:
    """Follows one run of `steps` denoising steps, from the first call of `scheduler.step` to the last.

    begins_late: a video is only noised in part, and the first steps of the schedule are left out.
    """

    def __init__(self, steps: int, *, begins_late: bool) -> None:
        self._steps = steps
        self._begins_late = begins_late
        self._timesteps: Tensor | None = None  # of the scheduler, from the first step to the last
        self._set: tuple[Any, ...] = ()  # what else `set_timesteps` gave it
        self._call = -1  # of scheduler.step; samplers of second order make two in a step

    def check(self, scheduler: Scheduler, timestep: Timestep, step: int) -> None:
        """The next call, in denoising step `step` (from 0).

        Raises:
            LvdError: another timestep should come, or none, or the scheduler was set anew.
        """
        self._call += 1
        timesteps = scheduler.timesteps
        if self._timesteps is None:
            self._timesteps, self._set = timesteps, _also_set(scheduler)
        self.check_set(scheduler)
        steps = len(step_timesteps(scheduler))
        if self._begins_late and steps > self._steps:
            timesteps = timesteps[(steps - self._steps) * getattr(scheduler, "order", 1) :]
            steps = self._steps
        if steps != self._steps or step >= steps or self._call >= len(timesteps):
            raise LvdError(f"the scheduler has {steps} steps, not {self._steps}, or one came again")
        if _is_element(timestep, timesteps[self._call]):
            return
        expected = float(timesteps[self._call])
        if float(timestep) != expected:
            raise LvdError(
                f"timestep {float(timestep):g} where {expected:g} should come: a step was skipped or repeated"
            )

    def check_set(self, scheduler: Scheduler) -> None:
        """The scheduler has the timesteps that the run began with.

        Raises:
            LvdError: it was set anew, which another thread may do even between a check and its step.
        """
        now = _also_set(scheduler)
        same = all(one is before for one, before in zip(now, self._set, strict=True))
        if scheduler.timesteps is not self._timesteps or not same:
            raise LvdError("the scheduler was set to other timesteps in the middle of the call")


def _also_set(scheduler: Scheduler) -> tuple[Any, ...]:
    """The number of steps and the noise levels: some schedulers set them before the timesteps."""
    return tuple(getattr(scheduler, name, None) for name in ("num_inference_steps", "sigmas"))


def _is_element(timestep: Timestep, expected: Tensor) -> bool:
    """Whether it lies in memory where it should. To read its value would wait for a GPU."""
    return isinstance(timestep, Tensor) and timestep.ndim == 0 and timestep.data_ptr() == expected.data_ptr()
