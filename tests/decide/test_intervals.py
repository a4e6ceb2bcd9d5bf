"""Intervals: known answers, scipy as the oracle, and how often they hold the truth in simulated splits."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap, norm
from sklearn.metrics import roc_auc_score

from lvd.decide.intervals import (
    at_most,
    auroc_interval,
    effective_samples,
    interval_method,
    method_in_words,
    prompt_numbers,
    rate_interval,
    share_in_words,
    wilson,
)

Interval = tuple[float, float]


def held(intervals: list[Interval], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


# ---- known answers


@pytest.mark.parametrize(("hits", "total"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (71, 80), (1, 1000)])
def test_wilson_is_scipys_bit_for_bit(hits: int, total: int) -> None:
    found = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    assert wilson(hits, total) == (found.low, found.high)


def test_wilson_by_hand() -> None:
    """1 of 10 (Wilson, 1927), worked out with z = 1.96: (0.2921 +- 0.2313) / 1.3842."""
    assert wilson(1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)


@pytest.mark.parametrize(
    ("prompts", "bound"), [(1, 0.95), (40, 0.0722), (56, 0.0521), (59, 0.0495), (300, 0.00994)]
)
def test_no_error_of_so_many_is_bounded_exactly_from_one_side(prompts: int, bound: float) -> None:
    assert at_most(prompts) == pytest.approx(bound, abs=5e-5)
    exact = binomtest(0, prompts, alternative="less").proportion_ci(0.95, method="exact")
    assert at_most(prompts) == pytest.approx(exact.high)
    assert at_most(prompts) <= 3 / prompts  # the rule of three


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((0, 40, 40), "0 of 40: at most 7.2% (one-sided, 95% confidence)"),
        ((40, 40, 40), "40 of 40: at least 92.8% (one-sided, 95% confidence)"),
        ((0, 200, 40), "0 of 200 (of 40 prompts): at most 7.2% (one-sided, 95% confidence)"),
        ((2, 56, 56), "2 of 56: 3.6% (95% interval 1.0% to 12.1%)"),
    ],
)
def test_a_share_is_said_with_its_interval_or_its_bound(counts: tuple[int, int, int], words: str) -> None:
    assert share_in_words(*counts, wilson(*counts[:2])) == words


def test_a_share_of_nothing_has_no_bound() -> None:
    assert share_in_words(0, 0, 0, None) == "0 of 0"


def test_prompts_decide_what_an_interval_comes_from() -> None:
    one, two = prompt_numbers("abcdef"), prompt_numbers("abaacc")
    assert two.tolist() == [0, 1, 0, 0, 2, 2]
    assert (interval_method(one), interval_method(two)) == ("wilson", "bootstrap over prompts")
    assert method_in_words(one) == "Wilson; every prompt has one sample"
    assert method_in_words(two).startswith("by a bootstrap over the 3 prompts")
    hits = np.array([True, False, True, True, False, False])
    assert rate_interval(hits, one) == wilson(3, 6)
    low, high = rate_interval(hits, two)
    assert low < wilson(3, 6)[0] < wilson(3, 6)[1] < high


def test_samples_that_only_repeat_their_prompts_are_worth_the_prompts() -> None:
    hits = np.repeat(np.arange(40) < 7, 5)
    low, high = rate_interval(hits, np.repeat(np.arange(40), 5))
    assert (low, high) == pytest.approx(wilson(7, 40), abs=0.01)


@pytest.mark.parametrize(
    ("every", "known"), [(False, (0.0, wilson(0, 40)[1])), (True, (wilson(40, 40)[0], 1.0))]
)
def test_without_any_spread_as_many_count_as_there_are_prompts(every: bool, known: Interval) -> None:
    """A bootstrap would say 0 to 0."""
    assert rate_interval(np.full(200, every), np.repeat(np.arange(40), 5)) == known


def test_the_spread_is_that_of_scipys_bootstrap_over_prompts() -> None:
    rng = np.random.default_rng(0)
    size = rng.integers(1, 7, 60)
    prompts = np.repeat(np.arange(60), size)
    hits = rng.random(size.sum()) < np.repeat(rng.beta(0.6, 2, 60), size)
    per_prompt = np.bincount(prompts, weights=hits)
    error = bootstrap(
        (per_prompt, size),
        lambda hits, size, axis: hits.sum(axis) / size.sum(axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=rng,
    ).standard_error
    share = hits.mean()
    expected = share * (1 - share) / error**2 * 59 / 60
    assert 60 < effective_samples(hits.astype(float), prompts) < size.sum()
    assert effective_samples(hits.astype(float), prompts) == pytest.approx(expected, rel=0.1)


def test_the_aurocs_spread_is_that_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(1)
    label = np.repeat([True, False], [40, 60])
    score = np.round(rng.normal(size=100) + label, 1)  # with ties
    prompts = np.concatenate([np.arange(40) // 2, np.arange(60) // 3 + 20])
    above = (score[:40, None] > score[40:]) + (score[:40, None] == score[40:]) / 2

    def area_of(drawn: np.ndarray) -> float:
        weight = np.bincount(drawn, minlength=40)[prompts]
        pairs = weight[:40].sum() * weight[40:].sum()
        return float(weight[:40] @ above @ weight[40:] / pairs)

    assert area_of(np.arange(40)) == pytest.approx(roc_auc_score(label, score))
    error = bootstrap(
        (np.arange(40),), area_of, vectorized=False, n_resamples=3000, method="percentile", rng=rng
    ).standard_error
    area = roc_auc_score(label, score)
    half = norm.ppf(0.975) * error / (area * (1 - area))
    odds = math.log(area / (1 - area))
    expected = [1 / (1 + math.exp(-(odds + side * half))) for side in (-1, 1)]
    assert auroc_interval(label, score, prompts) == pytest.approx(expected, abs=0.015)


def test_classes_that_are_apart_leave_room_below_one_by_the_number_of_prompts() -> None:
    label, score = np.repeat([True, False], 50), np.repeat([1.0, 0.0], 50)
    alone = auroc_interval(label, score, np.arange(100))
    by_ten = auroc_interval(label, score, np.repeat(np.arange(20), 5))
    assert alone[1] == by_ten[1] == 1.0
    assert 0.7 < by_ten[0] < alone[0] < 0.97


# ---- how often they hold the truth


def clustered(rng: np.random.Generator, prompts: int, seeds: int, rate: float, alike: float) -> np.ndarray:
    """Hits `[prompts * seeds]`: a prompt's own rate is a beta variable, `alike` the correlation in it."""
    of_prompt = rng.beta(rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1), size=prompts)
    return (rng.random((prompts, seeds)) < of_prompt[:, None]).ravel()


@pytest.mark.parametrize(("total", "rate"), [(112, 0.9), (112, 0.5), (56, 0.125), (280, 0.05), (500, 0.03)])
def test_independent_samples_intervals_hold_the_truth_in_95_of_100_splits(total: int, rate: float) -> None:
    hits = np.random.default_rng(2).binomial(total, rate, size=20_000)
    intervals = {int(count): wilson(int(count), total) for count in np.unique(hits)}
    assert 0.93 <= held([intervals[int(count)] for count in hits], rate) <= 0.97


@pytest.mark.parametrize("alike", [0.1, 0.7])
@pytest.mark.parametrize(("prompts", "seeds", "rate"), [(100, 5, 0.05), (60, 3, 0.1), (50, 5, 0.9)])
def test_several_seeds_a_prompt_hold_it_as_often(prompts: int, seeds: int, rate: float, alike: float) -> None:
    rng = np.random.default_rng(3)
    numbers = np.repeat(np.arange(prompts), seeds)
    splits = [clustered(rng, prompts, seeds, rate, alike) for _ in range(1500)]
    assert 0.93 <= held([rate_interval(hits, numbers) for hits in splits], rate) <= 0.97
    if alike > 0.3:  # as if they were independent
        assert held([wilson(int(hits.sum()), len(hits)) for hits in splits], rate) < 0.88


@pytest.mark.parametrize(("area", "seeds", "alike"), [(0.9, 1, 0.0), (0.9, 3, 0.5)])
def test_aurocs_intervals_hold_the_truth(area: float, seeds: int, alike: float) -> None:
    rng, prompts = np.random.default_rng(4), 60
    shift = norm.ppf(area) * math.sqrt(2)
    numbers = np.repeat(np.arange(2 * prompts), seeds)
    label = np.repeat([True, False], prompts * seeds)
    intervals = []
    for _ in range(500):
        own, of_prompt = rng.normal(size=(2 * prompts, seeds)), rng.normal(size=(2 * prompts, 1))
        score = (math.sqrt(alike) * of_prompt + math.sqrt(1 - alike) * own).ravel() + shift * label
        intervals.append(auroc_interval(label, score, numbers))
    assert 0.93 <= held(intervals, area) <= 0.97
