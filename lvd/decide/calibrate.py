"""Fix a rule's free numbers on val, for a share of safe samples that may be blocked.

The vote's threshold is chosen so that the share holds on val. The sequential rule's boundary is calibrated,
so that the share holds for safe samples to come.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from lvd.decide.conformal import boundary
from lvd.decide.recipe import POLICIES
from lvd.decide.rules import Bools, Floats, flags_needed
from lvd.decide.sequential import Evidence, Sequential
from lvd.errors import LvdError


def highest_threshold(scores_NSK: Floats, eta: int, lam: float) -> Floats:
    """The highest threshold `[N]` at which the rule still calls each sample unsafe.

    It is the n-th largest of the first eta steps' highest scores, where n flagged steps are needed: all that
    the rule depends on, in one number a sample. Missing scores are the lowest possible.
    """
    highest_NS = np.where(np.isnan(scores_NSK[:, :eta]), -np.inf, scores_NSK[:, :eta]).max(axis=2)
    return np.asarray(np.sort(highest_NS, axis=1)[:, eta - flags_needed(eta, lam)])


def choose_threshold(scores_NSK: Floats, label: Bools, eta: int, lam: float, max_fpr: float) -> float:
    """The lowest threshold at which the rule blocks at most a share `max_fpr` of the safe samples.

    Midway between the sample that must just pass and the next one above it.

    Raises:
        LvdError: there is no safe sample, or no threshold up to 1 keeps to the share.
    """
    of_samples = highest_threshold(scores_NSK, eta, lam)
    safe = np.sort(of_samples[~label])[::-1]
    if len(safe) == 0:
        raise LvdError("no safe val sample: a threshold cannot be chosen by max_fpr")
    allowed = math.floor(Fraction(str(max_fpr)) * len(safe))
    if allowed >= len(safe):
        raise LvdError(f"max_fpr={max_fpr} lets every safe sample be blocked: give a smaller share")
    passing = float(safe[allowed])
    above = of_samples[of_samples > passing]
    threshold = (passing + (float(above.min()) if len(above) else 1.0)) / 2
    if not passing < threshold < 1:
        raise LvdError(
            f"no threshold blocks at most max_fpr={max_fpr} of the safe val samples at these scores"
        )
    return max(threshold, 1e-6)


def calibrate(
    evidence: Evidence,
    scores_NSK: Floats,
    prompts: Sequence[Hashable],
    names: Sequence[str],
    *,
    alpha: float,
    guarantee: str,
    policy: Mapping[str, str],
    shares: Mapping[str, float],
) -> Sequential:
    """The sequential rule whose boundaries hold `alpha`, from the scores of safe calibration samples.

    A category without a share of its own is one of those that share what is left of alpha: they have one
    boundary together, from the highest evidence among them. By the union bound, a safe sample crosses any
    boundary with probability at most alpha.

    Raises:
        LvdError: a category is unknown, the shares take all of alpha, or the guarantee needs more prompts.
    """
    for key, given in (("policy", policy), ("shares", shares)):
        for name in given:
            if name not in names:
                raise LvdError(f"{key}.{name}: there is no such category; there are {', '.join(names)}")
    for name, chosen in policy.items():
        if chosen not in POLICIES:
            raise LvdError(f"policy.{name}={chosen} must be one of {', '.join(POLICIES)}")
    policies = tuple(policy.get(name, "block") for name in names)
    for name in shares:
        if policy.get(name) == "allow":
            raise LvdError(f"shares.{name}: the category is allowed, and needs no part of alpha")
    own = dict(shares)
    common = [n for n, kind in zip(names, policies, strict=True) if kind != "allow" and n not in own]
    left = Fraction(str(alpha)) - sum(Fraction(str(share)) for share in own.values())
    if left < 0 or (common and left == 0):
        raise LvdError(
            f"shares of {', '.join(map(str, own.values()))} leave nothing of alpha={alpha} "
            f"for {', '.join(common) or 'anything else'}"
        )
    if not own and not common:
        raise LvdError("policy allows every category: there is nothing to decide")
    highest_NK = evidence.of(scores_NSK).max(axis=1)
    groups = [([name], own[name]) for name in own] + [(common, float(left))] * bool(common)
    boundaries: dict[str, float] = {}
    for group, share in groups:
        highest = highest_NK[:, [names.index(name) for name in group]].max(axis=1)
        found = boundary(highest, prompts, share, guarantee, at_once=len(groups))
        boundaries |= dict.fromkeys(group, found)
    uncalibrated = Sequential(
        evidence=evidence,
        boundary=tuple(boundaries.get(name, 0.0) for name in names),  # of an allowed one: never looked at
        policy=policies,
        alpha=alpha,
        guarantee=guarantee,
        prompts=len(set(prompts)),
    )
    return replace(uncalibrated, reference=_reference(uncalibrated, scores_NSK, prompts))


def with_release(
    rule: Sequential,
    safe_NSK: Floats,
    safe_prompts: Sequence[Hashable],
    unsafe_NSK: Floats,
    unsafe_prompts: Sequence[Hashable],
    miss: float,
) -> Sequential:
    """The rule with the highest release by which an unsafe sample is let go with probability at most `miss`.

    By conformal prediction, as the boundaries: what counts of an unsafe calibration sample is how low its
    evidence fell before it was stopped. The boundaries are fixed before, on the safe ones.

    Raises:
        LvdError: there are too few unsafe prompts for `miss`.
    """
    fallen = -rule.lowest(unsafe_NSK)
    lowest = -boundary(fallen, unsafe_prompts, miss, "marginal", name="miss", kind="unsafe")
    found = replace(rule, release=min(lowest, 0.0), miss=miss, unsafe_prompts=len(set(unsafe_prompts)))
    return replace(found, reference=_reference(found, safe_NSK, safe_prompts))


def _reference(rule: Sequential, safe_NSK: Floats, prompts: Sequence[Hashable]) -> tuple[float, ...]:
    """Margins of one video of each prompt, since they are alike.

    None that a boundary stands on: no live video that stays below it has that margin.
    """
    margins = rule.margins(safe_NSK).max(axis=(1, 2))
    of_prompt = dict(zip(prompts, margins.tolist(), strict=True))
    return tuple(sorted(margin for margin in of_prompt.values() if margin < 0))
