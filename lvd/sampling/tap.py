"""Listen to a sampler: the x0 of every denoising step, without changing what it samples."""

import asyncio
import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.layout import LatentSize, Layout, to_BCFHW
from lvd.sampling.noise import Scheduler, noise_level
from lvd.sampling.x0 import opens_step, predict_x0

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

    @property
    def noise_level(self) -> float:
        """How noisy x_t is, from 1 (noise alone) to 0; ask before `proceed`."""
        return noise_level(self.scheduler, self.timestep)

    def x_t(self, layout: Layout, size: LatentSize | None = None) -> Tensor:
        """The noisy latent `[B, C, F, H, W]` that the call steps from."""
        return to_BCFHW(self.arguments["sample"], layout, size)

    def x0(self, layout: Layout, size: LatentSize | None = None) -> Tensor:
        """The x0 `[B, C, F, H, W]` that the call is about to use; ask before `proceed`.

        Raises:
            LvdError: x0 is not known for this scheduler or these options.
        """
        for option in ("s_churn", "per_token_timesteps", "pred_original_sample"):  # x0 is then another
            if not _off(self.arguments.get(option)):
                raise LvdError(f"{type(self.scheduler).__name__}.step with {option} is not supported")
        given = self.arguments
        x0 = predict_x0(self.scheduler, given["model_output"], given["timestep"], given["sample"])
        return to_BCFHW(x0, layout, size)


@contextmanager
def intercept_step(
    scheduler: Scheduler, around: Callable[[StepCall], Any], *, wait_seconds: float = 0.0
) -> Iterator[None]:
    """While open, `scheduler.step(...)` is `around(call)`, which decides whether and how to proceed.

    One thread (in asyncio: one task) holds a scheduler at a time, whichever pipelines share it: two calls at
    once would hear each other's steps and miss their own. The holder's own interceptors nest, and each is
    taken away when it ends, in any order. A step that another thread makes meanwhile is refused there, and
    so is the holder's next one, since the scheduler is no longer where it left it.

    wait_seconds: how long to wait for a scheduler that another thread holds; math.inf waits without end.

    Raises:
        LvdError: the scheduler is held by another thread or task.
    """
    interceptor = _hold(scheduler, around, wait_seconds)
    try:
        yield
    finally:
        _let_go(interceptor, around)


@contextmanager
def tap_x0(
    scheduler: Scheduler, on_x0: OnX0, layout: Layout = "BCFHW", size: LatentSize | None = None
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
            on_x0(step, call.timestep, call.x0(layout, size))
            step += 1
        return call.proceed()

    with intercept_step(scheduler, around):
        yield


@dataclass(frozen=True)
class _Holder:
    """Whose steps an interceptor hears."""

    thread: int
    task: "asyncio.Task[Any] | None"

    @classmethod
    def current(cls) -> "_Holder":
        try:
            task = asyncio.current_task()
        except RuntimeError:  # no event loop runs in this thread
            task = None
        return cls(threading.get_ident(), task)


class _Interceptor:
    """Stands in for `scheduler.step` while its holder listens.

    A copy of the scheduler gets a step of its own, which is not intercepted: LTX-2 copies its scheduler for
    the sound while it is being tapped, and the sound must neither be heard nor step the video's scheduler.
    """

    def __init__(self, scheduler: Scheduler, holder: _Holder) -> None:
        # Keeps the signature: pipelines inspect it to decide whether to pass `eta` and `generator`.
        functools.update_wrapper(self, scheduler.step)
        self.scheduler = scheduler
        self.holder = holder
        self.listeners: list[Callable[[StepCall], Any]] = []  # as they came; the last hears a step first
        self.replaced = vars(scheduler).get("step")  # somebody else's wrapper, or nothing
        self._original = scheduler.step
        self._signature = inspect.signature(scheduler.step)
        self._disturbed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.listeners:  # left over within a wrapper that somebody put around it meanwhile
            return self._original(*args, **kwargs)
        name = type(self.scheduler).__name__
        if _Holder.current() != self.holder:
            self._disturbed = True
            raise LvdError(
                f"this {name} is held by a guarded or tapped call in another thread: "
                "give each pipeline a scheduler of its own, or call them one after the other"
            )
        if self._disturbed:
            raise LvdError(f"another thread stepped this {name} in the middle of the call")
        arguments = self._signature.bind(*args, **kwargs).arguments
        proceed = functools.partial(self._original, *args, **kwargs)
        for around in self.listeners:
            proceed = functools.partial(around, StepCall(self.scheduler, arguments, proceed))
        return proceed()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._original, memo)  # a method is bound to the copy of its object


# Schedulers that are held, by identity; an interceptor keeps its scheduler alive.
_held: dict[int, _Interceptor] = {}
_let_go_of_one = threading.Condition()


def _hold(scheduler: Scheduler, around: Callable[[StepCall], Any], wait_seconds: float) -> _Interceptor:
    holder = _Holder.current()

    def mine_or_free() -> bool:
        held = _held.get(id(scheduler))
        return held is None or held.holder == holder

    with _let_go_of_one:
        held = _held.get(id(scheduler))
        can_wait = held is None or held.holder.thread != holder.thread  # who waits for itself waits forever
        timeout = min(wait_seconds, threading.TIMEOUT_MAX) if can_wait else 0.0
        if not _let_go_of_one.wait_for(mine_or_free, timeout):
            raise LvdError(
                f"the {type(scheduler).__name__} is held by another guarded or tapped call: pipelines that "
                "share a scheduler (from_pipe does that) run one after the other, or each with its own"
            )
        interceptor = _held.get(id(scheduler))
        if interceptor is None:
            interceptor = _held[id(scheduler)] = _Interceptor(scheduler, holder)
            scheduler.step = interceptor
        interceptor.listeners.append(around)
        return interceptor


def _let_go(interceptor: _Interceptor, around: Callable[[StepCall], Any]) -> None:
    with _let_go_of_one:
        interceptor.listeners.remove(around)
        if interceptor.listeners:
            return
        scheduler = interceptor.scheduler
        if vars(scheduler).get("step") is interceptor:
            if interceptor.replaced is None:
                del scheduler.step
            else:
                scheduler.step = interceptor.replaced
        del _held[id(scheduler)]
        _let_go_of_one.notify_all()


def _off(value: Any) -> bool:
    return value is None or (not isinstance(value, Tensor) and value == 0)
