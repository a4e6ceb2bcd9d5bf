"""Listen to a sampler: the x0 of every denoising step, without changing what it samples."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.layout import Layout, to_BCFHW
from lvd.sampling.x0 import Scheduler, predict_x0

OnX0 = Callable[[int, Tensor | float, Tensor], None]


@contextmanager
def tap_x0(scheduler: Scheduler, on_x0: OnX0, layout: Layout = "BCFHW") -> Iterator[None]:
    """While open, call `on_x0(step, timestep, x0_BCFHW)` just before every `scheduler.step`.

    x0 is computed from the step's own inputs, before the scheduler advances; the scheduler's step
    then runs untouched, so a tapped run is bit-identical to an untapped one. Steps count from 0 (the
    noisiest) from the moment the tap is opened: open one tap for one call of the pipeline. An
    exception in `on_x0` stops the sampling; the scheduler is restored whatever happens.
    """
    original = scheduler.step
    signature = inspect.signature(original)
    previous = vars(scheduler).get("step")  # an outer tap, or nothing
    step = 0

    # wraps() keeps the signature: pipelines inspect it to decide whether to pass `eta` and `generator`.
    @functools.wraps(original)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal step
        given = signature.bind(*args, **kwargs).arguments
        for option in ("s_churn", "per_token_timesteps"):  # would change x_t inside the step
            if option in given and not _off(given[option]):
                raise LvdError(f"{type(scheduler).__name__}.step with {option} is not supported")
        x0 = predict_x0(scheduler, given["model_output"], given["timestep"], given["sample"])
        on_x0(step, given["timestep"], to_BCFHW(x0, layout))
        step += 1
        return original(*args, **kwargs)

    scheduler.step = tapped
    try:
        yield
    finally:
        if previous is None:
            del scheduler.step
        else:
            scheduler.step = previous


def _off(value: Any) -> bool:
    return value is None or (not isinstance(value, Tensor) and value == 0)
