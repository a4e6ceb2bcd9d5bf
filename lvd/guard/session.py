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

It knows no pipeline, and no scheduler but one that `check_step` is given. Whatever goes wrong with a check
makes its samples `unchecked`, and so does a check that never came.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lvd.decide.rules import Tracker
from lvd.errors import LvdError
from lvd.guard.admission import refuse_mismatches, scheduler_mismatches
from lvd.guard.bundle import BundleInfo
from lvd.sampling.layout import Layout
from lvd.sampling.order import StepOrder
from lvd.sampling.state import StateBefore
from lvd.sampling.tap import StepCall
from lvd.sampling.x0 import Scheduler, Timestep

Mode = Literal["block", "observe"]
Outcome = Literal["unsafe", "safe", "unchecked"]

# After each checked step, once what is blocked is known: (step, scores, preview). `scores` has P(unsafe) of
# each category at this step for each sample, or None where no detector was asked. `preview` has, by its row,
# x0 [C, F, H, W] of each sample that is not blocked, as a copy; it is None unless asked for.
OnStep = Callable[[int, list[tuple[float, ...] | None], dict[int, Tensor] | None], None]

_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Decision:
    """What the guard says of one sample, and what it did about it."""

    outcome: Outcome
    step: int | None  # at which it was fixed; None: before the first
    categories: tuple[str, ...]  # that made it unsafe, the strongest first; one at least of an unsafe sample
    why: str
    mode: Mode  # that it was made in
    released: bool  # whether the video was handed out
    mismatches: tuple[str, ...]  # how the pipeline differs from the bundle's, where that was allowed
    scores: tuple[tuple[float, ...], ...]  # P(unsafe) of each category at each step that was checked
    seconds: float  # spent on checks while this sample was being sampled
    notes: tuple[str, ...] = ()  # what else one should know: a layout given by hand, a log that failed


@dataclass(frozen=True)
class Verdict:
    """What is known of one sample after a check."""

    outcome: Outcome | None  # None: not decided yet
    blocked: bool  # nothing of it may come out any more
    why: str  # in words, once it is decided
    scores: tuple[float, ...] | None  # P(unsafe) of each category at this step; None: it was not asked


@dataclass
class _Sample:
    """One sample while it is being sampled."""

    tracker: Tracker
    outcome: Outcome | None = None
    step: int | None = None
    why: str = ""
    scores: list[tuple[float, ...]] = field(default_factory=list)


class Session:
    """One sampling of several videos under guard, from the first step to the last; `Guard.session` opens it.

    It belongs to one thread. As a context it is closed at its end, and where an exception leaves it, nothing
    is released.
    """

    def __init__(
        self,
        info: BundleInfo,
        *,
        samples: int,
        steps: int,
        begins_late: bool,
        detectors_on: Callable[[torch.device], Any],
        mode: Mode,
        fail_open: bool,
        allow_mismatch: bool,
        limit_seconds: float | None,
        mismatches: Sequence[str],
        on_step: OnStep | None,
        preview: bool,
        record: Callable[[Sequence[Decision]], list[Decision]],
    ) -> None:
        self._info = info
        self._samples = [_Sample(info.rule.tracker()) for _ in range(samples)]
        self._steps = steps
        self._order = StepOrder(steps, begins_late=begins_late)
        self._detectors_on = detectors_on
        self._mode: Mode = mode
        self._fail_open = fail_open
        self._allow_mismatch = allow_mismatch
        self._limit_seconds = limit_seconds
        self._mismatches = list(mismatches)
        self._on_step = on_step
        self._preview = preview
        self._record = record
        self._step = -1
        self._seconds = 0.0
        self._asked: dict[int, tuple[float, ...]] = {}  # rows that were scored at this step
        self._checked: Tensor | None = None  # the x0 that a check has gone through, until it is reported
        self._befores: dict[int, StateBefore] = {}  # by the identity of the part
        self._closed = False
        self._decisions: list[Decision] | None = None

    @property
    def blocked(self) -> list[int]:
        """The rows of which nothing may come out any more, now."""
        return [row for row, sample in enumerate(self._samples) if self._blocks(sample)]

    @property
    def stopped(self) -> bool:
        """Whether all are blocked: there is nothing left to sample for."""
        return len(self.blocked) == len(self._samples)

    def check(self, step: int, x0_BCFHW: Tensor, x_t_BCFHW: Tensor | None = None) -> list[Verdict]:
        """Look at the x0 that the sampler predicts at `step` (from 0), before the sampler goes on with it.

        x0_BCFHW: `[samples, C, F, H, W]` of any floating dtype, as the bundle's capture has it.
        x_t_BCFHW: the noisy latent it was predicted from, looked at for NaN and Inf alone.

        Call it once for each step, in order. Returns a verdict a sample.

        Raises:
            LvdError: the session is closed. What is wrong with a check makes its samples `unchecked`. What
                `on_step` raises goes through.
        """
        with self._a_check():
            self._step += 1
            if step != self._step:
                raise LvdError(f"step {step} came in its place: a step was skipped or repeated")
            if step >= self._steps:
                raise LvdError(f"the session is of {self._steps} steps")
            self._look_at(x0_BCFHW, x_t_BCFHW)
            self._score_undecided(x0_BCFHW)
        return self._verdicts()

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
            found = scheduler_mismatches(self._info, scheduler)
            refuse_mismatches(found, allowed=self._allow_mismatch)
            self._mismatches += found
            self.clear_when_withheld(scheduler)
        return self.check_call(StepCall(scheduler, arguments, proceed=_not_to_be_called))

    def check_call(self, call: StepCall) -> list[Verdict]:
        """The same of a call of `scheduler.step` that was intercepted."""
        with self._a_check():
            opens_step = call.opens_step
            self._step += opens_step
            self._order.check(call.scheduler, call.timestep, self._step)
            layout, grid = cast(Layout, self._info.layout), self._info.latent_shape[1:]
            x0 = call.x0(layout, grid)
            self._look_at(x0, call.x_t(layout, grid))  # not in x0 where the network predicts x0 itself
            if opens_step:
                self._score_undecided(x0)
        return self._verdicts()

    def blank(self, latent: Tensor) -> None:
        """Zeros over what is blocked, in place, so that a decoder never sees it.

        latent: the samples along the first axis; for the layout (BF)CHW, their frames.

        Raises:
            LvdError: it has another number of rows; all samples are then unchecked.
        """
        rows = self._rows()
        if len(latent) != rows:
            self.fail(f"step {self._step}: the sampler has {len(latent)} rows, not {rows}")
            raise LvdError(f"the latent has {len(latent)} rows, and the session {rows}")
        if blocked := self.blocked:
            latent.unflatten(0, (len(self._samples), -1))[blocked] = 0

    def blank_output(self, output: Any) -> bool:
        """The same in all that a `scheduler.step` returned: x_{t-1}, and x0 where there is one too.

        False where the samples cannot be told apart in it, so that all are unchecked.
        """
        rows = self._rows()
        if len(output[0]) != rows:
            self.fail(f"step {self._step}: the scheduler returned {len(output[0])} rows, not {rows}")
            return False
        for part in output.to_tuple() if hasattr(output, "to_tuple") else output:
            if isinstance(part, Tensor) and len(part) == rows:
                self.blank(part)
        return True

    def clear_when_withheld(self, *parts: Any) -> None:
        """What these parts of a sampler (scheduler, guider) gather from now on is let go at the end.

        Unless all samples are released: what they hold then is of nothing that is withheld.
        """
        for part in parts:
            self._befores[id(part)] = StateBefore(part)

    def fail(self, why: str, rows: Sequence[int] | None = None) -> None:
        """Leave samples unchecked. What was stopped as unsafe stays so; what would be released does not."""
        for row in range(len(self._samples)) if rows is None else rows:
            sample = self._samples[row]
            if sample.outcome in (None, "safe") or (sample.outcome == "unsafe" and not sample.tracker.blocks):
                sample.outcome, sample.why = "unchecked", why
                sample.step = self._step if self._step >= 0 else None

    def close(self, videos: int | None = None) -> list[Decision]:
        """The sampler has come to its end: did it do all that it should have? Record, and say what it is.

        videos: how many came out of it, where that can be counted. If they are not as many as the samples,
        they cannot be told apart, and none may be handed out.

        A second time returns the same decisions.

        Raises:
            LvdError: the decisions cannot be recorded, and the guard blocks: nothing may be handed out.
        """
        if not self._closed:
            made = self._step + 1
            if made != self._steps:
                self.fail(f"the sampler made {made} steps, not {self._steps}")
            if made < self._info.rule.steps:
                undecided = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
                needed = self._info.rule.steps
                self.fail(f"{made} steps are too few to decide by: {needed} are needed", undecided)
            told_apart = videos is None or videos == len(self._samples)
            if not told_apart:
                self.fail(f"the pipeline returned {videos} videos for {len(self._samples)} samples")
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
            self._decisions = self._record(self._decide(handed_out=handed_out))
            all_released = all(decision.released for decision in self._decisions)
        finally:
            if not all_released:
                for before in self._befores.values():
                    before.give_back()

    def _recorded(self) -> list[Decision]:
        if self._decisions is None:
            raise LvdError("the session's decisions could not be recorded: nothing may be handed out")
        return self._decisions

    def _decide(self, *, handed_out: bool) -> list[Decision]:
        info = self._info
        by_hand = f"the layout {info.layout} of {info.pipeline_class} was given by hand, and is not proved"
        notes = (by_hand,) if info.layout_given else ()
        return [
            Decision(
                outcome=sample.outcome or "unchecked",
                step=sample.step,
                categories=tuple(info.category_names[column] for column in sample.tracker.categories())
                if sample.outcome == "unsafe"
                else (),
                why=sample.why,
                mode=self._mode,
                released=handed_out and not self._blocks(sample),
                mismatches=tuple(self._mismatches),
                scores=tuple(sample.scores),
                seconds=self._seconds,
                notes=notes,
            )
            for sample in self._samples
        ]

    def _verdicts(self) -> list[Verdict]:
        """After a check; a step that was checked is reported first."""
        x0, self._checked = self._checked, None
        if self._on_step is not None and x0 is not None:
            rows = range(len(self._samples))
            shown = [row for row in rows if row not in self.blocked] if self._preview else None
            self._on_step(
                self._step,
                [self._asked.get(row) for row in rows],
                None if shown is None else {row: x0[row].clone() for row in shown},
            )
        return [
            Verdict(sample.outcome, self._blocks(sample), sample.why, self._asked.get(row))
            for row, sample in enumerate(self._samples)
        ]

    def _blocks(self, sample: _Sample) -> bool:
        if self._mode == "observe":
            return False
        if sample.outcome == "unsafe":
            return sample.tracker.blocks
        return sample.outcome == "unchecked" and not self._fail_open

    def _rows(self) -> int:
        """How long the first axis of a latent is."""
        frames = self._info.latent_shape[1] if self._info.layout == "(BF)CHW" else 1
        return len(self._samples) * frames

    @contextmanager
    def _a_check(self) -> Iterator[None]:
        """Whatever goes wrong in it leaves all samples unchecked; its time counts."""
        if self._closed:
            raise LvdError("the session is closed: open one for each sampling")
        self._asked, self._checked = {}, None
        started = time.perf_counter()
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {error}"
            self.fail(f"step {self._step}: {told}")
        self._seconds += time.perf_counter() - started

    def _look_at(self, x0: Tensor, x_t: Tensor | None) -> None:
        expected = (len(self._samples), *self._info.latent_shape)
        if tuple(x0.shape) != expected:
            raise LvdError(f"x0 has the shape {tuple(x0.shape)}, not {expected}")
        for name, latent in (("x0", x0), ("x_t", x_t)):
            if latent is None:
                continue
            largest = latent.flatten(1).abs().amax(dim=1).tolist()  # NaN stays NaN
            bad = [row for row, value in enumerate(largest) if not value <= _FLOAT16_MAX]
            self.fail(f"step {self._step}: {name} is NaN, Inf or beyond float16", bad)

    def _score_undecided(self, x0: Tensor) -> None:
        """Ask the detectors about the samples that are not decided, where the rule looks at this step."""
        rows = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
        if rows and self._step < self._info.rule.steps:
            stored = x0.half()  # as a capture stores it
            self._score(rows, stored if len(rows) == len(self._samples) else stored[rows])
        self._checked = x0

    def _score(self, rows: Sequence[int], x0: Tensor) -> None:
        detectors = self._detectors_on(x0.device)
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(x0.device.type, enabled=False):
            logits = detectors(self._step, x0)
            if tuple(logits.shape) != (len(rows), len(self._info.category_names)):
                raise LvdError(f"the detectors answered with the shape {tuple(logits.shape)}")
            scores = logits.sigmoid().tolist()
            finite = torch.isfinite(logits).all(dim=1).tolist()
        seconds = time.perf_counter() - started
        if self._limit_seconds is not None and seconds > self._limit_seconds:
            self.fail(
                f"step {self._step}: the check took {seconds:.3f} s, limit {self._limit_seconds} s", rows
            )
            return
        for row, good, of_sample in zip(rows, finite, scores, strict=True):
            if good:
                self._count(row, tuple(of_sample))
            else:
                self.fail(f"step {self._step}: a detector's logit is NaN or Inf", [row])

    def _count(self, row: int, scores: tuple[float, ...]) -> None:
        sample = self._samples[row]
        self._asked[row] = scores
        sample.scores.append(scores)
        sample.tracker.see(scores)
        if sample.tracker.outcome is not None:
            sample.outcome, sample.step, sample.why = sample.tracker.outcome, self._step, sample.tracker.why


def _not_to_be_called() -> None:
    raise AssertionError("a checked step is made by the caller")
