"""The paper's decision rule: of the first `eta` steps, at least `lam * eta` must be flagged.

A step is flagged when any category's score reaches its threshold. The decision is made at the first step
at which it can no longer change: the same answer as the full rule, sooner.

Shapes: N samples, S steps, K categories.
"""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

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
    """What the rule says of N samples; a sample that is neither unsafe nor safe is unchecked."""

    unsafe: Bools  # [N]
    safe: Bools  # [N]
    step: Ints  # [N] the step (from 0) at which the decision was fixed

    @property
    def checked(self) -> Bools:
        return self.unsafe | self.safe


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
    evidence = np.where(known, _log_odds(scores) - _log_odds(threshold), 0.0).sum(axis=0)
    ranked = sorted(np.flatnonzero(known.any(axis=0)).tolist(), key=lambda column: -evidence[column])
    return tuple(column for place, column in enumerate(ranked) if place == 0 or evidence[column] >= 0)


def _log_odds(probability: float | Floats) -> Floats:
    clipped = np.clip(np.asarray(probability, dtype=np.float64), 1e-7, 1 - 1e-7)
    log_odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return log_odds
