"""The paper's decision rule: of the first `eta` steps, at least `lam * eta` must be flagged.

A step is flagged when any category's score reaches its threshold. The decision is made at the first step
at which it can no longer change: the same answer as the full rule, sooner.

Shapes: N samples, S steps, K categories.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from lvd.errors import LvdError

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Decisions:
    """What the rule says of N samples."""

    unsafe: Bools  # [N]
    step: Ints  # [N] the step (from 0) at which the decision was fixed


def flags_needed(eta: int, lam: float) -> int:
    """How many of the first `eta` steps must be flagged; exact, since `lam` counts as the decimal it prints.

    Raises:
        LvdError: eta < 1, or lam is not in (0, 1].
    """
    if eta < 1 or not 0 < lam <= 1:
        raise LvdError(f"eta={eta} must be at least 1 and lam={lam} greater than 0 and at most 1")
    return math.ceil(Fraction(str(lam)) * eta)


def flag_steps(scores_NSK: Floats, threshold: float | Floats) -> Bools:
    """Steps `[N, S]` at which any category's score is >= its threshold; a missing score (NaN) flags nothing."""
    flagged: Bools = np.greater_equal(scores_NSK, threshold).any(axis=-1)
    return flagged


def decide(flags_NS: Bools, eta: int, lam: float) -> Decisions:
    """Apply the rule to the first `eta` columns.

    Raises:
        LvdError: eta or lam is out of range, or there are fewer than eta steps.
    """
    needed = flags_needed(eta, lam)
    if eta > flags_NS.shape[1]:
        raise LvdError(f"eta={eta} is more than the {flags_NS.shape[1]} steps there are")
    counts = np.cumsum(flags_NS[:, :eta], axis=1)
    left = eta - 1 - np.arange(eta)
    unsafe = counts[:, -1] >= needed
    fixed = (counts >= needed) | (counts + left < needed)
    return Decisions(unsafe=unsafe, step=fixed.argmax(axis=1).astype(np.int64))
