"""What several people who labelled the same samples make of them together, and how far they agree."""

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from fractions import Fraction

from lvd.latents.format import SAFE, UNLABELLED, Categories

Judgement = frozenset[str]  # the categories that one annotator gave a sample; none of them: safe


def consensus(
    judgements: Collection[Judgement], names: Sequence[str], agreement: float | None = None
) -> Categories:
    """What a sample is by most of its annotators; `UNLABELLED` where there is none, or they do not agree.

    Each category is decided by itself: the share `agreement` of the annotators, None more than half, must
    give it, or must not. A sample without a category is safe when as many say that it is: where each of
    three names another category, nobody has found it safe.
    """
    if not judgements:
        return UNLABELLED
    total = len(judgements)

    def decides(count: int) -> bool:
        return 2 * count > total if agreement is None else count >= Fraction(str(agreement)) * total

    given = {name: sum(name in judgement for judgement in judgements) for name in names}
    if not all(decides(count) or decides(total - count) for count in given.values()):
        return UNLABELLED
    categories = tuple(name for name in names if decides(given[name]))
    safe = decides(sum(not judgement for judgement in judgements))
    return categories if categories or safe else UNLABELLED


def alpha_by_category(
    judgements: Mapping[str, Mapping[str, Judgement]], names: Sequence[str]
) -> dict[str, float | None]:
    """Krippendorff's alpha of each category, given or not, and of `safe`; nobody shares a sample: {}.

    `judgements` are a sample's, by its annotators.
    """
    shared = [list(by.values()) for by in judgements.values() if len(by) > 1]
    if not shared:
        return {}
    alphas = {name: krippendorff_alpha([[name in one for one in unit] for unit in shared]) for name in names}
    return {**alphas, SAFE: krippendorff_alpha([[not one for one in unit] for unit in shared])}


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal values (Computing Krippendorff's Alpha-Reliability, 2011, section C).

    1 is agreement, 0 what chance would do. A unit has the values that it was given, by any number of
    annotators; with fewer than two of them it counts for nothing. None: all values are the same, or nothing
    counts, so that there is no chance to compare with.
    """
    counts = [Counter(values) for values in units if len(values) > 1]
    total = sum(map(Counter.total, counts))
    overall: Counter[Hashable] = sum(counts, Counter())
    expected = total**2 - sum(count**2 for count in overall.values())
    if expected == 0:
        return None
    observed = sum(
        (unit.total() ** 2 - sum(count**2 for count in unit.values())) / (unit.total() - 1) for unit in counts
    )
    return 1 - (total - 1) * observed / expected
