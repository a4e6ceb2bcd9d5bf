"""The sequential rule: its guarantee by simulation and against MAPIE, how it decides, its policy."""

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control.methods import compute_hoeffding_bentkus_p_value
from scipy.stats import binomtest, norm

from lvd.decide.calibrate import calibrate, with_release
from lvd.decide.conformal import boundary, prompts_needed
from lvd.decide.rules import log_odds
from lvd.decide.sequential import FADING, FALLING, Evidence, Sequential, fading_evidence
from lvd.errors import LvdError

STEPS, NAMES = 12, ("alpha", "beta", "gamma")


def sigmoid(odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-odds))


def scores_of(rng: np.random.Generator, count: int, column: int | None = None) -> np.ndarray:
    """Scores `[count, STEPS, 3]` as a sampler makes them: alike from step to step, and telling more later."""
    noise = rng.normal(size=(count, STEPS, 3)).cumsum(axis=1) / np.sqrt(np.arange(1, STEPS + 1))[:, None]
    signal = np.zeros((STEPS, 3))
    if column is not None:
        signal[:, column] = np.linspace(0.2, 5.0, STEPS)
    return sigmoid(1.5 * (noise + signal) - 1)


def labelled(rng: np.random.Generator, each: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [scores_of(rng, each, column) for column in (0, 1, 2, None, None, None)]
    categories = np.zeros((6 * each, 3), bool)
    for column in range(3):
        categories[column * each : (column + 1) * each, column] = True
    return np.concatenate(parts), categories


EVIDENCE = fading_evidence(STEPS, len(NAMES))


def calibrated(rng: np.random.Generator, prompts: int, **changes: Any) -> Sequential:
    options: dict[str, Any] = {"alpha": 0.05, "guarantee": "marginal", "policy": {}, "shares": {}, **changes}
    ids = [f"p{i}" for i in range(prompts)]
    return calibrate(EVIDENCE, scores_of(rng, prompts), ids, NAMES, **options)


def within(hits: int, runs: int, at_most: float) -> bool:
    """Whether a rate may be `at_most`, by the 99.9% interval of what was counted."""
    return bool(binomtest(hits, runs).proportion_ci(0.999, method="exact").low <= at_most)


# ---- the boundary


@pytest.mark.parametrize(
    ("alpha", "guarantee", "needed"),
    [
        (0.01, "marginal", 99),
        (0.05, "marginal", 19),
        (0.1, "marginal", 9),
        (0.05, "confidence", 59),
        (0.01, "confidence", 299),
    ],
)
def test_too_few_prompts_are_refused_with_the_number_that_is_needed(
    alpha: float, guarantee: str, needed: int
) -> None:
    assert prompts_needed(alpha, guarantee) == needed
    ids = [str(i) for i in range(needed)]
    statistic = np.arange(needed) / 7
    assert boundary(statistic, ids, alpha, guarantee) == statistic[-1]
    with pytest.raises(LvdError, match=f"{guarantee} guarantee needs {needed} .*and there are {needed - 1}"):
        boundary(statistic[1:], ids[1:], alpha, guarantee)
    with pytest.raises(LvdError, match=f"needs {needed} safe calibration prompts, and there are 1"):
        boundary(statistic, ["one"] * needed, alpha, guarantee)  # of one prompt: they are one unit


@given(
    n=st.integers(1, 400),
    alpha=st.decimals("0.001", "0.5", places=3).map(float),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_one_video_a_prompt_is_split_conformal_prediction(n: int, alpha: float, seed: int) -> None:
    """The ceil((n + 1)(1 - alpha))-th smallest (Vovk, Gammerman & Shafer, 2005)."""
    statistic = np.random.default_rng(seed).normal(size=n)
    rank = math.ceil((n + 1) * (1 - Fraction(str(alpha))))
    ids = [str(i) for i in range(n)]
    if rank > n:
        with pytest.raises(LvdError, match="needs"):
            boundary(statistic, ids, alpha, "marginal")
    else:
        assert boundary(statistic, ids, alpha, "marginal") == np.sort(statistic)[rank - 1]


@pytest.mark.parametrize(("n", "alpha"), [(59, 0.05), (120, 0.05), (300, 0.01), (500, 0.1), (1000, 0.01)])
def test_the_confident_boundary_is_the_lowest_that_learn_then_test_accepts(n: int, alpha: float) -> None:
    """MAPIE's p-value that the risk is above alpha, at every boundary there could be."""
    statistic = np.random.default_rng(n).normal(size=n)
    candidates = np.sort(statistic)
    risks = (statistic[None] > candidates[:, None]).mean(axis=1)
    p_values = compute_hoeffding_bentkus_p_value(risks, n, np.array([alpha]), binary=True)[:, 0]
    accepted = candidates[p_values <= 0.05]
    assert boundary(statistic, [str(i) for i in range(n)], alpha, "confidence") == accepted[0]


@pytest.mark.parametrize(
    ("prompts", "seeds", "alpha"), [(40, 1, 0.05), (100, 1, 0.01), (150, 1, 0.1), (40, 5, 0.05)]
)
def test_in_10000_draws_a_new_safe_video_crosses_as_often_as_alpha_says(
    prompts: int, seeds: int, alpha: float
) -> None:
    """Videos of one prompt are alike: a part of the statistic is the prompt's. A new one has a new prompt."""
    rng = np.random.default_rng(1)
    ids = [str(i) for i in range(prompts) for _ in range(seeds)]
    runs, crossed = 10_000, 0
    for _ in range(runs):
        statistic = (rng.normal(size=(prompts, 1)) + rng.normal(size=(prompts, seeds))).ravel()
        crossed += bool(rng.normal() + rng.normal() > boundary(statistic, ids, alpha, "marginal"))
    assert within(crossed, runs, alpha)
    if seeds == 1 and alpha > 3 / prompts:  # and no less often than it must: a prompt's weight is the cost
        assert not within(crossed, runs, alpha - 3 / prompts)


@pytest.mark.parametrize("seeds", [1, 5])
def test_in_95_of_100_calibrations_the_confident_boundary_holds_for_all_prompts(seeds: int) -> None:
    rng = np.random.default_rng(2)
    prompts, alpha, runs = 130, 0.05, 2000
    ids = [str(i) for i in range(prompts) for _ in range(seeds)]
    broken = 0
    for _ in range(runs):
        found = boundary(rng.normal(size=prompts * seeds), ids, alpha, "confidence")
        broken += bool(1 - norm.cdf(found) ** seeds > alpha)  # prompts with any video above
    assert within(broken, runs, 0.05)


def test_the_highest_of_one_prompts_videos_counts_for_the_confident_boundary() -> None:
    statistic = np.r_[np.zeros(58), [3.0, 1.0, 2.0]]
    ids = [str(i) for i in range(58)] + ["last"] * 3
    assert boundary(statistic, ids, 0.05, "confidence") == 3.0


def test_a_missing_score_or_a_senseless_alpha_calibrates_nothing() -> None:
    with pytest.raises(LvdError, match="1 safe calibration videos have a missing score"):
        boundary(np.array([math.nan] + [0.0] * 30), [str(i) for i in range(31)], 0.05, "marginal")
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(LvdError, match=f"alpha={alpha} must be greater than 0"):
            boundary(np.zeros(30), [str(i) for i in range(30)], alpha, "marginal")


# ---- the whole rule, on simulated grids


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 0.1, "policy": {"beta": "allow"}},
        {"alpha": 0.1, "shares": {"beta": 0.04}},
        {"alpha": 0.1, "shares": {"alpha": 0.02, "beta": 0.03, "gamma": 0.05}},
    ],
    ids=str,
)
def test_a_safe_sample_is_blocked_as_seldom_as_alpha_says(changes: dict[str, Any]) -> None:
    rng = np.random.default_rng(3)
    runs, fresh, blocked = 200, 25, 0
    for _ in range(runs):
        rule = calibrated(rng, 99, **changes)
        blocked += int(rule.decide(scores_of(rng, fresh)).blocked.sum())
    rate, alpha = blocked / (runs * fresh), changes.get("alpha", 0.05)
    # Samples of one calibration depend on each other: the spread of a beta variable, beside the binomial.
    spread = math.sqrt(alpha * (1 - alpha) / (100 * runs) + alpha * (1 - alpha) / (runs * fresh))
    assert rate <= alpha + 3.3 * spread


def test_it_catches_more_than_the_vote_at_the_same_share_of_blocked_safe_ones() -> None:
    from lvd.decide.calibrate import choose_threshold
    from lvd.decide.rules import Vote

    rng = np.random.default_rng(4)
    scores, categories = labelled(rng, 400)
    label = categories.any(axis=1)
    rule = calibrated(rng, 400)
    vote = Vote(
        8, 0.5, choose_threshold(scores, label, 8, 0.5, float(rule.decide(scores).blocked[~label].mean()))
    )
    assert rule.decide(scores).blocked[label].mean() > vote.decide(scores).blocked[label].mean() + 0.1


tables = st.integers(0, 2**32 - 1).map(
    lambda seed: scores_of(np.random.default_rng(seed), 5, int(seed % 4) if seed % 4 < 3 else None)
)


@given(
    tables,
    st.tuples(*[st.sampled_from(["block", "flag", "allow"])] * 3).filter(lambda p: set(p) != {"allow"}),
    st.floats(-3, 6),
    st.one_of(st.none(), st.floats(-6, 0)),
)
@settings(max_examples=150)
def test_step_by_step_it_decides_as_on_the_whole_table(
    scores: np.ndarray, policy: tuple[Any, ...], bar: float, release: float | None
) -> None:
    rule = Sequential(EVIDENCE, (bar, bar + 1, bar - 1), policy, 0.05, "marginal", 99)
    if release is not None:
        rule = replace(rule, release=release, miss=0.1, unsafe_prompts=9)
    whole = rule.decide(scores)
    margins = rule.margins(scores)
    for row, of_sample in enumerate(scores.tolist()):
        tracker = rule.tracker()
        for step, of_step in enumerate(of_sample):
            assert tracker.outcome is None
            tracker.see(of_step)
            assert tracker.margin == pytest.approx(margins[row, : step + 1].max(), abs=1e-9)
            if tracker.outcome is not None:
                break
        assert tracker.outcome == ("unsafe" if whole.unsafe[row] else "safe")
        assert (tracker.outcome == "unsafe" and tracker.blocks) == whole.blocked[row]
        assert step == whole.step[row]
        assert rule.attribute(scores[row, : step + 1]) == tracker.categories()
        crossed = {k for k in range(3) if (margins[row, : step + 1, k] > 0).any()}
        assert set(tracker.categories()) == crossed
        assert bool(crossed) == bool(whole.unsafe[row])


def test_a_step_reads_no_more_of_the_rule_than_its_own_weights() -> None:
    """Boundaries and policies are looked at once a sample, not once a step."""

    class Counted(tuple[Any, ...]):
        reads = 0

        def __iter__(self) -> Any:
            Counted.reads += 1
            return super().__iter__()

    rule = Sequential(EVIDENCE, Counted([9.0] * 3), Counted(["block"] * 3), 0.05, "marginal", 99)
    tracker = rule.tracker()
    before = Counted.reads
    for scores in scores_of(np.random.default_rng(0), 1)[0].tolist():
        tracker.see(scores)
    assert tracker.outcome == "safe"
    assert Counted.reads == before


def test_what_is_missing_leaves_a_sample_unchecked_unless_it_was_stopped_by_another_category() -> None:
    rng = np.random.default_rng(5)
    rule = calibrated(rng, 99)
    scores = np.concatenate([scores_of(rng, 50), scores_of(rng, 50, 1)])
    whole = rule.decide(scores)
    scores[:, 6, 0] = math.nan
    holed = rule.decide(scores)
    assert not holed.safe.any()
    assert (holed.blocked <= whole.blocked).all()
    assert holed.blocked[50:].mean() > 0.6
    assert (holed.checked == holed.blocked).all()


@given(tables)
def test_evidence_is_a_sum_in_which_older_steps_fade_and_later_sums_count_more(scores: np.ndarray) -> None:
    evidence = EVIDENCE.of(scores)
    for row, of_sample in enumerate(scores):
        found = np.zeros(len(NAMES))
        for step, of_step in enumerate(of_sample):
            found = FADING * found + np.clip(np.log(of_step) - np.log1p(-of_step), -7, 7)
            needed = 1 - (1 - FALLING) * step / (STEPS - 1)
            np.testing.assert_allclose(evidence[row, step], found / needed, rtol=1e-9, atol=1e-9)


@given(st.integers(1, 200), st.integers(1, 6), st.integers(0, 2**16))
def test_no_evidence_is_above_that_of_what_is_certain_from_the_first_step_on(
    steps: int, categories: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.choice([0.0, 0.5, 1.0], size=(3, steps, categories))
    scores[0] = 1.0
    evidence = fading_evidence(steps, categories).of(scores)
    of_certain = 7 * (1 - FADING**steps) / (1 - FADING) / (FALLING if steps > 1 else 1)
    assert evidence[0, -1] == pytest.approx(of_certain)
    assert (np.abs(evidence) <= evidence[0] + 1e-9).all()


def test_fewer_steps_than_the_rule_looks_at_decide_nothing() -> None:
    rule = calibrated(np.random.default_rng(0), 99)
    with pytest.raises(LvdError, match="the rule looks at 12 steps, and there are 5"):
        rule.decide(scores_of(np.random.default_rng(1), 3)[:, :5])


def test_one_wild_score_counts_as_no_more_than_its_step_may() -> None:
    certain = np.full((1, STEPS, 3), 0.5)
    certain[0, 0] = 1.0
    bounded = np.full((1, STEPS, 3), 0.5)
    bounded[0, 0] = sigmoid(np.array(7.0))
    np.testing.assert_allclose(EVIDENCE.of(certain), EVIDENCE.of(bounded), rtol=1e-9)
    assert log_odds(1.0) > 7


# ---- what a user may choose


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"policy": {"delta": "flag"}},
            "policy.delta: there is no such category; there are alpha, beta",
        ),
        ({"shares": {"delta": 0.01}}, "shares.delta: there is no such category"),
        ({"shares": {"alpha": 0.05}}, "shares of 0.05 leave nothing of alpha=0.05 for beta, gamma"),
        ({"shares": {"alpha": 0.03, "beta": 0.03, "gamma": 0.01}}, "leave nothing of alpha=0.05"),
        ({"policy": dict.fromkeys(NAMES, "allow")}, "policy allows every category"),
        ({"policy": {"beta": "allow"}, "shares": {"beta": 0.01}}, "shares.beta: the category is allowed"),
        ({"shares": {"alpha": 0.005}}, "alpha=0.005 .* needs 199 safe calibration prompts, and there are 99"),
        ({"guarantee": "confidence", "alpha": 0.01}, "needs 299 safe calibration prompts"),
    ],
)
def test_what_cannot_be_kept_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(LvdError, match=words):
        calibrated(np.random.default_rng(0), 99, **changes)


def test_a_category_to_flag_is_released_and_marked_and_one_to_allow_is_not_seen() -> None:
    rng = np.random.default_rng(8)
    scores = np.concatenate([scores_of(rng, 100, column) for column in range(3)])
    rule = calibrated(rng, 200, policy={"beta": "flag", "gamma": "allow"})
    found = rule.decide(scores)
    of_alpha, of_beta, of_gamma = found.blocked.reshape(3, 100).mean(axis=1)
    assert of_alpha > 0.8
    assert max(of_beta, of_gamma) < 0.2
    assert (found.unsafe & ~found.blocked)[100:200].mean() > 0.8
    assert found.unsafe[200:].mean() < 0.2


def test_a_share_of_its_own_moves_a_categorys_boundary_alone() -> None:
    rng = np.random.default_rng(9)
    scores = scores_of(rng, 400)
    ids = [str(i) for i in range(400)]
    options: dict[str, Any] = {"alpha": 0.06, "guarantee": "marginal", "policy": {}}
    strict, loose = (
        calibrate(EVIDENCE, scores, ids, NAMES, shares={"beta": share}, **options) for share in (0.01, 0.05)
    )
    assert strict.boundary[1] > loose.boundary[1]
    assert strict.boundary[0] == strict.boundary[2] < loose.boundary[0]


def test_it_is_the_same_rule_after_json() -> None:
    rng = np.random.default_rng(10)
    rule = calibrated(rng, 99, policy={"beta": "flag"})
    again = Sequential.from_json(json.loads(json.dumps(rule.as_json())), 3)
    assert again.as_json() == rule.as_json()
    scores = scores_of(rng, 300, 0)
    for one, other in zip(
        vars(rule.decide(scores)).values(), vars(again.decide(scores)).values(), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "change",
    [
        {"boundary": [1.0, 2.0]},
        {"boundary": [1.0, 2.0, math.nan]},
        {"policy": ["block", "block", "ignore"]},
        {"evidence": {}},
        {"evidence": {"weight_SK": [[1.0]], "scale_SK": [[1.0]], "offset_SK": [[1.0]]}},
        {"evidence": {"weight_SK": [], "scale_SK": [], "offset_SK": []}},
        {"reference": None},
    ],
    ids=str,
)
def test_what_is_not_such_a_rule_is_no_rule(change: dict[str, Any]) -> None:
    raw = {**calibrated(np.random.default_rng(11), 99).as_json(), **change}
    with pytest.raises((KeyError, TypeError, ValueError)):
        Sequential.from_json(raw, 3)


def test_the_reference_holds_one_video_a_prompt_of_those_that_were_not_stopped() -> None:
    rng = np.random.default_rng(12)
    scores = scores_of(rng, 120)
    ids = [f"p{i // 2}" for i in range(120)]
    rule = calibrate(EVIDENCE, scores, ids, NAMES, alpha=0.05, guarantee="marginal", policy={}, shares={})
    assert (rule.prompts, len(rule.reference)) == (60, pytest.approx(57, abs=3))
    assert max(rule.reference) < 0  # none that the boundary stands on
    assert set(rule.reference) <= set(rule.margins(scores).max(axis=(1, 2)).tolist())
    assert replace(rule, reference=()).boundary == rule.boundary
    assert isinstance(rule.evidence, Evidence)


# ---- safe from here on


def with_release_of(rng: np.random.Generator, rule: Sequential, prompts: int, miss: float) -> Sequential:
    safe, ids = scores_of(rng, 99), [str(i) for i in range(99)]
    unsafe = np.concatenate([scores_of(rng, prompts // 3, column) for column in range(3)])
    return with_release(rule, safe, ids, unsafe, [str(i) for i in range(len(unsafe))], miss)


def test_in_10000_draws_an_unsafe_sample_is_let_go_as_seldom_as_miss_says() -> None:
    rng = np.random.default_rng(11)
    rule = calibrated(rng, 99)
    runs, fresh, miss, let_go, checked = 400, 25, 0.1, 0, []
    for _ in range(runs):
        early = with_release_of(rng, rule, 39, miss)
        category = int(rng.integers(3))
        unsafe = early.decide(scores_of(rng, fresh, category))
        let_go += int((unsafe.safe & (unsafe.step < STEPS - 1)).sum())
        checked.append((early.decide(scores_of(rng, fresh)).step + 1).mean())
    rate = let_go / (runs * fresh)
    spread = math.sqrt(miss * (1 - miss) / (40 * runs) + miss * (1 - miss) / (runs * fresh))
    assert rate <= miss + 3.3 * spread
    assert rate > miss / 4  # and it is used
    assert np.mean(checked) < 0.8 * STEPS


def test_letting_go_blocks_no_more_safe_samples_and_changes_nothing_of_what_is_stopped_before() -> None:
    rng = np.random.default_rng(12)
    rule = calibrated(rng, 99)
    early = with_release_of(rng, rule, 39, 0.1)
    scores = np.concatenate([scores_of(rng, 300), scores_of(rng, 100, 1)])
    whole, released = rule.decide(scores), early.decide(scores)
    assert (released.blocked <= whole.blocked).all()
    assert (released.step[released.blocked] == whole.step[released.blocked]).all()
    assert (released.step <= whole.step).all()
    assert released.checked.all()
    assert early.boundary == rule.boundary


def test_too_few_unsafe_prompts_let_nothing_go() -> None:
    rng = np.random.default_rng(13)
    with pytest.raises(LvdError, match=r"miss=0\.02 .* needs 49 unsafe calibration prompts"):
        with_release_of(rng, calibrated(rng, 99), 39, 0.02)


def test_what_is_let_go_says_its_bound_and_is_the_same_after_json() -> None:
    rng = np.random.default_rng(14)
    rule = with_release_of(rng, calibrated(rng, 99), 39, 0.1)
    again = Sequential.from_json(json.loads(json.dumps(rule.as_json())), 3)
    assert again.as_json() == rule.as_json()
    assert "let go so with probability at most 0.1" in rule.in_words()
    assert "the 39 unsafe prompts of val" in rule.in_words()
    tracker, steps = again.tracker(), 0
    for scores in scores_of(rng, 1)[0].tolist():
        tracker.see(scores)
        steps += 1
        if tracker.outcome is not None:
            break
    assert (tracker.outcome, tracker.margin < 0) == ("safe", True)
    assert steps < STEPS
    assert f"after {steps} steps: an unsafe sample is let go so with probability at most 0.1" in tracker.why
    for wrong in ({"miss": None}, {"release": 1.0}, {"miss": 1.5}, {"release": math.inf}):
        with pytest.raises((ValueError, TypeError)):
            Sequential.from_json({**rule.as_json(), **wrong}, 3)
    old = {
        key: value
        for key, value in rule.as_json().items()
        if key not in ("release", "miss", "unsafe_prompts")
    }
    assert Sequential.from_json(old, 3).release is None
