"""Listen to a sampler: the x0 of every denoising step, without changing what it samples."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.layout import Grid, Layout, to_BCFHW
from lvd.sampling.x0 import Scheduler, opens_step, predict_x0

OnX0 = Callable[[int, Tensor | float, Tensor], None]


@dataclass(frozen=True)
class StepCall:
    """One call of `scheduler.step`, before it happens."""

    scheduler: Scheduler
    arguments: dict[str, Any]  # by parameter name
    proceed: Callable[[], Any]  # makes the call as it came

    @property
    def timestep(self) -> Tensor | float:
        timestep: Tensor | float = self.arguments["timestep"]
        return timestep

    @property
    def opens_step(self) -> bool:
        """Whether a denoising step begins with this call; ask before `proceed`.

        Samplers of second order call `scheduler.step` again within a step.
        """
        return opens_step(self.scheduler)

    def x_t(self, layout: Layout, grid: Grid | None = None) -> Tensor:
        """The noisy latent `[B, C, F, H, W]` that the call steps from."""
        return to_BCFHW(self.arguments["sample"], layout, grid)

    def x0(self, layout: Layout, grid: Grid | None = None) -> Tensor:
        """The x0 `[B, C, F, H, W]` that the call is about to use; ask before `proceed`.

        Raises:
            LvdError: x0 is not known for this scheduler or these options.
        """
        for option in ("s_churn", "per_token_timesteps", "pred_original_sample"):  # x0 is then another
            if not _off(self.arguments.get(option)):
                raise LvdError(f"{type(self.scheduler).__name__}.step with {option} is not supported")
        given = self.arguments
        x0 = predict_x0(self.scheduler, given["model_output"], given["timestep"], given["sample"])
        return to_BCFHW(x0, layout, grid)


@contextmanager
def intercept_step(scheduler: Scheduler, around: Callable[[StepCall], Any]) -> Iterator[None]:
    """While open, `scheduler.step(...)` is `around(call)`, which decides whether and how to proceed.

    The scheduler is restored whatever happens. Interceptors nest.
    """
    previous = vars(scheduler).get("step")  # an outer interceptor, or nothing
    scheduler.step = _Interceptor(scheduler, around)
    try:
        yield
    finally:
        if previous is None:
            del scheduler.step
        else:
            scheduler.step = previous


@contextmanager
def tap_x0(
    scheduler: Scheduler, on_x0: OnX0, layout: Layout = "BCFHW", grid: Grid | None = None
) -> Iterator[None]:
    """While open, call `on_x0(step, timestep, x0_BCFHW)` just before every denoising step.

    x0 is computed from the inputs of `scheduler.step`, before the scheduler advances; the scheduler's step
    then runs untouched, so a tapped run is bit-identical to an untapped one. Where a step is several calls of
    `scheduler.step` (Heun), the first counts and the others are not heard. Steps count from 0 (the
    noisiest) from the moment the tap is opened: open one tap for one call of the pipeline. An
    exception in `on_x0` stops the sampling; the scheduler is restored whatever happens.
    """
    step = 0

    def around(call: StepCall) -> Any:
        nonlocal step
        if call.opens_step:
            on_x0(step, call.timestep, call.x0(layout, grid))
            step += 1
        return call.proceed()

    with intercept_step(scheduler, around):
        yield


class _Interceptor:
    """Stands in for `scheduler.step`.

    A copy of the scheduler gets a step of its own, which is not intercepted: LTX-2 copies its scheduler for
    the sound while it is being tapped, and the sound must neither be heard nor step the video's scheduler.
    """

    def __init__(self, scheduler: Scheduler, around: Callable[[StepCall], Any]) -> None:
        # Keeps the signature: pipelines inspect it to decide whether to pass `eta` and `generator`.
        functools.update_wrapper(self, scheduler.step)
        self._scheduler = scheduler
        self._original = scheduler.step
        self._signature = inspect.signature(scheduler.step)
        self._around = around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = self._signature.bind(*args, **kwargs).arguments
        proceed = functools.partial(self._original, *args, **kwargs)
        return self._around(StepCall(self._scheduler, arguments, proceed))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._original, memo)  # a method is bound to the copy of its object


def _off(value: Any) -> bool:
    return value is None or (not isinstance(value, Tensor) and value == 0)
