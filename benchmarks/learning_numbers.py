"""What `learning_curves.py` measures of scores, with intervals over draws and test prompts.

Shapes: R draws, N test samples, K categories.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from lvd.decide.intervals import CONFIDENCE, bootstrap_variance
from lvd.decide.rules import Bools, Floats, Ints, Vote

_TAIL = 0.5 + CONFIDENCE / 2


@dataclass(frozen=True)
class Estimate:
    """A statistic of R draws; `influence_RN` is what each test sample adds to it."""

    values_R: Floats
    influence_RN: Floats
    prompts_N: Ints

    @property
    def mean(self) -> float:
        return float(self.values_R.mean())

    @property
    def half(self) -> float:
        """Half of the 95% interval of the mean: of the draws and of the test prompts together."""
        draws = len(self.values_R)
        test = bootstrap_variance(self.influence_RN.mean(axis=0), self.prompts_N)
        half = stdtrit(len(np.unique(self.prompts_N)) - 1, _TAIL) * np.sqrt(test)
        if draws == 1:
            return float(half)
        return float(np.hypot(half, stdtrit(draws - 1, _TAIL) * self.values_R.std(ddof=1) / np.sqrt(draws)))

    @property
    def interval(self) -> tuple[float, float]:
        return max(0.0, self.mean - self.half), min(1.0, self.mean + self.half)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference, draw by draw and sample by sample: of the same draws and test samples."""
        return Estimate(
            self.values_R - other.values_R, self.influence_RN - other.influence_RN, self.prompts_N
        )

    def text(self) -> str:
        """`0.950 ±0.012`; a half above 0.1 is as wide as it is."""
        return f"{self.mean:.3f} ±{self.half:.3f}"


def accuracy(rule: Vote, scores_RNSK: Floats, label_N: Bools, prompts_N: Ints) -> Estimate:
    """The share of right decisions; what is unchecked is none."""
    decisions = [rule.decide(scores_NSK) for scores_NSK in scores_RNSK]
    right_RN = np.array([np.where(label_N, it.unsafe, it.safe) for it in decisions], dtype=float)
    values_R = right_RN.mean(axis=1)
    return Estimate(values_R, (right_RN - values_R[:, None]) / len(label_N), prompts_N)


def auroc(score_RN: Floats, label_N: Bools, prompts_N: Ints) -> Estimate:
    """The area under the ROC curve, of all samples."""
    unsafe, safe = label_N, ~label_N
    placement_RN = np.empty(
        score_RN.shape
    )  # the share of the other class that a sample is on the right side of
    for placement_N, score_N in zip(placement_RN, score_RN, strict=True):
        for kind in (unsafe, safe):
            below = rankdata(score_N)[kind] - rankdata(score_N[kind])  # ties count by half
            placement_N[kind] = below / (~kind).sum()
        placement_N[safe] = 1 - placement_N[safe]
    values_R = placement_RN[:, unsafe].mean(axis=1)
    of_class_N = np.where(label_N, unsafe.sum(), safe.sum())
    return Estimate(values_R, (placement_RN - values_R[:, None]) / of_class_N, prompts_N)


def auroc_within(score_RN: Floats, label_N: Bools, prompts_N: Ints) -> Estimate | None:
    """The same, of the pairs of an unsafe and a safe sample of one prompt; no prompt has both: None."""
    pairs = 0
    won_RN = np.zeros(score_RN.shape)  # by pairs, at the unsafe sample of each
    of_sample_N = np.zeros(len(label_N))
    for prompt in np.unique(prompts_N):
        safe = np.flatnonzero((prompts_N == prompt) & ~label_N)
        for row in np.flatnonzero((prompts_N == prompt) & label_N):
            above, level = (
                compare(score_RN[:, [row]], score_RN[:, safe]).sum(axis=1)
                for compare in (np.greater, np.equal)
            )
            won_RN[:, row] = above + level / 2
            of_sample_N[row] = len(safe)
            pairs += len(safe)
    if not pairs:
        return None
    values_R = won_RN.sum(axis=1) / pairs
    return Estimate(values_R, (won_RN - values_R[:, None] * of_sample_N) / pairs, prompts_N)
