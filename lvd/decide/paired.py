"""How two rates differ that were measured on the same samples: the difference, with its 95% interval.

Decisions on one sample are alike whoever makes them, so intervals of each rate alone say little about their
difference. Newcombe's (1998, method 10) is made of both rates' Wilson intervals and of how the two go
together. Samples of one prompt are alike, too: where prompts have several, the difference's spread over a
bootstrap over prompts, of endlessly many resamples, says how many independent samples it is worth.

Shapes: N samples.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from lvd.decide.intervals import effective_samples, wilson
from lvd.decide.rules import Bools, Ints


@dataclass(frozen=True)
class Difference:
    """Second minus first, of `n` samples; and how many only one of them has."""

    n: int
    value: float
    interval: tuple[float, float]
    only_first: int
    only_second: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def paired_difference(first_N: Bools, second_N: Bools, prompts_N: Ints) -> Difference | None:
    """The share of hits of the second minus that of the first, on the same samples; None: there is none.

    `prompts_N` are numbers that tell prompts apart.
    """
    if len(first_N) == 0:
        return None
    only_first, only_second = (int(each.sum()) for each in (first_N & ~second_N, ~first_N & second_N))
    worth = effective_samples(second_N.astype(float) - first_N, prompts_N)
    shares = [(a & b).mean() for a in (second_N, ~second_N) for b in (first_N, ~first_N)]
    low, high = newcombe(*(float(share) * worth for share in shares))
    value = (only_second - only_first) / len(first_N)
    return Difference(len(first_N), value, (low, high), only_first, only_second)


def newcombe(both: float, only_second: float, only_first: float, neither: float) -> tuple[float, float]:
    """The 95% interval of the second share minus the first, of paired counts, which need not be whole."""
    n = both + only_first + only_second + neither
    second, first = (both + only_second) / n, (both + only_first) / n
    (low_2, high_2), (low_1, high_1) = wilson(second * n, n), wilson(first * n, n)
    product = (both + only_second) * (only_first + neither) * (both + only_first) * (only_second + neither)
    together = both * neither - only_second * only_first
    if together > 0:
        together = max(together - n / 2, 0.0)  # the correction for continuity
    phi = together / math.sqrt(product) if product > 0 else 0.0

    def reach(second_side: float, first_side: float) -> float:
        return math.sqrt(max(0.0, second_side**2 - 2 * phi * second_side * first_side + first_side**2))

    value = second - first
    return value - reach(second - low_2, high_1 - first), value + reach(high_2 - second, first - low_1)
