"""One guarded call, from step to step: check x0, follow each sample's rule, blank what is blocked.

Whatever goes wrong with a check makes its samples `unchecked`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lvd.decide.rules import Tracker
from lvd.errors import LvdError
from lvd.guard.bundle import BundleInfo
from lvd.sampling.layout import Layout
from lvd.sampling.tap import StepCall
from lvd.sampling.x0 import step_timesteps

Mode = Literal["block", "observe"]
Outcome = Literal["unsafe", "safe", "unchecked"]

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


class Stopped(BaseException):
    """Nothing of this batch will be released. Not an Exception: a pipeline must not catch it."""


@dataclass
class _Sample:
    """One sample while it is being sampled."""

    tracker: Tracker
    outcome: Outcome | None = None
    step: int | None = None
    why: str = ""
    scores: list[tuple[float, ...]] = field(default_factory=list)


class Watch:
    """One call of a pipeline, from the first step to the last."""

    def __init__(
        self,
        info: BundleInfo,
        *,
        rows: int,
        steps: int,
        begins_late: bool,
        detectors_on: Any,
        mode: Mode,
        fail_open: bool,
        limit_seconds: float | None,
    ) -> None:
        self._info = info
        self._samples = [_Sample(info.rule.tracker()) for _ in range(rows)]
        self._steps = steps
        self._begins_late = begins_late  # a video is only noised in part, and its first steps are left out
        self._detectors_on = detectors_on
        self._mode: Mode = mode
        self._fail_open = fail_open
        self._limit_seconds = limit_seconds
        self._timesteps: Tensor | None = None  # of the scheduler, from the first step to the last
        self._call = -1  # of scheduler.step; samplers of second order make two in a step
        self._step = -1
        self._seconds = 0.0

    def around(self, call: StepCall) -> Any:
        """Check a step, then let the scheduler make it; what is blocked does not come out of it."""
        started = time.perf_counter()
        self._call += 1
        try:
            self._check(call)
        except Exception as error:
            told = str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {error}"
            self.fail(f"step {self._step}: {told}")
        self._seconds += time.perf_counter() - started
        blocked = [row for row, sample in enumerate(self._samples) if self._blocks(sample)]
        if len(blocked) == len(self._samples):
            raise Stopped
        output = call.proceed()
        if blocked:
            self._blank(output, blocked)
        return output

    def _blank(self, output: Any, blocked: Sequence[int]) -> None:
        """Zeros over samples in what a step returned: x_{t-1}, and x0 where the scheduler returns it too."""
        frames = self._info.latent_shape[1] if self._info.layout == "(BF)CHW" else 1
        rows = len(self._samples) * frames
        if len(output[0]) != rows:  # the samples cannot be told apart
            self.fail(f"step {self._step}: the scheduler returned {len(output[0])} rows, not {rows}")
            raise Stopped
        for part in output.to_tuple() if hasattr(output, "to_tuple") else output:
            if isinstance(part, Tensor) and len(part) == rows:
                part.unflatten(0, (len(self._samples), frames))[blocked] = 0

    def fail(self, why: str, rows: Sequence[int] | None = None) -> None:
        """Leave samples unchecked. What was stopped as unsafe stays so; what would be released does not."""
        for row in range(len(self._samples)) if rows is None else rows:
            sample = self._samples[row]
            if sample.outcome in (None, "safe") or (sample.outcome == "unsafe" and not sample.tracker.blocks):
                sample.outcome, sample.why = "unchecked", why
                sample.step = self._step if self._step >= 0 else None

    def end(self, videos: int) -> bool:
        """The pipeline came back with so many videos: did it do all that it should have?

        False when the videos cannot be told apart, so that none may be handed out.
        """
        made = self._step + 1
        if made != self._steps:
            self.fail(f"the sampler made {made} steps, not {self._steps}")
        if made < self._info.rule.steps:
            undecided = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
            needed = self._info.rule.steps
            self.fail(f"{made} steps are too few to decide by: {needed} are needed", undecided)
        if videos != len(self._samples):
            self.fail(f"the pipeline returned {videos} videos for {len(self._samples)} samples")
        return videos == len(self._samples)

    def decisions(self, mismatches: tuple[str, ...], *, handed_out: bool) -> list[Decision]:
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
                mismatches=mismatches,
                scores=tuple(sample.scores),
                seconds=self._seconds,
                notes=notes,
            )
            for sample in self._samples
        ]

    def _blocks(self, sample: _Sample) -> bool:
        if self._mode == "observe":
            return False
        if sample.outcome == "unsafe":
            return sample.tracker.blocks
        return sample.outcome == "unchecked" and not self._fail_open

    def _check(self, call: StepCall) -> None:
        opens_step = call.opens_step
        self._step += opens_step
        self._check_order(call)
        layout, grid = cast(Layout, self._info.layout), self._info.latent_shape[1:]
        x0 = call.x0(layout, grid)
        expected = (len(self._samples), *self._info.latent_shape)
        if tuple(x0.shape) != expected:
            raise LvdError(f"x0 has the shape {tuple(x0.shape)}, not {expected}")
        x_t = call.x_t(layout, grid)  # not in x0 where the network predicts x0 itself
        for name, latent in (("x0", x0), ("x_t", x_t)):
            largest = latent.flatten(1).abs().amax(dim=1).tolist()  # NaN stays NaN
            bad = [row for row, value in enumerate(largest) if not value <= _FLOAT16_MAX]
            self.fail(f"step {self._step}: {name} is NaN, Inf or beyond float16", bad)
        if opens_step and self._step < self._info.rule.steps:
            open_rows = [row for row, sample in enumerate(self._samples) if sample.outcome is None]
            if open_rows:
                stored = x0.half()  # as a capture stores it
                all_open = len(open_rows) == len(self._samples)
                self._score(open_rows, stored if all_open else stored[open_rows])

    def _check_order(self, call: StepCall) -> None:
        timesteps = call.scheduler.timesteps
        if self._timesteps is None:
            self._timesteps = timesteps
        if timesteps is not self._timesteps:
            raise LvdError("the scheduler was set to other timesteps in the middle of the call")
        steps = len(step_timesteps(call.scheduler))
        if self._begins_late and steps > self._steps:
            timesteps = timesteps[(steps - self._steps) * getattr(call.scheduler, "order", 1) :]
            steps = self._steps
        if steps != self._steps or self._step >= steps or self._call >= len(timesteps):
            raise LvdError(f"the scheduler has {steps} steps, not {self._steps}, or one came again")
        expected = float(timesteps[self._call])
        if float(call.timestep) != expected:
            raise LvdError(
                f"timestep {float(call.timestep):g} where {expected:g} should come: "
                "a step was skipped or repeated"
            )

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
                self._count(self._samples[row], tuple(of_sample))
            else:
                self.fail(f"step {self._step}: a detector's logit is NaN or Inf", [row])

    def _count(self, sample: _Sample, scores: tuple[float, ...]) -> None:
        sample.scores.append(scores)
        sample.tracker.see(scores)
        if sample.tracker.outcome is not None:
            sample.outcome, sample.step, sample.why = sample.tracker.outcome, self._step, sample.tracker.why
