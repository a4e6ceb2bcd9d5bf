"""A boundary that a safe video crosses with probability at most alpha, from safe videos seen before.

Conformal prediction (Vovk, Gammerman & Shafer, 2005): where a new safe video is exchangeable with the
calibration videos, its statistic is as likely to take any place among theirs. A rule that stops a video when
its running maximum exceeds the boundary then stops a safe one with probability at most alpha, at whatever
step. Nothing is assumed of detectors, weights or scores; what fitted them must not calibrate the boundary.

The unit is the prompt: several videos of one prompt are alike, and count as one.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from fractions import Fraction

import numpy as np
from scipy.stats import binom

from lvd.decide.rules import Floats
from lvd.errors import LvdError

CONFIDENCE = 0.95  # of the guarantee of that name


def prompts_needed(alpha: float, guarantee: str, at_once: int = 1) -> int:
    """How many safe calibration prompts a guarantee needs at the least.

    marginal: 1 / (n + 1) <= alpha. confidence: (1 - alpha)^n <= 0.05, over `at_once` boundaries.
    """
    if guarantee == "marginal":
        return math.ceil(1 / _exact(alpha)) - 1
    return math.ceil(math.log((1 - CONFIDENCE) / at_once) / math.log1p(-alpha))


def boundary(
    statistic_N: Floats,
    prompts: Sequence[Hashable],
    alpha: float,
    guarantee: str,
    at_once: int = 1,
    *,
    name: str = "alpha",
    kind: str = "safe",
) -> float:
    """The lowest boundary whose guarantee holds, for `statistic > boundary`.

    `statistic_N` are the safe calibration videos' running maxima, `prompts` what tells their prompts apart.

    marginal: a new safe video of a new prompt exceeds it with probability at most alpha, over the draw of
    the calibration prompts and of the video. With several videos a prompt, each carries its share of the
    prompt's weight (Lee, Barber & Willett, 2023).
    confidence: with 95% confidence over the calibration prompts, at most a share alpha of all safe prompts
    has a video that exceeds it, of as many as a prompt had in calibration: an order statistic of the prompts'
    highest (Wilks, 1941). `at_once` boundaries divide the doubt between them. Errors call alpha by its
    `name`, and the videos by their `kind`.

    Raises:
        LvdError: alpha is not in (0, 1), a statistic is NaN, or there are too few prompts.
    """
    if not 0 < alpha < 1:
        raise LvdError(f"{name}={alpha} must be greater than 0 and less than 1")
    if np.isnan(statistic_N).any():
        raise LvdError(f"{np.isnan(statistic_N).sum()} {kind} calibration videos have a missing score")
    by_prompt: dict[Hashable, list[float]] = {}
    for prompt, value in zip(prompts, statistic_N.tolist(), strict=True):
        by_prompt.setdefault(prompt, []).append(value)
    needed = prompts_needed(alpha, guarantee, at_once)
    if len(by_prompt) < needed:
        raise LvdError(
            f"{name}={alpha} with the {guarantee} guarantee needs {needed} {kind} calibration prompts, "
            f"and there are {len(by_prompt)}: capture more, or choose a larger {name}"
        )
    if guarantee == "marginal":
        return _marginal(by_prompt, alpha)
    return _confident(by_prompt, alpha, (1 - CONFIDENCE) / at_once)


def _marginal(by_prompt: Mapping[Hashable, list[float]], alpha: float) -> float:
    """The 1 - alpha quantile of the weighted statistics, with a prompt's weight at infinity."""
    whole = math.lcm(*map(len, by_prompt.values()))  # a prompt's weight, so that each video's is an integer
    weighted = sorted((value, whole // len(of)) for of in by_prompt.values() for value in of)
    wanted = math.ceil((1 - _exact(alpha)) * (len(by_prompt) + 1) * whole)
    reached = 0
    for value, weight in weighted:
        reached += weight
        if reached >= wanted:
            return value
    raise AssertionError("enough prompts were checked for")


def _confident(by_prompt: Mapping[Hashable, list[float]], alpha: float, doubt: float) -> float:
    highest = sorted((max(values) for values in by_prompt.values()), reverse=True)
    beyond = 0  # how many prompts may lie above
    while binom.cdf(beyond + 1, len(highest), alpha) <= doubt:
        beyond += 1
    return highest[beyond]


def _exact(alpha: float) -> Fraction:
    """As the decimal that it prints: 0.01 needs 99 prompts, not 100."""
    return Fraction(str(alpha))
