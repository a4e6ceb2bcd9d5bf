"""The report's page: what was measured, laid out for one who was not there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from lvd.decide.intervals import method_in_words
from lvd.decide.metrics import Attribution, Summary
from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential
from lvd.detect.bank import Scored
from lvd.files import write_atomically
from lvd.latents.reader import CaptureReader
from lvd.report import figure_data, figures, heatmaps
from lvd.report.examples import examples_section
from lvd.report.page import Comparison, Section, SummaryRow, write_page
from lvd.report.rules import rules_side_by_side

Measured = tuple[Rule, Summary, Attribution]

_FEW = 20


@dataclass(frozen=True)
class Findings:
    """What was measured of a run."""

    capture: CaptureReader
    measured: Sequence[Measured]  # each rule and what it did on the test split, the vote first
    rule: Rule  # the one of them that decides
    val: Scored
    test: Scored
    cells: pd.DataFrame  # a row a detector
    problems: Sequence[str]  # the detectors that are missing
    notes: Sequence[str] = ()  # what the rates are not of, and which rule could not be had
    compared: Sequence[Section] = ()  # the run beside others

    @property
    def rules(self) -> list[Rule]:
        return [rule for rule, _, _ in self.measured]

    @property
    def vote(self) -> Vote:
        return next(rule for rule in self.rules if isinstance(rule, Vote))

    @property
    def sampler_steps(self) -> int:
        return self.capture.info.origin.steps

    @property
    def summary(self) -> Summary:
        """What the rule that decides did."""
        return next(summary for rule, summary, _ in self.measured if rule is self.rule)


def write_report(path: Path, title: str, found: Findings, *, examples: int, show_unsafe: bool) -> None:
    """Write the self-contained page, and the numbers of its figures beside it, in `figures/`.

    `examples` is how many samples are shown with their decoded x0; with `show_unsafe` the sharp images of
    unsafe ones are in the file.
    """
    test, val, vote, rules = found.test, found.val, found.vote, found.rules
    curves, points = figure_data.trade_off(found.measured, test)
    stopped, steps = figure_data.stopped(rules, test), max(rule.steps for rule in rules)
    surface, by_eta = figure_data.surface(val, vote.lam), figure_data.by_eta(val, vote.lam)
    quartiles = figure_data.score_quartiles(test, found.capture.info.category_names)
    _write_tables(
        path.parent / "figures",
        {
            "trade_off_curves": curves,
            "trade_off_rules": points,
            "stopped_by_step": figure_data.stopped_by_step(stopped, steps),
            "accuracy_by_eta_and_lam": surface.rename_axis(index="eta")
            .reset_index()
            .melt("eta", var_name="lam", value_name="accuracy"),
            "rates_by_eta": by_eta,
            "detectors": found.cells,
            "score_quartiles": quartiles,
        },
    )
    sections = [
        Section("What was tested", "", [_tested_rows(found)]),
        Section("The rules side by side", _about_comparison(found), [_comparison(found)]),
        *found.compared,
        Section("The trade-off", _about_trade_off(rules), [figures.trade_off(curves, points)]),
        Section(
            "When samples are stopped",
            "Test split. A line ends at the share that its rule catches, or blocks, in all"
            + (", with undecided safe samples, which are withheld" if found.summary.n_unchecked_safe else "")
            + ".",
            [figures.stopped_by_step(stopped, steps=steps)],
        ),
        examples_section(found.capture, test, rules, found.rule, examples, show_unsafe=show_unsafe),
        Section("Limits", "", [_limits(found)]),
        _detectors(found, quartiles),
        Section(
            "The vote: choosing eta and lam",
            f"On the val split (n={len(val.samples)}), which eta and lam of the vote are chosen on. "
            f"It looks at steps 0 to {vote.eta - 1}. {vote.in_words()}",
            [
                heatmaps.decision_surface(
                    surface, eta=vote.eta, lam=vote.lam, title="Accuracy of the rule, val"
                ),
                figures.curves_by_eta(by_eta, lam=vote.lam, chosen_eta=vote.eta),
            ],
        ),
    ]
    write_page(path, title=title, lead=_lead(found), sections=sections)


def _write_tables(directory: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """A CSV each, with every digit; what is not there is empty."""
    for name, table in tables.items():
        text = table.to_csv(index=False, lineterminator="\n")
        write_atomically(directory / f"{name}.csv", text.encode())


def hole(test: Scored, column: int, step: int) -> str:
    """Why the detector of a category, by its column, and a step has no metrics; empty when it has them."""
    if np.isnan(test.scores_NSK[:, step, column]).any():
        return heatmaps.NO_DETECTOR
    both = test.categories_NK[:, column].any() and not test.label.all()
    return "" if both else heatmaps.NOT_MEASURED


def auroc_heatmap(cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Category x step, of the test split."""
    return _heatmap(cells, names, "auroc", "AUROC of each detector, test")


def _heatmap(cells: pd.DataFrame, names: Sequence[str], metric: str, title: str) -> Figure:
    values, holes = (
        cells.pivot(index="category", columns="step", values=column).loc[list(names)]
        for column in (metric, "hole")
    )
    return heatmaps.cell_heatmap(values, title=title, colour_range=(0.5, 1.0), holes=holes)


def _about_trade_off(rules: Sequence[Rule]) -> str:
    text = (
        "Test split. The large points are the rules, with their 95% intervals; they were set without the "
        "test split. The curves show what the vote would do at other thresholds"
    )
    if any(isinstance(rule, Sequential) for rule in rules):
        text += (
            ", and the sequential rule with all its boundaries shifted; the dotted line is its alpha, the "
            "probability that is guaranteed, which one split may exceed"
        )
    return text + ". Curves are shown, not chosen from. Best is the upper left corner, in few steps."


def _lead(found: Findings) -> str:
    """The headline, a line a statement."""
    rule, summary = found.rule, found.summary
    if summary.n_unchecked == summary.n_test:
        return f"No sample of {summary.n_test} could be decided: detectors are missing."
    decisions = rule.decide(found.test.scores_NSK)
    lines = [
        f"Unsafe videos that the {rule.kind} rule caught, {summary.caught_in_words()}."
        if summary.n_unsafe
        else "There is no unsafe test video.",
        f"Safe videos that it blocked, {summary.blocked_in_words()}."
        if summary.n_safe
        else "There is no safe test video.",
    ]
    if summary.steps_mean_unsafe is not None:
        lines.append(
            f"A caught video is stopped after {summary.steps_mean_unsafe:.1f} of "
            f"{found.sampler_steps} steps, on average."
        )
    marked = int((decisions.unsafe & ~decisions.blocked).sum())
    if marked:
        lines.append(f"Of all, {marked} are released and flagged for review, as the policy says.")
    if summary.n_unchecked:
        lines.append(
            f"Undecided, and withheld: {summary.n_unchecked} of {summary.n_test}, for want of detectors."
        )
    return "\n".join([*lines, rule.guarantee_in_words()])


def _tested_rows(found: Findings) -> list[SummaryRow]:
    origin, test, val, problems = found.capture.info.origin, found.test, found.val, found.problems
    of_category = zip(found.capture.info.category_names, test.categories_NK.sum(axis=0), strict=True)
    counts = ", ".join(f"{name} {count}" for name, count in of_category)
    detectors = test.scores_NSK.shape[1] * test.scores_NSK.shape[2]
    return [
        ("Test samples", str(len(test.samples)), f"{_mix(test)}: {counts}"),
        ("Val samples", str(len(val.samples)), f"{_mix(val)}; what a rule leaves open is set on them"),
        ("Steps of the sampler", str(origin.steps), f"{origin.pipeline}, {origin.scheduler}"),
        (
            "Detectors",
            str(detectors - len(problems)),
            f"{len(problems)} are missing" if problems else "one a category and step",
        ),
        ("Rule that decides", found.rule.kind, found.rule.in_words()),
    ]


def _mix(part: Scored) -> str:
    return f"{part.label.sum()} unsafe and {(~part.label).sum()} safe"


def _about_comparison(found: Findings) -> str:
    test = found.test
    return (
        f"On the {len(test.samples)} test samples, {_mix(test)}; below a value its 95% interval "
        f"({method_in_words(test.prompts)}; of an AUROC by a bootstrap over prompts). "
        f"Steps run are a count, of {found.sampler_steps}: who is stopped at step 9 has run 10, since "
        "steps are numbered from 0. What is saved of all samples holds for this mix; with fewer unsafe "
        "ones less is saved."
    )


def _comparison(found: Findings) -> Comparison:
    return rules_side_by_side(found.measured, found.rule, found.test, found.sampler_steps)


def _limits(found: Findings) -> list[SummaryRow]:
    """What the numbers do not say."""
    summary, problems = found.summary, found.problems
    rates = (
        f"They are of {summary.n_test} test samples of {summary.n_prompts} prompts. Samples that are made "
        "otherwise, or of other kinds of prompts, may fare otherwise."
    )
    rows = [
        (
            "The guarantee",
            "",
            f"{found.rule.guarantee_in_words()} What share of unsafe videos is caught is measured, not "
            "guaranteed.",
        ),
        ("The rates", "", rates),
        ("Evasion", "", "Nobody who knows the detectors tried to evade them here."),
    ]
    few = [f"{name} ({values['n']})" for name, values in summary.per_category.items() if values["n"] < _FEW]
    if few:
        rows.append(("Small categories", "", f"Fewer than {_FEW} test samples: {', '.join(few)}."))
    if problems:
        rows.append(("Missing detectors", str(len(problems)), "; ".join(problems[:10])))
    return [*rows, *(("Note", "", note) for note in found.notes)]


def _detectors(found: Findings, quartiles: pd.DataFrame) -> Section:
    cells, problems, names = found.cells, found.problems, found.capture.info.category_names
    text = (
        "Each cell is one detector, on its category's test samples and the safe ones. Steps are numbered "
        "from 0, the noisiest."
    )
    if problems:
        text += f" {len(problems)} detectors are missing and shown as holes; they are never counted as zero."
    unmeasured = cells.loc[cells["hole"] == heatmaps.NOT_MEASURED, "category"].unique().tolist()
    if unmeasured:
        text += f" There are no test samples to measure {', '.join(unmeasured)} on."
    accuracy = f"Balanced accuracy of each detector at threshold {found.test.threshold:.3g}, test"
    return Section(
        "Detectors",
        text,
        [
            auroc_heatmap(cells, names),
            _heatmap(cells, names, "accuracy", accuracy),
            figures.score_traces(quartiles),
        ],
    )
