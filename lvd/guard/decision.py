"""What a guard says of a sample: after each check a verdict, at the end a decision."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["block", "observe"]
Outcome = Literal["unsafe", "safe", "unchecked"]
Fault = Literal[
    "error",  # a detector, or what else a check runs, raised
    "malformed",  # a step out of its order, a shape that is not the capture's
    "not_finite",  # NaN, Inf or beyond float16, in a latent or an answer
    "late",  # a check took longer than its limit
    "incomplete",  # other steps or videos than there should be
    "sampler",  # the sampler failed, or gave up
]


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
    scores: tuple[tuple[float, ...], ...]  # P(unsafe) of each category at each step that the rule looked at
    seconds: float  # spent on checks while this sample was being sampled
    notes: tuple[str, ...] = ()  # what else one should know: a layout given by hand, a log that failed
    fault: Fault | None = None  # the kind of what went wrong with an unchecked sample; None of any other


@dataclass(frozen=True)
class StepCount:
    """The denoising steps of one sampling."""

    made: int
    saved: int  # not made, since all samples were blocked


@dataclass(frozen=True)
class Verdict:
    """What is known of one sample after a check."""

    outcome: Outcome | None  # None: not decided yet
    blocked: bool  # nothing of it may come out any more
    why: str  # in words, once it is decided
    scores: tuple[float, ...] | None  # P(unsafe) of each category at this step; None: it was not asked
