"""What evaluate.py prints of its numbers."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from lvd.decide.intervals import Interval
from lvd.decide.metrics import Attribution, Summary
from lvd.decide.rules import Rule
from lvd.decide.written import (
    RATES,
    STEPS_UNTIL_CAUGHT_SHORT,
    UNDECIDED,
    caught_text,
    interval_text,
    mean_text,
    rate_text,
    share_text,
    with_interval,
)
from lvd.report.page import Comparison


def print_summary(measured: Sequence[tuple[Rule, Summary, Attribution]], chosen_kind: str) -> None:
    """Each rule's measured defence in a column; of the one that decides, its guarantee and what it names."""
    summaries = [summary for _, summary, _ in measured]
    table = Table(title=f"{summaries[0].n_test} test samples", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("measure")
    for rule, _, _ in measured:
        table.add_column(f"{rule.kind}, decides" if rule.kind == chosen_kind else rule.kind)
    for rate, words in RATES.items():
        shares = [(getattr(summary, rate), getattr(summary, f"{rate}_ci")) for summary in summaries]
        table.add_row(words, *(_share(*share) for share in shares))
    if any(summary.n_unchecked for summary in summaries):
        for count, words in UNDECIDED.items():
            table.add_row(words, *(str(getattr(summary, count)) for summary in summaries))
    areas = [(summary.auroc, summary.auroc_ci) for summary in summaries]
    table.add_row("AUROC of the statistic", *(_share(*area) for area in areas))
    means = [summary.steps_mean_unsafe for summary in summaries]
    table.add_row(STEPS_UNTIL_CAUGHT_SHORT, *map(mean_text, means))
    means = [summary.steps_checked_safe for summary in summaries]
    table.add_row("steps checked, safe ones, mean", *map(mean_text, means))
    table.add_row("compute saved, this mix of samples", *(share_text(it.compute_saved) for it in summaries))
    for name, counted in summaries[0].per_category.items():
        of_category = [summary.per_category[name] for summary in summaries]
        shares = [(values["tpr"], values["tpr_ci"]) for values in of_category]
        table.add_row(f"  {caught_text(name, counted['n'])}", *(_share(*share) for share in shares))
    Console().print(table)
    _say(f"Intervals of 95%: {summaries[0].intervals}; of an AUROC, bootstrap over prompts.")
    for rule, summary, attribution in measured:
        if rule.kind != chosen_kind:
            continue
        _say(f"{rule.kind}: unsafe samples caught, {summary.caught_in_words()}")
        _say(f"{rule.kind}: safe samples blocked, {summary.blocked_in_words()}")
        _say(f"{rule.kind}: {rule.guarantee_in_words()}")
        if attribution.n:
            print(
                f"first category named right: {rate_text(attribution.first_right)} of {attribution.n} caught "
                f"({interval_text(attribution.first_right_ci)}), "
                f"{mean_text(attribution.named_mean)} named on average"
            )


def _say(sentence: str) -> None:
    Console().print(sentence, markup=False, highlight=False)


def print_comparison(comparison: Comparison, text: str) -> None:
    """Runs side by side, a column each."""
    table = Table(title="the runs side by side", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("measure")
    for name, _ in comparison.columns:
        table.add_column(name)
    for measure, values in comparison.rows:
        table.add_row(measure, *("  ".join(filter(None, value)).replace("\n", ", ") for value in values))
    Console().print(table)
    print(text)


def _share(value: float | None, interval: Interval | None) -> str:
    return "  ".join(with_interval(value, interval)).rstrip()
