"""The guard in any sampler: check x0 of each step, follow each sample's rule, say what is blocked.

    with guard.session(samples=3, steps=50) as session:
        for step in range(50):
            x0 = ...                            # what the sampler predicts, [B, C, F, H, W]
            session.check(step, x0)
            if session.stopped:
                break
            x = ...                             # the next latent
            session.blank(x)
    decisions = session.close()                 # one a sample: what is not `released` is withheld

It knows no pipeline, and no scheduler but one that `check_step` is given; a guard by noise level is told that
of each step, `session.check(step, x0, noise_level=...)`. Whatever goes wrong with a check makes its samples
`unchecked`, and so does a check that never came.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from lvd.detect.ensemble import Ensemble
from lvd.errors import LvdError
from lvd.guard.admission import refuse_mismatches
from lvd.guard.bundle import BundleInfo
from lvd.guard.decision import Decision, Fault, StepCount, Verdict
from lvd.guard.options import GuardOptions
from lvd.guard.watch import Watch
from lvd.sampling.caches import StepCache
from lvd.sampling.layout import Layout
from lvd.sampling.noise import Scheduler, Timestep
from lvd.sampling.order import StepOrder
from lvd.sampling.state import StateBefore
from lvd.sampling.tap import StepCall

# After each checked step, once what is blocked is known: (step, scores, preview). `scores` has P(unsafe) of
# each category at this step for each sample, or None where no detector was asked. `preview` has, by its row,
# x0 [C, F, H, W] of each sample that is not blocked, as a copy; it is None unless asked for.
OnStep = Callable[[int, list[tuple[float, ...] | None], dict[int, Tensor] | None], None]


@dataclass(frozen=True)
class Sampling:
    """What a session follows."""

    samples: int  # at once
    steps: int
    begins_late: bool  # the first steps of the scheduler's timesteps are left out
    mismatches: Sequence[str]  # how it differs from the bundle's capture, where that was allowed


class Session:
    """One sampling of several videos under guard, from the first step to the last; `Guard.session` opens it.

    It belongs to one thread. As a context it is closed at its end, and where an exception leaves it, nothing
    is released.
    """

    def __init__(
        self,
        info: BundleInfo,
        detectors_on: Callable[[torch.device], Ensemble],
        options: GuardOptions,
        sampling: Sampling,
        record: Callable[[Sequence[Decision], StepCount], list[Decision]],
        *,
        on_step: OnStep | None,
        preview: bool,
    ) -> None:
        self._info = info
        self._options = options
        self._steps = sampling.steps
        self._mismatches = list(sampling.mismatches)
        self._watch = Watch(info, detectors_on, options, sampling.samples, sampling.steps)
        self._order = StepOrder(sampling.steps, begins_late=sampling.begins_late)
        self._record = record
        self._on_step = on_step
        self._preview = preview
        self._checked: Tensor | None = None  # the x0 that a check has gone through, until it is reported
        self._befores: dict[int, StateBefore | StepCache] = {}  # by the identity of the part
        self._saved = 0  # steps that need not be made
        self._closed = False
        self._decisions: list[Decision] | None = None

    @property
    def blocked(self) -> list[int]:
        """The rows of which nothing may come out any more, now; with `lag`, by the steps before this one."""
        return self._watch.blocked

    @property
    def stopped(self) -> bool:
        """Whether all are blocked: there is nothing left to sample for."""
        return len(self.blocked) == len(self._watch)

    def check(
        self,
        step: int,
        x0_BCFHW: Tensor,
        x_t_BCFHW: Tensor | None = None,
        *,
        noise_level: float | None = None,
    ) -> list[Verdict]:
        """Look at the x0 that the sampler predicts at `step` (from 0), before the sampler goes on with it.

        x0_BCFHW: `[samples, C, F, H, W]` of any floating dtype, as the bundle's capture has it.
        x_t_BCFHW: the noisy latent it was predicted from, looked at for NaN and Inf alone.
        noise_level: sigma / (alpha + sigma) of the noisy latent alpha x0 + sigma noise: 1 is noise alone, 0
            none. Needed by a guard that goes by noise level; any other goes by `step`.

        Call it once for each step, in order. Returns a verdict a sample; with the guard's option `lag` that
        of the step before, but at the last step.

        Raises:
            LvdError: the session is closed, or `noise_level` is needed and missing. What else is wrong with a
                check makes its samples `unchecked`. What `on_step` raises goes through.
        """
        if self._options.by_noise_level and noise_level is None:
            raise LvdError(
                f"step {step} comes without its noise level, which the guard goes by (by_noise_level=True): "
                "check(step, x0, noise_level=...)"
            )
        with self._checking():
            self._watch.step += 1
            if step != self._watch.step:
                raise LvdError(f"step {step} came in its place: a step was skipped or repeated")
            if step >= self._steps:
                raise LvdError(f"the session is of {self._steps} steps")
            self._watch.look_at(x0_BCFHW, x_t_BCFHW)
            self._score(x0_BCFHW, lambda: noise_level)
        return self._report()

    def check_step(
        self, scheduler: Scheduler, model_output: Tensor, timestep: Timestep, x_t: Tensor, **options: Any
    ) -> list[Verdict]:
        """Look at the x0 that `scheduler.step(model_output, timestep, x_t, **options)` is about to use.

        Call it just before each `scheduler.step`: of a scheduler of diffusers whose x0 is known, after its
        `set_timesteps`, with latents in the bundle's layout. When the session ends and not all samples are
        released, what the scheduler holds of their latents is let go.

        Raises:
            LvdError: the session is closed, or the bundle was made for another scheduler.
        """
        arguments = {"model_output": model_output, "timestep": timestep, "sample": x_t, **options}
        if id(scheduler) not in self._befores:
            found = self._info.origin.scheduler_mismatches(scheduler)
            refuse_mismatches([], found, self._options)
            self._mismatches += found
            self.clear_when_withheld(scheduler)
        return self.check_call(StepCall(scheduler, arguments, proceed=_not_to_be_called))

    def check_call(self, call: StepCall) -> list[Verdict]:
        """The same of a call of `scheduler.step` that was intercepted."""
        with self._checking():
            opens_step = call.opens_step
            self._watch.step += opens_step
            self._order.check(call.scheduler, call.timestep, self._watch.step)
            layout, size = cast(Layout, self._info.origin.layout), self._info.origin.latent_shape[1:]
            x0 = call.x0(layout, size)
            self._watch.look_at(x0, call.x_t(layout, size))  # not in x0 where the network predicts x0 itself
            if opens_step:
                self._score(x0, lambda: call.noise_level)
        return self._report()

    def check_made(self, call: StepCall) -> None:
        """After an intercepted call that was checked: was it made as it was checked?"""
        try:
            self._order.check_set(call.scheduler)
        except LvdError as error:
            self.fail(f"step {self._watch.step}: {error}", fault="malformed")

    def blank(self, latent: Tensor) -> None:
        """Zeros over what is blocked, in place, so that a decoder never sees it.

        latent: the samples along the first axis; for the layout (BF)CHW, their frames.

        Raises:
            LvdError: it has another number of rows; all samples are then unchecked.
        """
        rows = self._rows()
        if len(latent) != rows:
            why = f"step {self._watch.step}: the sampler has {len(latent)} rows, not {rows}"
            self.fail(why, fault="malformed")
            raise LvdError(f"the latent has {len(latent)} rows, and the session {rows}")
        if blocked := self.blocked:
            latent.unflatten(0, (len(self._watch), -1))[blocked] = 0

    def blank_output(self, output: Any) -> bool:
        """The same in all that a `scheduler.step` returned: x_{t-1}, and x0 where there is one too.

        False where the samples cannot be told apart in it, so that all are unchecked.
        """
        rows = self._rows()
        if len(output[0]) != rows:
            why = f"step {self._watch.step}: the scheduler returned {len(output[0])} rows, not {rows}"
            self.fail(why, fault="malformed")
            return False
        for part in output.to_tuple() if hasattr(output, "to_tuple") else output:
            if isinstance(part, Tensor) and len(part) == rows:
                self.blank(part)
        return True

    def clear_when_withheld(self, *parts: Any, caching: Sequence[Any] = ()) -> None:
        """What these parts of a sampler (scheduler, guider) gather from now on is let go at the end.

        Unless all samples are released: what they hold then is of nothing that is withheld.

        caching: networks with a step cache, which is then emptied.
        """
        self._befores |= {id(part): StateBefore(part) for part in parts}
        self._befores |= {id(network): StepCache(network) for network in caching}

    def fail(self, why: str, rows: Sequence[int] | None = None, *, fault: Fault = "sampler") -> None:
        """Leave samples unchecked. What was stopped as unsafe stays so; what would be released does not."""
        self._watch.read()
        self._watch.fail(why, rows, fault=fault)

    def close(self, videos: int | None = None) -> list[Decision]:
        """The sampler has come to its end: did it do all that it should have? Record, and say what it is.

        videos: how many came out of it, where that can be counted. If they are not as many as the samples,
        they cannot be told apart, and none may be handed out.

        A second time returns the same decisions.

        Raises:
            LvdError: the decisions cannot be recorded, and the guard blocks: nothing may be handed out.
        """
        if not self._closed:
            made = self._watch.step + 1
            if made != self._steps:
                self.fail(f"the sampler made {made} steps, not {self._steps}", fault="incomplete")
            if self._watch.known_steps < self._info.rule.steps:
                needed = self._info.rule.steps
                why = f"{made} steps are too few to decide by: {needed} are needed"
                self.fail(why, self._watch.undecided, fault="incomplete")
            told_apart = videos is None or videos == len(self._watch)
            if not told_apart:
                why = f"the pipeline returned {videos} videos for {len(self._watch)} samples"
                self.fail(why, fault="incomplete")
            self._end(handed_out=told_apart)
        return self._recorded()

    def abort(self, why: str) -> list[Decision]:
        """The sampler did not come to its end: whatever the mode, nothing is handed out.

        Raises:
            LvdError: the decisions cannot be recorded, and the guard blocks.
        """
        if not self._closed:
            self.fail(why)
            self._end(handed_out=False)
        return self._recorded()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if kind is None:
            self.close()
        else:
            self.abort(f"the sampler raised {kind.__name__}")

    def _end(self, *, handed_out: bool) -> None:
        self._closed, all_released = True, False
        try:
            decisions = self._watch.decisions(self._mismatches, handed_out=handed_out)
            self._decisions = self._record(decisions, StepCount(self._watch.step + 1, self._saved))
            all_released = all(decision.released for decision in self._decisions)
        finally:
            if not all_released:
                with ExitStack() as each:  # one that fails keeps no other from it
                    for before in self._befores.values():
                        each.callback(before.give_back)

    def _recorded(self) -> list[Decision]:
        if self._decisions is None:
            raise LvdError("the session's decisions could not be recorded: nothing may be handed out")
        return self._decisions

    def _report(self) -> list[Verdict]:
        """After a check: a step that was checked is reported first."""
        x0, self._checked = self._checked, None
        self._saved = max(self._steps - self._watch.step - 1, 0) if self.stopped else 0
        if self._on_step is not None and x0 is not None:
            shown = [row for row in range(len(self._watch)) if row not in self.blocked]
            preview = {row: x0[row].clone() for row in shown} if self._preview else None
            self._on_step(self._watch.step, self._watch.scores(), preview)
        return self._watch.verdicts()

    def _rows(self) -> int:
        """How long the first axis of a latent is."""
        frames = self._info.origin.latent_shape[1] if self._info.origin.layout == "(BF)CHW" else 1
        return len(self._watch) * frames

    @contextmanager
    def _checking(self) -> Iterator[None]:
        if self._closed:
            raise LvdError("the session is closed: open one for each sampling")
        self._checked = None
        with self._watch.checking():
            yield

    def _score(self, x0: Tensor, noise_level: Callable[[], float | None]) -> None:
        self._watch.score(x0, noise_level)
        self._checked = x0


def _not_to_be_called() -> None:
    raise AssertionError("a checked step is made by the caller")
