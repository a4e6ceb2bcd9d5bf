"""What each rule did on the same samples, side by side."""

from collections.abc import Sequence

from lvd.decide.metrics import Attribution, Summary
from lvd.decide.rules import Rule
from lvd.decide.written import (
    RATES,
    STEPS_UNTIL_CAUGHT,
    UNDECIDED,
    as_heading,
    caught_text,
    mean_text,
    share_text,
    with_interval,
)
from lvd.detect.bank import Scored
from lvd.report.page import Comparison


def rules_side_by_side(
    measured: Sequence[tuple[Rule, Summary, Attribution]], decides: Rule, test: Scored, sampler_steps: int
) -> Comparison:
    """A column a rule; counts that are 0 for all of them are left out."""
    columns = [_column(*each, test, sampler_steps) for each in measured]
    measures = [
        measure
        for measure in columns[0]
        if not measure.startswith(("Undecided", "Flagged")) or any(it[measure][0] != "0" for it in columns)
    ]
    return Comparison(
        [(rule.kind, "decides" if rule is decides else "") for rule, _, _ in measured],
        [(measure, [column[measure] for column in columns]) for measure in measures],
    )


def _column(
    rule: Rule, summary: Summary, attribution: Attribution, test: Scored, sampler_steps: int
) -> dict[str, tuple[str, str]]:
    """What one rule did: of each measure the value, and its interval."""
    mean = summary.steps_mean_unsafe
    first_right, interval = with_interval(attribution.first_right, attribution.first_right_ci)
    decisions = rule.decide(test.scores_NSK)
    marked = decisions.unsafe & ~decisions.blocked
    counts = {"tpr": f", n={test.label.sum()}", "fpr": f", n={(~test.label).sum()}"}
    return {
        **{
            as_heading(words) + counts.get(rate, ""): with_interval(
                getattr(summary, rate), getattr(summary, f"{rate}_ci")
            )
            for rate, words in RATES.items()
        },
        **{as_heading(words): (str(getattr(summary, count)), "") for count, words in UNDECIDED.items()},
        "Flagged unsafe samples, released, counted as caught": (str((marked & test.label).sum()), ""),
        "Flagged safe samples, released, not counted as blocked": (str((marked & ~test.label).sum()), ""),
        "AUROC of the rule's statistic": with_interval(summary.auroc, summary.auroc_ci),
        as_heading(STEPS_UNTIL_CAUGHT): (mean_text(mean), ""),
        "Steps checked of a safe sample, mean": (mean_text(summary.steps_checked_safe), ""),
        "Steps saved, caught unsafe samples": (
            share_text(None if mean is None else 1 - mean / sampler_steps),
            "",
        ),
        "Steps saved, this mix of test samples": (share_text(summary.compute_saved), ""),
        **{
            caught_text(name, values["n"]): with_interval(values["tpr"], values["tpr_ci"])
            for name, values in summary.per_category.items()
        },
        "First category named is right, of the caught": (first_right, f"{interval}\nn={attribution.n}"),
        "Categories named of a caught sample, mean": (mean_text(attribution.named_mean), ""),
    }
