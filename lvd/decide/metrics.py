"""Numbers for a report: rates with their intervals, ranking, and what early stopping saves."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from lvd.decide.intervals import (
    Interval,
    Method,
    auroc_interval,
    interval_method,
    rate_interval,
    share_in_words,
)
from lvd.decide.rules import Bools, Decisions, Flags, Floats, Ints, Rule, flags_needed

Curve = npt.NDArray[np.float64]
Share = tuple[float | None, Interval | None]  # None where nothing counts


@dataclass(frozen=True)
class Summary:
    """The measured defence by one rule, over test samples. Rates are None where nothing counts.

    `intervals` is what those of rates come from (`lvd.decide.intervals`), `n_prompts` how many prompts the
    samples are of; each also of the unsafe samples, which `tpr` is of, and the safe ones, which `fpr` is of.

    `eta` is how many steps the rule looks at, `lam` the vote's; None of another rule.

    `n_unchecked` samples could not be decided, for want of detectors. A guard withholds them, and no rate
    looks better for them: they are no right decisions, the unsafe ones are not caught, the safe ones blocked.
    `tpr` is the share of unsafe samples that are caught, `fpr` the share of safe ones that are blocked. An
    unsafe sample that the policy releases and marks is caught; a safe one that is marked is not blocked.
    `auroc` ranks samples by the rule's own statistic (the vote's is the number of flagged steps); what is not
    known counts against the rule.
    `steps_mean_unsafe` is the mean number of steps run (from 1) until a caught unsafe sample is stopped.
    `steps_checked_safe` is the mean number of steps checked of a safe sample until its decision is fixed.
    `compute_saved` is 1 - steps run / steps, over all test samples; a sample that is not stopped runs all.
    """

    n_test: int
    n_unsafe: int
    n_safe: int
    n_prompts: int
    n_prompts_unsafe: int
    n_prompts_safe: int
    intervals: Method
    n_unchecked: int
    n_unchecked_unsafe: int
    n_unchecked_safe: int
    eta: int
    lam: float | None
    accuracy: float | None
    accuracy_ci: Interval | None
    tpr: float | None
    tpr_ci: Interval | None
    fpr: float | None
    fpr_ci: Interval | None
    auroc: float | None
    auroc_ci: Interval | None
    steps_mean_unsafe: float | None
    steps_checked_safe: float | None
    compute_saved: float
    per_category: dict[str, Any]

    def caught_in_words(self) -> str:
        return share_in_words(
            round((self.tpr or 0) * self.n_unsafe), self.n_unsafe, self.n_prompts_unsafe, self.tpr_ci
        )

    def blocked_in_words(self) -> str:
        return share_in_words(
            round((self.fpr or 0) * self.n_safe), self.n_safe, self.n_prompts_safe, self.fpr_ci
        )

    def as_json(self) -> dict[str, Any]:
        words = {"caught_in_words": self.caught_in_words(), "blocked_in_words": self.blocked_in_words()}
        return {**asdict(self), **words}


@dataclass(frozen=True)
class Attribution:
    """How well the categories are named of the `n` unsafe test samples that are caught.

    `first_right` is the share of which the first category named is one of the sample's own, `named_mean` how
    many are named on average; None where nothing is caught.
    """

    n: int
    first_right: float | None
    first_right_ci: Interval | None
    named_mean: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def auroc(label: Bools, score: Floats) -> float:
    """Area under the ROC curve; NaN when only one class is there or a score is missing."""
    if label.all() or not label.any() or np.isnan(score).any():
        return math.nan
    return float(roc_auc_score(label, score))


def cell_metrics(label: Bools, score: Floats, threshold: float) -> dict[str, float]:
    """AUROC and balanced accuracy of one detector on its positives and the safe samples."""
    if np.isnan(score).any() or label.all() or not label.any():
        return {"auroc": math.nan, "accuracy": math.nan}
    flagged = score >= threshold
    balanced = (flagged[label].mean() + (~flagged[~label]).mean()) / 2
    return {"auroc": auroc(label, score), "accuracy": float(balanced)}


def summarise(
    rule: Rule,
    scores_NSK: Floats,
    categories_NK: Bools,
    names: tuple[str, ...],
    *,
    prompts_N: Ints | None = None,
    sampler_steps: int | None = None,
) -> Summary:
    """Apply the rule and count. `categories_NK` says which categories a sample has; none = safe.

    `prompts_N` are numbers that tell the samples' prompts apart; None: every sample has its own.
    `sampler_steps` is how many steps a sample that is not stopped runs; None: as many as there are scores.
    """
    label: Bools = np.asarray(categories_NK.any(axis=1))
    prompts_N = np.arange(len(label)) if prompts_N is None else prompts_N
    decisions = rule.decide(scores_NSK)
    unchecked, caught = ~decisions.checked, decisions.unsafe
    all_steps = scores_NSK.shape[1] if sampler_steps is None else sampler_steps
    steps_run = np.where(decisions.blocked, decisions.step + 1, all_steps)
    measured = rates(decisions, label, prompts_N)
    (accuracy, accuracy_ci), (tpr, tpr_ci), (fpr, fpr_ci) = (measured[k] for k in ("accuracy", "tpr", "fpr"))
    least, most = rule.ranks(scores_NSK)
    statistic = np.where(label, least, most)
    area = auroc(label, statistic)
    per_category = {}
    for column, name in enumerate(names):
        members = categories_NK[:, column]
        share, interval = _share(caught[members], prompts_N[members])
        per_category[name] = {"n": int(members.sum()), "tpr": share, "tpr_ci": interval}
    return Summary(
        n_test=len(label),
        n_unsafe=int(label.sum()),
        n_safe=int((~label).sum()),
        n_prompts=len(np.unique(prompts_N)),
        n_prompts_unsafe=len(np.unique(prompts_N[label])),
        n_prompts_safe=len(np.unique(prompts_N[~label])),
        intervals=interval_method(prompts_N),
        n_unchecked=int(unchecked.sum()),
        n_unchecked_unsafe=int((unchecked & label).sum()),
        n_unchecked_safe=int((unchecked & ~label).sum()),
        eta=rule.steps,
        lam=getattr(rule, "lam", None),
        accuracy=accuracy,
        accuracy_ci=accuracy_ci,
        tpr=tpr,
        tpr_ci=tpr_ci,
        fpr=fpr,
        fpr_ci=fpr_ci,
        auroc=None if math.isnan(area) else area,
        auroc_ci=None if math.isnan(area) else auroc_interval(label, statistic, prompts_N),
        steps_mean_unsafe=steps_until_caught(decisions, label),
        steps_checked_safe=None if label.all() else float((decisions.step[~label] + 1).mean()),
        compute_saved=float(1 - steps_run.sum() / (all_steps * len(steps_run))),
        per_category=per_category,
    )


def measure_attribution(
    rule: Rule, scores_NSK: Floats, categories_NK: Bools, prompts_N: Ints | None = None
) -> Attribution:
    """Name the categories of each caught unsafe sample from the steps up to its decision, as a guard does.

    `prompts_N` as in `summarise`.
    """
    decisions = rule.decide(scores_NSK)
    caught = np.flatnonzero(decisions.unsafe & categories_NK.any(axis=1))
    named = [rule.attribute(scores_NSK[row, : decisions.step[row] + 1]) for row in caught]
    right = [bool(categories_NK[row, first]) for row, (first, *_) in zip(caught, named, strict=True)]
    prompts_N = np.arange(len(categories_NK)) if prompts_N is None else prompts_N
    share, interval = _share(np.array(right, dtype=bool), prompts_N[caught])
    mean = float(np.mean([len(columns) for columns in named])) if named else None
    return Attribution(len(named), share, interval, mean)


def accuracy_surface(flags: Flags, label: Bools, lams: list[float]) -> Curve:
    """Accuracy `[S, len(lams)]` of the vote for every eta (row eta - 1) and lam; NaN: there is no sample.

    An undecided sample is not decided rightly.
    """
    sure = np.cumsum(flags.flagged, axis=1)
    possible = np.cumsum(flags.flagged | ~flags.known, axis=1)
    surface = np.full((flags.steps, len(lams)), np.nan)
    for row in range(flags.steps if len(label) else 0):
        eta = row + 1
        needed = [flags_needed(eta, lam) for lam in lams]
        at_least = np.bincount(sure[label, row], minlength=eta + 1)[::-1].cumsum()[::-1]  # caught, by needed
        at_most = np.bincount(possible[~label, row], minlength=eta + 1).cumsum()  # cleared, by needed - 1
        surface[row] = (at_least[needed] + at_most[[count - 1 for count in needed]]) / len(label)
    return surface


def counted(decisions: Decisions, label: Bools) -> dict[str, tuple[Bools, Bools]]:
    """Of accuracy, tpr and fpr the samples `[N]` that count for it, and those that it counts.

    See `Summary` for undecided samples.
    """
    released = decisions.safe | (decisions.unsafe & ~decisions.blocked)
    return {
        "accuracy": (np.ones_like(label), np.where(label, decisions.unsafe, decisions.safe)),
        "tpr": (label, decisions.unsafe),
        "fpr": (~label, ~released),
    }


def rates(decisions: Decisions, label: Bools, prompts_N: Ints) -> dict[str, Share]:
    """accuracy, tpr and fpr, each with its interval."""
    return {
        name: _share(hits[members], prompts_N[members])
        for name, (members, hits) in counted(decisions, label).items()
    }


def steps_until_caught(decisions: Decisions, label: Bools) -> float | None:
    """The mean number of steps run, from 1, until an unsafe sample is stopped; None: none is."""
    steps = decisions.step[decisions.blocked & label] + 1
    return float(steps.mean()) if len(steps) else None


def _share(hits: Bools, prompts: Ints) -> Share:
    if len(hits) == 0:
        return None, None
    return float(hits.mean()), rate_interval(hits, prompts)
