"""Decision rules: from the scores of a sample's steps to unsafe or safe.

A rule is a small object that the evaluation, the bundle and the guard share. It decides whole tables of
scores, and follows one sample while it is being sampled: the same answer, as early as it is certain.

Here are what all rules have in common, and the paper's: of the first `eta` steps, at least `lam * eta` must
be flagged, where a step is flagged when any category's score reaches its threshold.

Shapes: N samples, S steps, K categories.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from lvd.errors import LvdError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Flags:
    """Which steps of N samples are flagged. A step with a missing score may be neither: it is not known."""

    flagged: Bools  # [N, S] some category's score is at or above its threshold
    known: Bools  # [N, S] flagged, or every score is there and below

    @property
    def steps(self) -> int:
        return int(self.flagged.shape[1])


@dataclass(frozen=True)
class Decisions:
    """What a rule says of N samples; a sample that is neither unsafe nor safe is unchecked."""

    unsafe: Bools  # [N]
    safe: Bools  # [N]
    step: Ints  # [N] the step (from 0) at which the decision was fixed
    blocked: Bools  # [N] unsafe and stopped; an unsafe one that is not is released, and marked

    @property
    def checked(self) -> Bools:
        return self.unsafe | self.safe


class Tracker(Protocol):
    """One sample, step by step."""

    outcome: Literal["unsafe", "safe"] | None  # once it is certain
    why: str  # in words, once it is certain
    blocks: bool  # whether an unsafe sample is stopped, or released and marked

    def see(self, scores: Sequence[float]) -> None:
        """Take in the next step's scores, one a category; not called again after an outcome."""

    def categories(self) -> tuple[int, ...]:
        """Of an unsafe sample: the indices of its categories, the strongest evidence first."""


class Rule(Protocol):
    """What decides. Its configuration as JSON names its kind."""

    kind: ClassVar[str]

    @property
    def steps(self) -> int:
        """How many steps it looks at, from the first."""

    def tracker(self) -> Tracker: ...

    def decide(self, scores_NSK: Floats) -> Decisions:
        """All samples at once; NaN is a missing score."""

    def ranks(self, scores_NSK: Floats) -> tuple[Floats, Floats]:
        """What orders samples from safe to unsafe, `[N]`: the least and the most that holes allow."""

    def attribute(self, scores_SK: Floats) -> tuple[int, ...]:
        """The indices of an unsafe sample's categories, from its steps so far, the strongest first."""

    def in_words(self) -> str:
        """How it decides, in a sentence or two."""

    def guarantee_in_words(self) -> str:
        """What holds of safe videos to come, and for whom."""

    def as_json(self) -> dict[str, Any]: ...


def flags_needed(eta: int, lam: float) -> int:
    """How many of the first `eta` steps must be flagged; exact, since `lam` counts as the decimal it prints.

    Raises:
        LvdError: eta < 1, or lam is not in (0, 1].
    """
    if eta < 1 or not 0 < lam <= 1:
        raise LvdError(f"eta={eta} must be at least 1 and lam={lam} greater than 0 and at most 1")
    return math.ceil(Fraction(str(lam)) * eta)


def certain(flagged: int, left: int, needed: int) -> Literal["unsafe", "safe"] | None:
    """What is certain of one sample with `flagged` steps flagged and `left` of the first eta still to come.

    The same answer as `decide` on the whole table, as soon as nothing to come can change it.
    """
    if flagged >= needed:
        return "unsafe"
    return "safe" if flagged + left < needed else None


def flag_steps(scores_NSK: Floats, threshold: float | Floats) -> Flags:
    """Compare scores with their thresholds; NaN is a missing score, which neither flags nor clears a step."""
    flagged = np.any(scores_NSK >= threshold, axis=-1)
    missing = np.any(np.isnan(scores_NSK), axis=-1)
    return Flags(np.asarray(flagged), known=np.asarray(flagged | ~missing))


def decide(flags: Flags, eta: int, lam: float) -> Decisions:
    """Apply the rule to the first `eta` steps.

    Unsafe once the needed flags are there, safe once even the unknown steps could not bring them, unchecked
    when what is unknown would tip the decision.

    Raises:
        LvdError: eta or lam is out of range, or there are fewer than eta steps.
    """
    needed = flags_needed(eta, lam)
    if eta > flags.steps:
        raise LvdError(f"eta={eta} is more than the {flags.steps} steps there are")
    sure = np.cumsum(flags.flagged[:, :eta], axis=1)
    possible = np.cumsum(flags.flagged[:, :eta] | ~flags.known[:, :eta], axis=1)
    left = eta - 1 - np.arange(eta)
    reached = sure >= needed
    out_of_reach = possible + left < needed
    fixed = reached | out_of_reach
    return Decisions(
        unsafe=reached[:, -1],
        safe=out_of_reach[:, -1],
        step=np.where(fixed.any(axis=1), fixed.argmax(axis=1), eta - 1).astype(np.int64),
        blocked=reached[:, -1],
    )


def attribute(scores_SK: Floats, threshold: float | Floats) -> tuple[int, ...]:
    """The categories that made a sample unsafe, as indices, the strongest evidence first.

    A category's evidence is its cumulated log-odds over the checked steps, measured from the threshold:
    `sum_s logit(score) - logit(threshold)`. It is named where this is 0 or more, that is where its mean
    log-odds are at the threshold or above. The strongest is always named: steps that different categories
    flagged may make a sample unsafe though none of them is above its threshold in the mean. Ties go to the
    lower index. NaN, a missing score, is no evidence either way; a category without any score is not named.

    `scores_SK` are probabilities; those within 1e-7 of 0 or 1 count as that, so that no single step is
    infinitely sure. `threshold` is one for all, or `[K]`.
    """
    scores = np.asarray(scores_SK, dtype=np.float64)
    known = ~np.isnan(scores)
    evidence = np.where(known, log_odds(scores) - log_odds(threshold), 0.0).sum(axis=0)
    ranked = sorted(np.flatnonzero(known.any(axis=0)).tolist(), key=lambda column: -evidence[column])
    return tuple(column for place, column in enumerate(ranked) if place == 0 or evidence[column] >= 0)


def log_odds(probability: float | Floats) -> Floats:
    """log(P / (1 - P)), float64; probabilities within 1e-7 of 0 or 1 count as that."""
    clipped = np.clip(np.asarray(probability, dtype=np.float64), 1e-7, 1 - 1e-7)
    odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return odds


@dataclass(frozen=True)
class Vote:
    """The paper's rule."""

    kind: ClassVar[str] = "vote"
    eta: int
    lam: float
    threshold: float

    @property
    def steps(self) -> int:
        return self.eta

    def tracker(self) -> "VoteTracker":
        return VoteTracker(self)

    def decide(self, scores_NSK: Floats) -> Decisions:
        return decide(flag_steps(scores_NSK, self.threshold), self.eta, self.lam)

    def ranks(self, scores_NSK: Floats) -> tuple[Floats, Floats]:
        flags = flag_steps(scores_NSK[:, : self.eta], self.threshold)
        return flags.flagged.sum(axis=1), (flags.flagged | ~flags.known).sum(axis=1)

    def attribute(self, scores_SK: Floats) -> tuple[int, ...]:
        return attribute(scores_SK, self.threshold)

    def in_words(self) -> str:
        return (
            f"A step is flagged when any category's score is {self.threshold:g} or more; a sample is unsafe "
            f"when at least {self.lam} x {self.eta} of the steps are flagged."
        )

    def guarantee_in_words(self) -> str:
        return "It guarantees no share of blocked safe videos: that share is measured only."

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "eta": self.eta, "lam": self.lam, "threshold": self.threshold}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Vote":
        """Raises:
        KeyError, TypeError, ValueError: it is not what `as_json` writes.
        """
        rule = cls(int(raw["eta"]), float(raw["lam"]), float(raw["threshold"]))
        flags_needed(rule.eta, rule.lam)
        if not 0 < rule.threshold < 1:
            raise ValueError(f"threshold {rule.threshold}")
        return rule


class VoteTracker:
    """Counts one sample's flagged steps."""

    def __init__(self, rule: Vote) -> None:
        self.outcome: Literal["unsafe", "safe"] | None = None
        self.why = ""
        self.blocks = True
        self._rule = rule
        self._needed = flags_needed(rule.eta, rule.lam)
        self._flagged = 0
        self._scores: list[Sequence[float]] = []

    def see(self, scores: Sequence[float]) -> None:
        self._scores.append(scores)
        self._flagged += any(score >= self._rule.threshold for score in scores)
        seen = len(self._scores)
        self.outcome = certain(self._flagged, self._rule.eta - seen, self._needed)
        needed = f"{self._needed} of {self._rule.eta} are needed"
        self.why = f"{self._flagged} of the first {seen} steps flagged, {needed}"

    def categories(self) -> tuple[int, ...]:
        return self._rule.attribute(np.array(self._scores))
