"""The report's page: what was measured, laid out for one who was not there."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from plotly.graph_objects import Figure
from torch import Tensor

from lvd.capture.decode import decode_frames, load_vae
from lvd.decide.calibrate import highest_threshold
from lvd.decide.intervals import Interval, method_in_words
from lvd.decide.metrics import Attribution, Summary, accuracy_surface, rates, steps_until_caught
from lvd.decide.rules import Decisions, Floats, Rule, Vote, decide
from lvd.decide.sequential import Sequential
from lvd.decide.written import interval_text, mean_text, rate_text
from lvd.detect.bank import Scored
from lvd.errors import LvdError
from lvd.latents.format import label_text, write_atomically
from lvd.latents.reader import CaptureReader
from lvd.report import figures
from lvd.report.page import Comparison, ExampleRow, Section, SummaryRow, write_page

Measured = tuple[Rule, Summary, Attribution]

_LAMS = [round(0.05 * i, 2) for i in range(1, 21)]
_SHOWN_STEPS = 8
_CURVE_POINTS = 60
_FEW = 20


def write_report(
    path: Path,
    title: str,
    capture: CaptureReader,
    measured: Sequence[Measured],
    rule: Rule,
    val: Scored,
    test: Scored,
    cells: pd.DataFrame,
    problems: Sequence[str],
    notes: Sequence[str],
    *,
    examples: int,
    show_unsafe: bool,
    compared: Sequence[Section] = (),
) -> None:
    """Write the self-contained page, and the numbers of its figures beside it, in `figures/`.

    `measured` has each rule and what it did on the test split, the vote first; `rule` is the one of them that
    decides. `cells` has a row a detector; `problems` name the missing ones, `notes` say what the rates are
    not of, and which rule could not be had; `compared` is the section that lays it beside other runs.
    """
    names, sampler_steps = capture.info.category_names, capture.info.origin.steps
    rules = [each for each, _, _ in measured]
    vote = next(each for each in rules if isinstance(each, Vote))
    (chosen,) = (summary for each, summary, _ in measured if each is rule)
    curves, points = _trade_off(measured, test)
    stopped, steps = _stopped(rules, test), max(each.steps for each in rules)
    surface, by_eta = _surface_table(val, vote.lam), _by_eta(val, vote.lam)
    traces = _traces(test, names)
    _write_tables(
        path.parent / "figures",
        {
            "trade_off_curves": curves,
            "trade_off_rules": points,
            "stopped_by_step": _stopped_by_step(stopped, steps),
            "accuracy_by_eta_and_lam": surface.rename_axis(index="eta")
            .reset_index()
            .melt("eta", var_name="lam", value_name="accuracy"),
            "rates_by_eta": by_eta,
            "detectors": cells,
            "score_quartiles": traces,
        },
    )
    write_page(
        path,
        title=title,
        lead=_lead(rule, chosen, test, sampler_steps),
        sections=[
            Section("What was tested", "", [_tested_rows(capture, rule, val, test, problems)]),
            Section(
                "The rules side by side",
                _about_comparison(test, sampler_steps),
                [_comparison(measured, rule, test, sampler_steps)],
            ),
            *compared,
            Section(
                "The trade-off",
                "Test split. The large points are the rules, with their 95% intervals; they were set without "
                "the test split. The curves show what the vote would do at other thresholds"
                + (
                    ", and the sequential rule with all its boundaries shifted; the dotted line is its "
                    "alpha, the probability that is guaranteed, which one split may exceed"
                    if len(rules) > 1
                    else ""
                )
                + ". Curves are shown, not chosen from. Best is the upper left corner, in few steps.",
                [figures.trade_off(curves, points)],
            ),
            Section(
                "When samples are stopped",
                "Test split. A line ends at the share that its rule catches, or blocks, in all"
                + (", with undecided safe samples, which are withheld" if chosen.n_unchecked_safe else "")
                + ".",
                [figures.stopped_by_step(stopped, steps=steps)],
            ),
            _examples(capture, test, rules, rule, examples, show_unsafe=show_unsafe),
            Section("Limits", "", [_limits(rule, chosen, problems, notes)]),
            Section(
                "Detectors",
                _about_detectors(problems, cells),
                [
                    auroc_heatmap(cells, names),
                    _heatmap(
                        cells,
                        names,
                        "accuracy",
                        f"Balanced accuracy of each detector at threshold {test.threshold:.3g}, test",
                    ),
                    figures.score_traces(traces),
                ],
            ),
            Section(
                "The vote: choosing eta and lam",
                f"On the val split (n={len(val.samples)}), which eta and lam of the vote are chosen on. "
                f"It looks at steps 0 to {vote.eta - 1}. {vote.in_words()}",
                [
                    figures.decision_surface(
                        surface, eta=vote.eta, lam=vote.lam, title="Accuracy of the rule, val"
                    ),
                    figures.curves_by_eta(by_eta, lam=vote.lam, chosen_eta=vote.eta),
                ],
            ),
        ],
    )


def _write_tables(directory: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """A CSV each, with every digit; what is not there is empty."""
    for name, table in tables.items():
        text = table.to_csv(index=False, lineterminator="\n")
        write_atomically(directory / f"{name}.csv", text.encode())


def hole(test: Scored, column: int, step: int) -> str:
    """Why the detector of a category, by its column, and a step has no metrics; empty when it has them."""
    if np.isnan(test.scores_NSK[:, step, column]).any():
        return figures.NO_DETECTOR
    both = test.categories_NK[:, column].any() and not test.label.all()
    return "" if both else figures.NOT_MEASURED


def auroc_heatmap(cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Category x step, of the test split."""
    return _heatmap(cells, names, "auroc", "AUROC of each detector, test")


def _heatmap(cells: pd.DataFrame, names: Sequence[str], metric: str, title: str) -> Figure:
    values, holes = (
        cells.pivot(index="category", columns="step", values=column).loc[list(names)]
        for column in (metric, "hole")
    )
    return figures.cell_heatmap(values, title=title, colour_range=(0.5, 1.0), holes=holes)


def _surface_table(val: Scored, lam: float) -> pd.DataFrame:
    """`[etas, lams]`"""
    lams = sorted({*_LAMS, lam})
    return pd.DataFrame(
        accuracy_surface(val.flags, val.label, lams), index=range(1, val.flags.steps + 1), columns=lams
    )


def _by_eta(val: Scored, lam: float) -> pd.DataFrame:
    table = []
    for candidate in range(1, val.flags.steps + 1):
        measured = rates(decide(val.flags, candidate, lam), val.label, val.prompts)
        accuracy, interval = measured["accuracy"]
        low, high = interval or (None, None)
        table.append(
            {
                "eta": candidate,
                "accuracy": accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "tpr": measured["tpr"][0],
                "fpr": measured["fpr"][0],
            }
        )
    return pd.DataFrame(table).astype(float)


def _trade_off(measured: Sequence[Measured], test: Scored) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves' points, and the rules'."""
    curves = []
    for rule, _, _ in measured:
        for other in _along_its_curve(rule, test.scores_NSK):
            decisions = other.decide(test.scores_NSK)
            (tpr, _), (fpr, _) = (rates(decisions, test.label, test.prompts)[name] for name in ("tpr", "fpr"))
            curves.append(_point(rule.kind, fpr, tpr, steps_until_caught(decisions, test.label)))
    points = []
    for rule, summary, _ in measured:
        ends = {}
        for rate, interval in (("fpr", summary.fpr_ci), ("tpr", summary.tpr_ci)):
            ends[f"{rate}_low"], ends[f"{rate}_high"] = interval or (np.nan, np.nan)
        alpha = rule.alpha if isinstance(rule, Sequential) else np.nan
        point = _point(rule.kind, summary.fpr, summary.tpr, summary.steps_mean_unsafe)
        points.append({**point, **ends, "alpha": alpha})
    drawn = pd.DataFrame(curves, columns=["rule", "fpr", "tpr", "steps"])
    return drawn, pd.DataFrame(points)


def _point(kind: str, fpr: float | None, tpr: float | None, steps: float | None) -> dict[str, Any]:
    numbers = {"fpr": fpr, "tpr": tpr, "steps": steps}
    return {"rule": kind} | {name: np.nan if value is None else value for name, value in numbers.items()}


def _along_its_curve(rule: Rule, scores_NSK: Floats) -> list[Rule]:
    """The rule made laxer and stricter, from one that catches everything to one that catches nothing."""
    if isinstance(rule, Vote):
        thresholds = _between_all_and_nothing(highest_threshold(scores_NSK, rule.eta, rule.lam))
        return [replace(rule, threshold=threshold) for threshold in thresholds]
    if isinstance(rule, Sequential):
        shifts = _between_all_and_nothing(rule.ranks(scores_NSK)[0])
        return [replace(rule, boundary=tuple(at + shift for at in rule.boundary)) for shift in shifts]
    return []


def _between_all_and_nothing(statistic_N: Floats) -> list[float]:
    """Bounds on a statistic, from below every sample's to above."""
    values = np.unique(statistic_N[np.isfinite(statistic_N)].astype(float))
    if not len(values):
        return []
    if len(values) > _CURVE_POINTS:
        values = np.quantile(values, np.linspace(0, 1, _CURVE_POINTS))
    return [float(values[0]) - 1e-6, *values.tolist(), float(values[-1]) + 1e-6]


def _stopped(rules: Sequence[Rule], test: Scored) -> pd.DataFrame:
    """A row a rule and sample: whether it is stopped, and when."""
    table = []
    for rule in rules:
        decisions = rule.decide(test.scores_NSK)
        table.append(
            pd.DataFrame(
                {
                    "rule": rule.kind,
                    "label": np.where(test.label, "unsafe", "safe"),
                    "stopped": np.where(test.label, decisions.unsafe, decisions.blocked | ~decisions.checked),
                    "step": decisions.step,
                }
            )
        )
    return pd.concat(table)


def _stopped_by_step(stopped: pd.DataFrame, steps: int) -> pd.DataFrame:
    """How many samples of a label a rule has stopped by a step, and of how many: a row each."""
    rows = []
    for (rule, label), part in stopped.groupby(["rule", "label"], sort=False):
        counts = np.bincount(part.loc[part["stopped"], "step"], minlength=steps).cumsum()
        rows += [
            {"rule": rule, "label": label, "step": step, "stopped": int(count), "n": len(part)}
            for step, count in enumerate(counts)
        ]
    return pd.DataFrame(rows)


def _traces(test: Scored, names: Sequence[str]) -> pd.DataFrame:
    groups = {name: test.categories_NK[:, column] for column, name in enumerate(names)}
    groups["safe"] = ~test.label
    highest_NS = np.where(np.isnan(test.scores_NSK), -np.inf, test.scores_NSK).max(axis=2)
    highest_NS = np.where(np.isinf(highest_NS), np.nan, highest_NS)
    table = [
        {"step": step, "group": group, "low": low, "median": median, "high": high}
        for group, members in groups.items()
        if members.any()
        for step, (low, median, high) in enumerate(
            np.quantile(highest_NS[members], [0.25, 0.5, 0.75], axis=0).T
        )
    ]
    return pd.DataFrame(table)


def _examples(
    capture: CaptureReader,
    test: Scored,
    rules: Sequence[Rule],
    rule: Rule,
    count: int,
    *,
    show_unsafe: bool,
) -> Section:
    """Decoded x0 of some test samples: mistakes first, then right decisions of each kind."""
    title = "Failures to look at"
    try:
        vae = load_vae(capture.info.origin)
    except LvdError as error:
        return Section(title, f"Not shown: {error}.", [])
    decisions = rule.decide(test.scores_NSK)
    is_safe_N = np.all([each.decide(test.scores_NSK).safe for each in rules], axis=0)
    steps = np.unique(np.linspace(0, test.flags.steps - 1, _SHOWN_STEPS).round().astype(int)).tolist()
    readers = [capture.step(step) for step in steps]
    middle = capture.info.origin.latent_shape[1] // 2
    chosen = _chosen_examples(test, rule, count)
    body = []
    for place in chosen:
        sample, row = test.samples[place], test.rows[place]
        latents = np.stack([reader[row][:, middle] for reader in readers])
        images = decode_frames(vae, torch.from_numpy(latents).float())
        sharp = bool(is_safe_N[place]) and not _is_doubted(test, place)
        body.append(
            ExampleRow(
                sample_id=sample.sample_id,
                caption=sample.prompt,
                decision=f"{_verdict(test, rule, decisions, place, capture)}; {_why(rule, test, place)}",
                tone=_tone(test, decisions, place),
                frames=[
                    (
                        f"step {step}\n{_highest(test.scores_NSK[place, step])}",
                        _png(image),
                        isinstance(rule, Vote) and bool(test.flags.flagged[place, step]),
                    )
                    for step, image in zip(steps, images, strict=True)
                ],
                images="sharp" if sharp else "covered" if show_unsafe else "blurred",
            )
        )
    wrong = decisions.checked & (decisions.unsafe != test.label)
    return Section(title, _about_examples(test, rule, int(wrong[chosen].sum()), int(wrong.sum())), body)


def _about_examples(test: Scored, rule: Rule, shown: int, mistakes: int) -> str:
    text = (
        f"{shown} of {mistakes} mistakes of the {rule.kind} rule come first, missed unsafe samples and then "
        "safe ones that are blocked or marked, the worst first; some right decisions follow. "
        if mistakes
        else f"The {rule.kind} rule made no mistake on the test split: some right decisions are shown. "
    )
    text += "An example is the middle frame of x0 at some steps, with the highest score of any detector"
    text += (
        f"; a step is flagged, and outlined, at a score of {test.threshold:.3g} or more. "
        if isinstance(rule, Vote)
        else ". A sample is stopped at the first step at which the evidence, cumulated over the steps, is "
        "above the boundary; what it would have become is shown all the same. "
    )
    return text + (
        "Images are seen at once only of samples that are labelled safe, decided safe by every rule, and "
        f"scored below {_doubtful_score(test):.3g} by every detector at every step."
    )


def _doubtful_score(test: Scored) -> float:
    """The score from which on a sample may be unsafe, for one who does not want to see it."""
    return min(test.threshold, 0.5)


def _is_doubted(test: Scored, place: int) -> bool:
    """Whether its label or any detector calls a sample unsafe."""
    return bool(test.label[place] or (test.scores_NSK[place] >= _doubtful_score(test)).any())


def _chosen_examples(test: Scored, rule: Rule, count: int) -> list[int]:
    """Missed unsafe samples, blocked or marked safe ones, then the first right ones, safe and of a category.

    At least two thirds of the places are for mistakes, half of these for each kind; what one kind does not
    need the other gets. Worst are the unsafe samples that the rule ranks lowest, the safe ones it ranks
    highest; ties go by the mean of the highest scores.
    """
    decisions = rule.decide(test.scores_NSK)
    highest_NS = np.where(np.isnan(test.scores_NSK), -np.inf, test.scores_NSK).max(axis=2)[:, : rule.steps]
    order = np.lexsort((highest_NS.mean(axis=1), rule.ranks(test.scores_NSK)[0]))
    missed = order[(test.label & decisions.safe)[order]].tolist()
    blocked = order[(~test.label & decisions.unsafe)[order]].tolist()[::-1]
    right = decisions.checked & (decisions.unsafe == test.label)
    groups = [members & right for members in (~test.label, *test.categories_NK.T)]
    first = list(dict.fromkeys(int(group.argmax()) for group in groups if group.any()))
    room = count - min(len(first), count // 3)
    missed = missed[: max(-(-room // 2), room - len(blocked))]
    return [*missed, *blocked[: room - len(missed)], *first][:count]


def _verdict(test: Scored, rule: Rule, decisions: Decisions, place: int, capture: CaptureReader) -> str:
    """What was decided and whether it is right; a step is named by its index, from 0."""
    step, is_unsafe = decisions.step[place], test.label[place]
    label = label_text(test.samples[place].categories).replace("|", ", ")
    if not decisions.unsafe[place]:
        kind = "Missed" if is_unsafe else "Cleared"
        return f"{kind}: labelled {label}, decided safe, certain at step {step}"
    columns = rule.attribute(test.scores_NSK[place, : step + 1])
    named = ", ".join(capture.info.category_names[column] for column in columns)
    if not decisions.blocked[place]:
        kind = "Flagged for review" if is_unsafe else "Wrongly flagged for review"
        return f"{kind}: labelled {label}, decided unsafe (named {named}), released and marked, not stopped"
    kind = "Caught" if is_unsafe else "Wrongly blocked"
    return (
        f"{kind}: labelled {label}, decided unsafe (named {named}), stopped at step {step} "
        f"({step + 1} of {capture.info.origin.steps} steps run)"
    )


def _why(rule: Rule, test: Scored, place: int) -> str:
    """What a guard would say of a sample that is decided, in its own words."""
    tracker = rule.tracker()
    for scores_K in test.scores_NSK[place]:
        tracker.see(scores_K.tolist())
        if tracker.outcome is not None:
            break
    return tracker.why


def _tone(test: Scored, decisions: Decisions, place: int) -> Literal["unsafe", "safe", "wrong"]:
    if decisions.unsafe[place] != test.label[place]:
        return "wrong"
    return "unsafe" if test.label[place] else "safe"


def _highest(scores_K: Floats) -> str:
    """The highest score of a step; a detector that is missing could have given a higher one."""
    known = scores_K[~np.isnan(scores_K)]
    if not known.size:
        return "no score"
    return f"{known.max():.2f}" if known.size == scores_K.size else f"at least {known.max():.2f}"


def _png(image_CHW: Tensor) -> bytes:
    pixels = (image_CHW.permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _lead(rule: Rule, summary: Summary, test: Scored, sampler_steps: int) -> str:
    """The headline, a line a statement."""
    if summary.n_unchecked == summary.n_test:
        return f"No sample of {summary.n_test} could be decided: detectors are missing."
    decisions = rule.decide(test.scores_NSK)
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
            f"A caught video is stopped after {summary.steps_mean_unsafe:.1f} of {sampler_steps} steps, "
            "on average."
        )
    marked = int((decisions.unsafe & ~decisions.blocked).sum())
    if marked:
        lines.append(f"Of all, {marked} are released and flagged for review, as the policy says.")
    if summary.n_unchecked:
        lines.append(
            f"Undecided, and withheld: {summary.n_unchecked} of {summary.n_test}, for want of detectors."
        )
    return "\n".join([*lines, rule.guarantee_in_words()])


def _tested_rows(
    capture: CaptureReader, rule: Rule, val: Scored, test: Scored, problems: Sequence[str]
) -> list[SummaryRow]:
    origin = capture.info.origin
    of_category = zip(capture.info.category_names, test.categories_NK.sum(axis=0), strict=True)
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
        ("Rule that decides", rule.kind, rule.in_words()),
    ]


def _mix(part: Scored) -> str:
    return f"{part.label.sum()} unsafe and {(~part.label).sum()} safe"


def _about_comparison(test: Scored, sampler_steps: int) -> str:
    return (
        f"On the {len(test.samples)} test samples, {_mix(test)}; below a value its 95% interval "
        f"({method_in_words(test.prompts)}; of an AUROC by a bootstrap over prompts). "
        f"Steps run are a count, of {sampler_steps}: who is stopped at step 9 has run 10, since steps are "
        "numbered from 0. What is saved of all samples holds for this mix; with fewer unsafe ones less is "
        "saved."
    )


def _comparison(measured: Sequence[Measured], rule: Rule, test: Scored, sampler_steps: int) -> Comparison:
    columns = [_column(each, test, sampler_steps) for each in measured]
    measures = [
        measure
        for measure in columns[0]
        if not measure.startswith(("Undecided", "Flagged")) or any(it[measure][0] != "0" for it in columns)
    ]
    return Comparison(
        [(each.kind, "decides" if each is rule else "") for each, _, _ in measured],
        [(measure, [column[measure] for column in columns]) for measure in measures],
    )


def _column(each: Measured, test: Scored, sampler_steps: int) -> dict[str, tuple[str, str]]:
    """What one rule did: of each measure the value, and its interval."""
    rule, summary, attribution = each
    mean = summary.steps_mean_unsafe
    value, interval = _cell(attribution.first_right, attribution.first_right_ci)
    decisions = rule.decide(test.scores_NSK)
    marked = decisions.unsafe & ~decisions.blocked
    return {
        "Accuracy": _cell(summary.accuracy, summary.accuracy_ci),
        f"Unsafe samples caught (tpr), n={test.label.sum()}": _cell(summary.tpr, summary.tpr_ci),
        f"Safe samples blocked (fpr), n={(~test.label).sum()}": _cell(summary.fpr, summary.fpr_ci),
        "Undecided unsafe samples, withheld, not caught": (str(summary.n_unchecked_unsafe), ""),
        "Undecided safe samples, counted as blocked": (str(summary.n_unchecked_safe), ""),
        "Flagged unsafe samples, released, counted as caught": (str((marked & test.label).sum()), ""),
        "Flagged safe samples, released, not counted as blocked": (str((marked & ~test.label).sum()), ""),
        "AUROC of the rule's statistic": _cell(summary.auroc, summary.auroc_ci),
        "Steps run until a caught unsafe sample is stopped, mean": (mean_text(mean), ""),
        "Steps checked of a safe sample, mean": (mean_text(summary.steps_checked_safe), ""),
        "Steps saved, caught unsafe samples": (
            "–" if mean is None else f"{1 - mean / sampler_steps:.0%}",
            "",
        ),
        "Steps saved, this mix of test samples": (f"{summary.compute_saved:.0%}", ""),
        **{
            f"{name} caught, n={values['n']}": _cell(values["tpr"], values["tpr_ci"])
            for name, values in summary.per_category.items()
        },
        "First category named is right, of the caught": (value, f"{interval}\nn={attribution.n}"),
        "Categories named of a caught sample, mean": (mean_text(attribution.named_mean), ""),
    }


def _cell(value: float | None, interval: Interval | None) -> tuple[str, str]:
    return rate_text(value), interval_text(interval)


def _limits(rule: Rule, summary: Summary, problems: Sequence[str], notes: Sequence[str]) -> list[SummaryRow]:
    """What the numbers do not say."""
    rates = (
        f"They are of {summary.n_test} test samples of {summary.n_prompts} prompts. Samples that are made "
        "otherwise, or of other kinds of prompts, may fare otherwise."
    )
    rows = [
        (
            "The guarantee",
            "",
            f"{rule.guarantee_in_words()} What share of unsafe videos is caught is measured, not guaranteed.",
        ),
        ("The rates", "", rates),
        ("Evasion", "", "Nobody who knows the detectors tried to evade them here."),
    ]
    few = [f"{name} ({values['n']})" for name, values in summary.per_category.items() if values["n"] < _FEW]
    if few:
        rows.append(("Small categories", "", f"Fewer than {_FEW} test samples: {', '.join(few)}."))
    if problems:
        rows.append(("Missing detectors", str(len(problems)), "; ".join(problems[:10])))
    return [*rows, *(("Note", "", note) for note in notes)]


def _about_detectors(problems: Sequence[str], cells: pd.DataFrame) -> str:
    text = (
        "Each cell is one detector, on its category's test samples and the safe ones. Steps are numbered "
        "from 0, the noisiest."
    )
    if problems:
        text += f" {len(problems)} detectors are missing and shown as holes; they are never counted as zero."
    unmeasured = cells.loc[cells["hole"] == figures.NOT_MEASURED, "category"].unique().tolist()
    if unmeasured:
        text += f" There are no test samples to measure {', '.join(unmeasured)} on."
    return text
