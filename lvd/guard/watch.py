"""The samples of one sampling: check their x0 at a step, follow each one's rule, keep what is known of it.

Whatever goes wrong with a check makes its samples `unchecked`. How a sampler is followed, and what is done
about a sample that is blocked, is the session's affair (`lvd.guard.session`).
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lvd.decide.rules import Tracker
from lvd.detect.ensemble import Ensemble
from lvd.detect.levels import TrainedLevels, TrainedSteps
from lvd.errors import LvdError
from lvd.guard.awaited import Awaited
from lvd.guard.bundle import BundleInfo
from lvd.guard.decision import Decision, Fault, Outcome, Verdict
from lvd.guard.options import GuardOptions

_FLOAT16_MAX = torch.finfo(torch.float16).max


@dataclass
class _Sample:
    """One sample while it is being sampled."""

    tracker: Tracker
    outcome: Outcome | None = None
    step: int | None = None
    why: str = ""
    fault: Fault = "incomplete"  # of one that is never decided, and of one that a fault left unchecked
    scores: list[tuple[float, ...]] = field(default_factory=list)


class Watch:
    """What is known of each sample of one sampling, row by row.

    With the option `lag`, what a check has found is taken in when the next one begins, so that nothing waits
    for a GPU, but for the last step's: that one ends with all that was found.

    step: the denoising step that is being checked, of `steps`; -1: none yet.
    """

    def __init__(
        self,
        info: BundleInfo,
        detectors_on: Callable[[torch.device], Ensemble],
        options: GuardOptions,
        samples: int,
        steps: int,
    ) -> None:
        self.step = -1
        self._info = info
        self._detectors_on = detectors_on
        self._options = options
        levels = TrainedLevels.of(info.origin.noise_levels) if options.by_noise_level else None
        self._trained = TrainedSteps(levels, steps)
        self._steps = steps
        self._samples = [_Sample(info.rule.tracker()) for _ in range(samples)]
        self._to_read: list[tuple[Awaited, Callable[[list[Any]], None]]] = []  # what checks have left
        self._asked: dict[int, tuple[float, ...]] = {}  # scores of this step, by row
        self._seconds = 0.0

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def blocked(self) -> list[int]:
        """The rows of which nothing may come out any more, now."""
        return [row for row, sample in enumerate(self._samples) if self._blocks(sample)]

    @property
    def undecided(self) -> list[int]:
        return [row for row, sample in enumerate(self._samples) if sample.outcome is None]

    @property
    def known_steps(self) -> int:
        """How many of the rule's steps the checks so far tell of."""
        return self._trained.known

    @contextmanager
    def checking(self) -> Iterator[None]:
        """One check: whatever goes wrong in it leaves all samples unchecked; its time counts."""
        self._asked = {}
        started = time.perf_counter()
        self.read()
        with self._failing():
            yield
        if self.step >= self._steps - 1:
            self.read()
        self._seconds += time.perf_counter() - started

    def read(self) -> None:
        """Take in what the checks so far have found."""
        left, self._to_read = self._to_read, []
        with self._failing():
            for awaited, take in left:
                take(awaited.read())

    def look_at(self, x0: Tensor, x_t: Tensor | None) -> None:
        """Samples with a value in x0 or x_t `[samples, C, F, H, W]` that is none are unchecked.

        Raises:
            LvdError: x0 has another shape than in the capture.
        """
        expected = (len(self._samples), *self._info.origin.latent_shape)
        if tuple(x0.shape) != expected:
            raise LvdError(f"x0 has the shape {tuple(x0.shape)}, not {expected}")
        largest = {
            name: latent.flatten(1).abs().amax(dim=1)  # NaN stays NaN
            for name, latent in (("x0", x0), ("x_t", x_t))
            if latent is not None
        }
        self._take(list(largest.values()), partial(self._judge_size, self.step, list(largest)))

    def score(self, x0: Tensor, noise_level: Callable[[], float | None]) -> None:
        """Ask the detectors about the samples that are not decided, where the rule learns from this step.

        x0: `[samples, C, F, H, W]`. `noise_level` gives that of x_t, which a guard by noise level asks for.

        Raises:
            LvdError: the noise level cannot be among the trained ones, or the detectors' answer has another
                shape than one logit for each sample and category.
        """
        if self._trained.known >= self._info.rule.steps:
            return
        told = self._trained.advance(self.step, noise_level)
        rows = self.undecided
        if not told or not rows:
            return
        stored = x0.half()  # as a capture stores it
        if len(rows) < len(self._samples):
            stored = torch.stack([stored[row] for row in rows])  # a list as index would wait for a GPU
        detectors = self._detectors_on(x0.device)
        started = time.perf_counter()
        with torch.inference_mode(), torch.autocast(x0.device.type, enabled=False):
            logits = detectors(self._trained.position, stored)
            if tuple(logits.shape) != (len(rows), len(self._info.category_names)):
                raise LvdError(f"the detectors answered with the shape {tuple(logits.shape)}")
            finite = torch.isfinite(logits).all(dim=1)
            scores = logits.sigmoid()
            by_step = [
                scores if each is logits else each.sigmoid()
                for each in self._trained.between(logits, rows, told)
            ]
            self._take([finite, scores, *by_step], partial(self._judge_scores, self.step, rows, started))

    def fail(
        self, why: str, rows: Sequence[int] | None = None, *, fault: Fault, step: int | None = None
    ) -> None:
        """Leave samples unchecked. What was stopped as unsafe stays so; what would be released does not.

        step: at which it was noticed; without it, now.
        """
        step = self.step if step is None else step
        for row in range(len(self._samples)) if rows is None else rows:
            sample = self._samples[row]
            if sample.outcome in (None, "safe") or (sample.outcome == "unsafe" and not sample.tracker.blocks):
                sample.outcome, sample.why, sample.fault = "unchecked", why, fault
                sample.step = step if step >= 0 else None

    def scores(self) -> list[tuple[float, ...] | None]:
        """P(unsafe) of each category at this step, of each sample; None: no detector was asked."""
        return [self._asked.get(row) for row in range(len(self._samples))]

    def verdicts(self) -> list[Verdict]:
        return [
            Verdict(sample.outcome, self._blocks(sample), sample.why, scores)
            for sample, scores in zip(self._samples, self.scores(), strict=True)
        ]

    def decisions(self, mismatches: Sequence[str], *, handed_out: bool) -> list[Decision]:
        """What is said of each sample at the end; nothing is released unless it is `handed_out`."""
        info, origin = self._info, self._info.origin
        by_hand = f"the layout {origin.layout} of {origin.pipeline_class} was given by hand"
        notes = (f"{by_hand}, and is not proved",) if origin.layout_given else ()
        return [
            Decision(
                outcome=sample.outcome or "unchecked",
                step=sample.step,
                categories=tuple(info.category_names[column] for column in sample.tracker.categories())
                if sample.outcome == "unsafe"
                else (),
                why=sample.why,
                mode=self._options.mode,
                released=handed_out and not self._blocks(sample),
                mismatches=tuple(mismatches),
                scores=tuple(sample.scores),
                seconds=self._seconds,
                notes=notes,
                fault=sample.fault if sample.outcome in (None, "unchecked") else None,
            )
            for sample in self._samples
        ]

    def _blocks(self, sample: _Sample) -> bool:
        if self._options.mode == "observe":
            return False
        if sample.outcome == "unsafe":
            return sample.tracker.blocks
        return sample.outcome == "unchecked" and not self._options.fail_open

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What is raised leaves all samples unchecked, after what was found before."""
        try:
            yield
        except Exception as error:
            self.read()
            if isinstance(error, LvdError):
                self.fail(f"step {self.step}: {error}", fault="malformed")
            else:
                self.fail(f"step {self.step}: {type(error).__name__}: {error}", fault="error")

    def _take(self, numbers: Sequence[Tensor], take: Callable[[list[Any]], None]) -> None:
        """Give `take` these numbers as lists: now, or with `lag` when they are read."""
        if self._options.lag:
            self._to_read.append((Awaited(numbers), take))
        else:
            take([each.tolist() for each in numbers])

    def _judge_size(self, step: int, names: Sequence[str], largest: Sequence[Sequence[float]]) -> None:
        for name, of_rows in zip(names, largest, strict=True):
            bad = [row for row, value in enumerate(of_rows) if not value <= _FLOAT16_MAX]
            why = f"step {step}: {name} is NaN, Inf or beyond float16"
            self.fail(why, bad, fault="not_finite", step=step)

    def _judge_scores(self, step: int, rows: Sequence[int], started: float, numbers: Sequence[Any]) -> None:
        """What the detectors have found at `step` of these samples."""
        seconds, limit = time.perf_counter() - started, self._options.limit_seconds
        if limit is not None and seconds > limit:
            why = f"step {step}: the check took {seconds:.3f} s, limit {limit} s"
            self.fail(why, rows, fault="late", step=step)
            return
        for row, good, asked, *of_steps in zip(rows, *numbers, strict=True):
            if self._samples[row].outcome is not None:
                continue  # its latent was found to be no number at this step
            if good:
                self._asked[row] = tuple(asked)
                self._follow(self._samples[row], step, of_steps)
            else:
                why = f"step {step}: a detector's logit is NaN or Inf"
                self.fail(why, [row], fault="not_finite", step=step)

    def _follow(self, sample: _Sample, step: int, of_steps: Iterable[Sequence[float]]) -> None:
        """Give a sample's rule the scores of the steps that a check tells of, until it is certain."""
        for scores in of_steps:
            sample.scores.append(tuple(scores))
            sample.tracker.see(scores)
            if sample.tracker.outcome is not None:
                sample.outcome, sample.step = sample.tracker.outcome, step
                sample.why = sample.tracker.why
                return
