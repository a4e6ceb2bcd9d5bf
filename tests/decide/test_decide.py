import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lvd.decide.calibrate import choose_threshold, highest_threshold
from lvd.decide.intervals import wilson
from lvd.decide.metrics import (
    accuracy_surface,
    auroc,
    cell_metrics,
    measure_attribution,
    rates,
    summarise,
)
from lvd.decide.rules import Flags, Vote, attribute, decide, flag_steps, flags_needed
from lvd.decide.sequential import Evidence, Sequential
from lvd.errors import LvdError

LAMS = [k / 100 for k in range(1, 101)]
EVERY_CELL = list(itertools.product(range(1, 51), range(1, 101)))
FLOAT_IS_OFF = [(25, 0.28, 7), (25, 0.56, 14), (50, 0.14, 7), (50, 0.28, 14), (50, 0.56, 28)]


def flags_of(text: str) -> Flags:
    """Rows of `#` flagged, `.` not flagged, `?` not known."""
    table = np.array([list(row) for row in text.split()])
    return Flags(table == "#", known=table != "?")


def scores_of(text: str) -> np.ndarray:
    """The same rows as scores `[N, S, 1]` of one category, at a threshold of 0.5."""
    rows = [[{"#": 0.9, ".": 0.1, "?": math.nan}[mark] for mark in row] for row in text.split()]
    return np.array(rows)[:, :, None]


@st.composite
def tables(draw: st.DrawFn, max_steps: int = 8, *, holes: bool = True) -> Flags:
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, max_steps)))
    flagged = draw(arrays(np.bool_, shape))
    known = flagged | draw(arrays(np.bool_, shape)) if holes else np.ones(shape, bool)
    return Flags(flagged, known)


lams = st.one_of(st.sampled_from(LAMS), st.floats(1e-3, 1.0))


def outcomes(flagged: list[bool], known: list[bool], unseen: int, bar: Fraction) -> set[bool]:
    """Whether the bar is reached, over all ways to fill in what is not known or not yet seen."""
    free = known.count(False) + unseen
    return {sum(flagged) + sum(rest) >= bar for rest in itertools.product((0, 1), repeat=free)}


# ---- how many flags


@pytest.mark.parametrize(("eta", "lam", "needed"), FLOAT_IS_OFF)
def test_flags_needed_is_right_where_floats_are_off(eta: int, lam: float, needed: int) -> None:
    assert math.ceil(lam * eta) != needed
    assert flags_needed(eta, lam) == needed


def test_flags_needed_is_exact_in_every_cell() -> None:
    for eta, hundredths in EVERY_CELL:
        exact = -(-Fraction(hundredths, 100) * eta // 1)
        assert flags_needed(eta, hundredths / 100) == exact, (eta, hundredths)


def test_flags_needed_is_the_least_count_that_reaches_the_bar() -> None:
    for eta, hundredths in EVERY_CELL:
        needed = flags_needed(eta, hundredths / 100)
        assert 100 * needed >= hundredths * eta > 100 * (needed - 1)
        assert 1 <= needed <= eta


@pytest.mark.parametrize(
    ("eta", "lam"), [(0, 0.5), (-1, 0.5), (5, 0.0), (5, -0.1), (5, 1.01), (5, math.nan), (5, math.inf)]
)
def test_parameters_out_of_range_are_refused(eta: int, lam: float) -> None:
    with pytest.raises(LvdError, match=r"eta=.* lam="):
        flags_needed(eta, lam)


def test_eta_beyond_the_steps_is_refused() -> None:
    with pytest.raises(LvdError, match="more than the 3 steps"):
        decide(flags_of("##."), eta=4, lam=0.5)


# ---- the rule, early and full


def test_the_full_rule_holds_in_every_cell() -> None:
    flagged = np.random.default_rng(0).random((60, 50)) < np.linspace(0, 1, 60)[:, None]
    flags = Flags(flagged, np.ones_like(flagged))
    for eta, hundredths in EVERY_CELL:
        decisions = decide(flags, eta, hundredths / 100)
        expected = 100 * flagged[:, :eta].sum(axis=1) >= hundredths * eta
        assert (decisions.unsafe == expected).all(), (eta, hundredths)
        assert (decisions.safe == ~expected).all()


@settings(max_examples=300)
@given(tables(), st.data(), lams)
def test_decision_and_step_agree_with_all_completions(flags: Flags, data: st.DataObject, lam: float) -> None:
    eta = data.draw(st.integers(1, flags.steps))
    bar = Fraction(str(lam)) * eta
    decisions = decide(flags, eta, lam)
    for row, (flagged, known) in enumerate(zip(flags.flagged.tolist(), flags.known.tolist(), strict=True)):
        certain = [
            outcomes(flagged[:seen], known[:seen], eta - seen, bar) for seen in range(1, eta + 1)
        ]  # after each step
        end = certain[-1]
        assert decisions.unsafe[row] == (end == {True})
        assert decisions.safe[row] == (end == {False})
        assert decisions.checked[row] == (len(end) == 1)  # unchecked exactly when both can be
        first = next((step for step, possible in enumerate(certain) if len(possible) == 1), eta - 1)
        assert decisions.step[row] == first


@settings(max_examples=100)
@given(tables(max_steps=50, holes=False), st.data(), lams)
def test_steps_after_the_decision_cannot_matter(flags: Flags, data: st.DataObject, lam: float) -> None:
    eta = data.draw(st.integers(1, flags.steps))
    full = decide(flags, eta, lam)
    later = np.arange(flags.steps) > full.step[:, None]
    early = decide(Flags(flags.flagged & ~later, flags.known & ~later), eta, lam)
    assert (early.unsafe == full.unsafe).all()
    assert (early.safe == full.safe).all()
    assert (early.step == full.step).all()


def test_decision_steps_by_hand() -> None:
    decisions = decide(flags_of("##.# ..## .#.# #?#? ...? #???"), eta=4, lam=0.5)
    assert decisions.unsafe.tolist() == [True, True, True, True, False, False]
    assert decisions.safe.tolist() == [False, False, False, False, True, False]
    assert decisions.step.tolist() == [1, 3, 3, 2, 2, 3]


def test_steps_beyond_eta_do_not_count() -> None:
    assert decide(flags_of("..###"), eta=2, lam=0.5).safe.all()


# ---- scores to flags


def test_a_score_at_its_threshold_flags() -> None:
    scores = np.array([[[0.5, 0.1], [np.nextafter(0.5, 0), 0.1], [0.1, 0.9]]])
    assert flag_steps(scores, 0.5).flagged.tolist() == [[True, False, True]]


def test_thresholds_may_differ_by_category() -> None:
    scores = np.array([[[0.6, 0.6], [0.1, 0.3]]])
    assert flag_steps(scores, np.array([0.7, 0.2])).flagged.tolist() == [[True, True]]
    assert flag_steps(scores, np.array([0.7, 0.9])).flagged.tolist() == [[False, False]]


def test_a_missing_score_neither_flags_nor_clears() -> None:
    nan = math.nan
    flags = flag_steps(np.array([[[nan, 0.9], [nan, 0.1], [nan, nan], [0.2, 0.1]]]), 0.5)
    assert flags.flagged.tolist() == [[True, False, False, False]]
    assert flags.known.tolist() == [[True, False, False, True]]


# ---- which category


def odds_against(scores: list[int], threshold: int) -> Fraction:
    """Of steps scored in 64ths: the product of their odds over the threshold's odds, exactly."""
    at = Fraction(threshold, 64 - threshold)
    return math.prod((Fraction(score, 64 - score) / at for score in scores if score), start=Fraction(1))


@given(
    scores=arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.integers(0, 63)),
    threshold=st.integers(1, 63),
)
def test_categories_are_named_by_the_product_of_their_odds(scores: np.ndarray, threshold: int) -> None:
    """0 stands for a missing score."""
    odds = [odds_against(column, threshold) for column in scores.T.tolist()]
    assume(all(gap == 0 or abs(gap) > 1e-9 for gap in (float(a / b - 1) for a in odds for b in odds)))
    assume(
        all(
            abs(float(one - 1)) > 1e-9 or set(column) <= {0, threshold}
            for one, column in zip(odds, scores.T.tolist(), strict=True)
        )
    )
    seen = [column for column in range(scores.shape[1]) if scores[:, column].any()]
    by_strength = sorted(seen, key=lambda column: -odds[column])
    named = attribute(np.where(scores == 0, np.nan, scores / 64), threshold / 64)
    assert {*named} == {*by_strength[:1], *(column for column in seen if odds[column] >= 1)}
    assert [odds[column] for column in named] == [odds[column] for column in by_strength[: len(named)]]


def test_a_category_that_is_above_its_threshold_in_the_mean_is_named() -> None:
    scores = [[0.9, 0.6, 0.2, 0.9], [0.9, 0.45, 0.9, 0.2]]
    assert attribute(np.array(scores), 0.5) == (0, 2, 3, 1)  # odds of 81, 9/4, 9/4 and 27/22
    assert attribute(np.array(scores), 0.7) == (0,)
    assert attribute(np.array(scores), np.array([0.95, 0.5, 0.5, 0.9])) == (2, 1)


def test_an_unsafe_sample_never_goes_without_a_category() -> None:
    scores = np.array([[0.51, 0.1], [0.1, 0.52]])  # each flags one step of two, neither in the mean
    assert attribute(scores, 0.5) == (1,)
    assert attribute(scores * 0.1, 0.5) == (1,)


@given(
    scores=arrays(np.float64, (8, 3), elements=st.sampled_from([0.0, 1.0, 1e-300, 1 - 1e-16, 0.5])),
    threshold=st.sampled_from([1e-6, 0.5, 1 - 1e-9]),
)
def test_scores_that_are_quite_sure_are_attributed_too(scores: np.ndarray, threshold: float) -> None:
    with np.errstate(all="raise"):
        named = attribute(scores, threshold)
    assert 1 <= len(named) == len(set(named))
    sure = [column for column in range(3) if (scores[:, column] >= threshold).all()]
    assert set(sure) <= set(named)


def test_missing_scores_are_no_evidence() -> None:
    scores = np.array([[np.nan, 0.6, np.nan], [0.6, 0.6, np.nan]])
    assert attribute(scores, 0.5) == (1, 0)
    assert attribute(np.full((2, 3), np.nan), 0.5) == ()
    assert attribute(np.zeros((0, 3)), 0.5) == ()


# ---- metrics


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.booleans(), st.one_of(st.sampled_from([0.0, 0.5, 0.5 + 1e-15, 1.0]), st.floats(0, 1))),
        min_size=1,
        max_size=30,
    )
)
def test_auroc_counts_pairs(rows: list[tuple[bool, float]]) -> None:
    label, score = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], dtype=np.float64)
    pairs = [float(a > b) + (a == b) / 2 for a in score[label] for b in score[~label]]
    if pairs:
        assert auroc(label, score) == pytest.approx(np.mean(pairs), abs=1e-12)
    else:
        assert math.isnan(auroc(label, score))


def test_cell_metrics_balance_the_classes() -> None:
    label = np.array([True, True, False, False, False, False])
    metrics = cell_metrics(label, np.array([0.9, 0.3, 0.5, 0.1, 0.1, 0.2]), 0.5)
    assert metrics == {"auroc": pytest.approx(7 / 8), "accuracy": pytest.approx((1 / 2 + 3 / 4) / 2)}


def test_cell_metrics_of_a_hole_are_nan() -> None:
    metrics = cell_metrics(np.array([True, False]), np.array([0.9, math.nan]), 0.5)
    assert all(math.isnan(value) for value in metrics.values())


#             a caught at 0  b caught at 1  a missed  safe  blocked at 2
BY_HAND = "#...          .#.#           ...#      ....  ..##"
CATEGORIES = np.array([[1, 0], [1, 1], [1, 0], [0, 0], [0, 0]], dtype=bool)


def test_summary_by_hand() -> None:
    summary = summarise(Vote(3, 0.3, 0.5), scores_of(BY_HAND), CATEGORIES, ("a", "b"))
    assert (summary.n_test, summary.n_unchecked, summary.eta, summary.lam) == (5, 0, 3, 0.3)
    assert summary.accuracy == pytest.approx(3 / 5)
    assert summary.tpr == pytest.approx(2 / 3)
    assert summary.fpr == pytest.approx(1 / 2)
    assert summary.accuracy_ci == pytest.approx(wilson(3, 5))
    assert summary.tpr_ci == pytest.approx(wilson(2, 3))
    assert summary.fpr_ci == pytest.approx(wilson(1, 2))
    assert summary.auroc == pytest.approx((2 * (1 + 0.5) + (0.5 + 0)) / 6)  # counts 1 1 0 against 0 1
    assert summary.steps_mean_unsafe == pytest.approx((1 + 2) / 2)  # stopped after 1 and 2 steps
    assert summary.compute_saved == pytest.approx(1 - (1 + 2 + 4 + 4 + 3) / 20)
    assert summary.per_category["a"] == {
        "n": 3,
        "tpr": pytest.approx(2 / 3),
        "tpr_ci": pytest.approx(wilson(2, 3)),
    }
    assert summary.per_category["b"] == {"n": 1, "tpr": 1.0, "tpr_ci": pytest.approx(wilson(1, 1))}


def test_undecided_samples_are_withheld_and_flatter_no_rate() -> None:
    scores = scores_of(f"{BY_HAND} ??.. ??..")
    categories = np.vstack([CATEGORIES, [[1, 0], [0, 0]]]).astype(bool)
    whole = summarise(Vote(3, 0.3, 0.5), scores_of(BY_HAND), CATEGORIES, ("a", "b"))
    summary = summarise(Vote(3, 0.3, 0.5), scores, categories, ("a", "b"))
    assert (summary.n_test, summary.n_unchecked) == (7, 2)
    assert (summary.n_unchecked_unsafe, summary.n_unchecked_safe) == (1, 1)
    assert summary.accuracy == pytest.approx(3 / 7)  # neither of them is decided rightly
    assert summary.tpr == pytest.approx(2 / 4)  # the unsafe one is not caught
    assert summary.fpr == pytest.approx(2 / 3)  # the safe one is blocked
    assert summary.fpr_ci == pytest.approx(wilson(2, 3))
    # counts of unsafe samples 1 1 0 0, as few as there may be; of safe ones 0 1 2, as many
    assert summary.auroc == pytest.approx((2 * (1 + 0.5 + 0) + 2 * (0.5 + 0 + 0)) / 12)
    assert summary.steps_mean_unsafe == whole.steps_mean_unsafe
    assert summary.per_category["a"]["n"] == 4
    assert summary.compute_saved == pytest.approx(1 - (1 + 2 + 4 + 4 + 3 + 4 + 4) / 28)


def test_nothing_decided_is_no_right_decision() -> None:
    summary = summarise(Vote(2, 0.5, 0.5), scores_of("?? ??"), np.array([[True], [False]]), ("a",))
    assert summary.n_unchecked == 2
    assert (summary.accuracy, summary.tpr, summary.fpr, summary.auroc) == (0, 0, 1, 0)
    assert summary.steps_mean_unsafe is None
    assert summary.per_category["a"] == {"n": 1, "tpr": 0, "tpr_ci": pytest.approx(wilson(0, 1))}
    assert summary.compute_saved == 0


def test_what_is_not_there_is_none_not_zero() -> None:
    summary = summarise(Vote(2, 0.5, 0.5), scores_of("#."), np.array([[True]]), ("a",))
    assert (summary.tpr, summary.fpr, summary.fpr_ci, summary.auroc) == (1, None, None, None)


@settings(max_examples=150)
@given(st.data(), lams)
def test_a_missing_detector_never_makes_a_rate_look_better(data: st.DataObject, lam: float) -> None:
    samples, steps, categories = (data.draw(st.integers(1, top)) for top in (8, 5, 3))
    values = st.sampled_from([0.1, 0.4, 0.6, 0.9])
    scores = data.draw(arrays(np.float64, (samples, steps, categories), elements=values))
    has = data.draw(arrays(np.bool_, (samples, categories)))
    eta = data.draw(st.integers(1, steps))
    holed = scores.copy()
    for _ in range(data.draw(st.integers(1, 3))):
        hole = data.draw(st.integers(0, steps - 1)), data.draw(st.integers(0, categories - 1))
        holed[:, hole[0], hole[1]] = np.nan
    names = tuple("abc"[:categories])
    whole, other = (summarise(Vote(eta, lam, 0.5), table, has, names) for table in (scores, holed))
    for better, worse in [
        (whole.accuracy, other.accuracy),
        (whole.tpr, other.tpr),
        (other.fpr, whole.fpr),
        (whole.auroc, other.auroc),
        (whole.compute_saved, other.compute_saved),
        *((whole.per_category[name]["tpr"], other.per_category[name]["tpr"]) for name in names),
    ]:
        assert (better is None) == (worse is None)
        if better is not None:
            assert worse <= better + 1e-12
    assert whole.n_unchecked == 0
    assert other.n_unchecked == other.n_unchecked_unsafe + other.n_unchecked_safe


def test_surface_agrees_with_the_summary() -> None:
    flags = flags_of(f"{BY_HAND} ?...")
    label = np.array([True, True, True, False, False, False])
    surface = accuracy_surface(flags, label, [0.3, 1.0])
    assert surface.shape == (4, 2)
    assert surface[2, 0] == pytest.approx(3 / 6)  # the sample with the hole is undecided
    for eta, (column, lam) in itertools.product(range(1, 5), enumerate([0.3, 1.0])):
        assert surface[eta - 1, column] == pytest.approx(
            rates(decide(flags, eta, lam), label, np.arange(len(label)))["accuracy"][0], abs=1e-12
        )
    nobody = Flags(np.zeros((0, 2), bool), np.zeros((0, 2), bool))
    assert np.isnan(accuracy_surface(nobody, np.zeros(0, bool), [0.5])).all()


def test_a_sample_that_is_released_and_marked_is_caught_and_not_blocked() -> None:
    """Every other category is to be flagged: the first sample is stopped, the next two are marked."""
    steps, evidence = 3, Evidence(*np.ones((2, 3, 2)), np.zeros((3, 2)))
    rule = Sequential(evidence, (2.0, 2.0), ("block", "flag"), 0.05, "marginal", 99)
    scores = np.full((4, steps, 2), 0.5)
    scores[0, 1:] = 0.9  # both categories: that to block counts
    scores[1, 1:, 1] = scores[2, 1:, 1] = 0.9
    has = np.array([[1, 0], [0, 1], [0, 0], [0, 0]], dtype=bool)
    summary = summarise(rule, scores, has, ("a", "b"), sampler_steps=6)
    assert (summary.tpr, summary.fpr, summary.accuracy) == (1.0, 0.0, pytest.approx(3 / 4))
    assert (summary.eta, summary.lam, summary.n_unchecked) == (3, None, 0)
    assert summary.compute_saved == pytest.approx(1 - (2 + 6 + 6 + 6) / 24)
    assert summary.auroc == pytest.approx(2 * (1 + 0.5) / 4)


def test_attribution_by_hand() -> None:
    """Caught at step 1; the first category named is right of the first sample, wrong of the second."""
    scores = np.array(
        [
            [[0.9, 0.7], [0.9, 0.4], [0.1, 0.99]],  # a, and b: 0.7 outweighs 0.4
            [[0.9, 0.2], [0.8, 0.3], [0.1, 0.99]],  # a; it is b: what comes after the decision does not count
            [[0.1, 0.2], [0.1, 0.3], [0.1, 0.3]],  # missed
            [[0.9, 0.2], [0.8, 0.3], [0.1, 0.9]],  # safe
        ]
    )
    has = np.array([[1, 0], [0, 1], [1, 0], [0, 0]], dtype=bool)
    measured = measure_attribution(Vote(3, 0.6, 0.5), scores, has)
    assert (measured.n, measured.first_right) == (2, 0.5)
    assert measured.first_right_ci == pytest.approx(wilson(1, 2))
    assert measured.named_mean == pytest.approx((2 + 1) / 2)


def test_attribution_of_nothing_caught() -> None:
    measured = measure_attribution(Vote(3, 0.6, 0.5), np.full((2, 3, 2), np.nan), np.eye(2, dtype=bool))
    assert measured.as_json() == {"n": 0, "first_right": None, "first_right_ci": None, "named_mean": None}


# ---- the threshold, chosen on val


scores = arrays(np.float64, (5, 4, 2), elements=st.sampled_from([k / 8 for k in range(1, 8)]))


@given(scores, st.integers(1, 4), lams)
def test_the_rule_says_unsafe_up_to_the_highest_threshold_and_not_above(
    scores_NSK: np.ndarray, eta: int, lam: float
) -> None:
    highest = highest_threshold(scores_NSK, eta, lam)
    for row, threshold in enumerate(highest):
        at, above = (
            decide(flag_steps(scores_NSK[row : row + 1], t), eta, lam).unsafe[0]
            for t in (threshold, np.nextafter(threshold, 1))
        )
        assert (at, above) == (True, False)


@given(scores, st.integers(1, 4), lams, st.sampled_from([0.0, 0.2, 0.34, 0.5]))
def test_a_chosen_threshold_keeps_to_its_share_and_catches_all_that_it_can(
    scores_NSK: np.ndarray, eta: int, lam: float, max_fpr: float
) -> None:
    label = np.array([True, False, False, False, True])

    def share(threshold: float, of: np.ndarray) -> float:
        return float(decide(flag_steps(scores_NSK, threshold), eta, lam).unsafe[of].mean())

    threshold = choose_threshold(scores_NSK, label, eta, lam, max_fpr)
    assert share(threshold, ~label) <= max_fpr
    allowed = [t / 16 for t in range(1, 16) if share(t / 16, ~label) <= max_fpr]
    assert share(threshold, label) == max(share(t, label) for t in allowed)


def test_a_threshold_that_cannot_be_chosen_is_refused() -> None:
    certain = np.ones((2, 3, 1))
    with pytest.raises(LvdError, match="no threshold blocks at most max_fpr"):
        choose_threshold(certain, np.array([True, False]), 2, 0.5, 0.0)
    with pytest.raises(LvdError, match="no safe val sample"):
        choose_threshold(certain, np.array([True, True]), 2, 0.5, 0.0)
    with pytest.raises(LvdError, match="lets every safe sample be blocked"):
        choose_threshold(certain, np.array([True, False]), 2, 0.5, 1.0)


def test_missing_scores_never_raise_the_highest_threshold() -> None:
    scores_NSK = np.array([[[0.9], [np.nan], [0.3]]])
    assert highest_threshold(scores_NSK, 3, 1.0) == -np.inf
    assert highest_threshold(scores_NSK, 3, 0.6) == 0.3
