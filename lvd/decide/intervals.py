"""How far a measured rate may be off: 95% intervals, and what to say where no error was seen.

Samples of one prompt are alike, so the prompt is the unit. Where every prompt has one sample, samples are
independent and a rate has Wilson's interval. Where prompts have several, the spread of the rate over a
bootstrap over prompts says how many independent samples the rate is worth, and it has Wilson's interval at
that number. The bootstrap's own percentiles are not used: of a rate of 3%, on 30 to 100 prompts of 3 or 5
samples, they held the truth in 85 to 93 of 100 simulated splits, and these in 90 to 97. Nothing is drawn:
what endlessly many resamples come to is known in closed form.

Shapes: N samples, P prompts.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri
from scipy.stats import rankdata

from lvd.decide.rules import Bools, Floats, Ints

Interval = tuple[float, float]
Method = Literal["wilson", "bootstrap over prompts"]

CONFIDENCE = 0.95
_Z = float(ndtri(0.5 + CONFIDENCE / 2))


def prompt_numbers(prompts: Sequence[Hashable]) -> Ints:
    """Whose samples they are, as numbers `[N]` from 0."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(prompt, len(number)) for prompt in prompts], dtype=np.int64)


def interval_method(prompts_N: Ints) -> Method:
    """What a rate's interval over these samples comes from."""
    return "wilson" if len(np.unique(prompts_N)) == len(prompts_N) else "bootstrap over prompts"


def method_in_words(prompts_N: Ints) -> str:
    """The same for a reader."""
    prompts = len(np.unique(prompts_N))
    if interval_method(prompts_N) == "wilson":
        return "Wilson; every prompt has one sample"
    return (
        f"by a bootstrap over the {prompts} prompts, since samples of one prompt are alike: Wilson's at the "
        "number of independent samples that the spread between prompts leaves"
    )


def wilson(hits: float, total: float) -> Interval:
    """The Wilson 95% interval of a share (Wilson, 1927); `total` need not be a whole number."""
    share = hits / total
    denominator = 2 * (total + _Z**2)
    centre = (2 * total * share + _Z**2) / denominator
    half = _Z / denominator * math.sqrt(4 * total * share * (1 - share) + _Z**2)
    return (0.0 if hits == 0 else centre - half), (1.0 if hits == total else centre + half)


def rate_interval(hits_N: Bools, prompts_N: Ints) -> Interval:
    """The 95% interval of the share of hits, by prompts where any has several samples. There is a sample.

    Where all or none are hits, no spread can be seen: as many samples count as there are prompts, the fewest
    that there can be, since nothing tells that samples of one prompt differ.
    """
    total, hits = len(hits_N), int(hits_N.sum())
    if interval_method(prompts_N) == "wilson":
        return wilson(hits, total)
    worth = effective_samples(hits_N.astype(float), prompts_N)
    low, high = wilson(hits / total * worth, worth)
    return (0.0 if hits == 0 else low), (1.0 if hits == total else high)


def effective_samples(values_N: Floats, prompts_N: Ints) -> float:
    """How many independent samples their mean is worth: from the number of prompts up to that of samples."""
    total, prompts = len(values_N), len(np.unique(prompts_N))
    centred = values_N - values_N.mean()
    if prompts == total:
        return float(total)
    if prompts == 1 or not centred.any():
        return float(prompts)
    variance = bootstrap_variance(centred / total, prompts_N)
    return min(max(float((centred**2).mean()) / variance, prompts), total) if variance > 0 else float(total)


def bootstrap_variance(influence_N: Floats, prompts_N: Ints) -> float:
    """Of a statistic over a bootstrap over prompts, to first order and of endlessly many resamples.

    `influence_N` is what each sample adds to the statistic; a resample draws whole prompts.
    """
    _, prompt_N = np.unique(prompts_N, return_inverse=True)
    of_prompt = np.bincount(prompt_N, weights=influence_N)
    return float((of_prompt**2).sum() * len(of_prompt) / (len(of_prompt) - 1))


def auroc_interval(label_N: Bools, score_N: Floats, prompts_N: Ints) -> Interval:
    """The 95% interval of an AUROC, by the bootstrap over prompts; both classes are there, and no NaN.

    With one sample a prompt its variance is DeLong's (1988), with several Obuchowski's (1997). It is normal
    on the logit's scale (Pepe, 2003). Where that says nothing, since the classes are apart, it is Newcombe's
    score interval (2006, method 5), with as many samples of each class as prompts.
    """
    placement_N = np.empty(len(label_N))  # the share of the other class that a sample is on the right side of
    for kind in (label_N, ~label_N):
        below = rankdata(score_N)[kind] - rankdata(score_N[kind])  # of the other class; ties count by half
        placement_N[kind] = below / (~kind).sum()
    placement_N[~label_N] = 1 - placement_N[~label_N]
    area = float(placement_N[label_N].mean())
    of_class = {bool(kind): len(np.unique(prompts_N[label_N == kind])) for kind in (True, False)}
    variance = bootstrap_variance(
        (placement_N - area) / np.where(label_N, label_N.sum(), (~label_N).sum()), prompts_N
    )
    if not 0 < area < 1 or variance == 0:
        return _newcombe(area, of_class[True], of_class[False])
    odds, half = math.log(area / (1 - area)), _Z * math.sqrt(variance) / (area * (1 - area))
    return 1 / (1 + math.exp(-(odds - half))), 1 / (1 + math.exp(-(odds + half)))


def _newcombe(area: float, positive: int, negative: int) -> Interval:
    """The areas whose own standard error (Hanley & McNeil, 1982) reaches the one that was measured."""
    areas = np.linspace(0, 1, 10_001)
    half = (positive + negative) / 2 - 1
    more = 1 + half * ((1 - areas) / (2 - areas) + areas / (1 + areas))
    variance = areas * (1 - areas) * more / (positive * negative)
    inside: npt.NDArray[np.float64] = areas[(area - areas) ** 2 <= _Z**2 * variance]
    return min(float(inside.min()), area), max(float(inside.max()), area)


def at_most(prompts: int) -> float:
    """The one-sided exact 95% bound of an error's rate when none of so many independent ones was seen.

    The largest rate at which no error in n happens with probability 5%: 1 - 0.05^(1/n), about 3 / n (the rule
    of three).
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / prompts))


def share_in_words(hits: int, total: int, prompts: int, interval: Interval | None) -> str:
    """`2 of 56: 3.6% (95% interval 1.0% to 12.1%)`, and the bound where all or none are hits.

    `prompts` is of how many prompts the samples are; the bounds are by them. Nothing counts: `0 of 0`.
    """
    counted = f"{hits} of {total}" + _of_prompts(prompts, total)
    if interval is None:
        return counted
    if hits == 0:
        return f"{counted}: at most {at_most(prompts):.1%} (one-sided, 95% confidence)"
    if hits == total:
        return f"{counted}: at least {1 - at_most(prompts):.1%} (one-sided, 95% confidence)"
    return f"{counted}: {hits / total:.1%} (95% interval {interval[0]:.1%} to {interval[1]:.1%})"


def _of_prompts(prompts: int, total: int) -> str:
    if prompts == total:
        return ""
    return f" (of {prompts} prompt{'s' if prompts > 1 else ''})"
