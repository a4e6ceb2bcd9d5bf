"""The report's page: what was measured, laid out."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image
from plotly.graph_objects import Figure
from torch import Tensor

from lvd.capture.decode import decode_frames, load_vae
from lvd.decide.metrics import Attribution, Summary, accuracy_surface, rates
from lvd.decide.rules import Decisions, Floats, decide
from lvd.detect.bank import Scored
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader
from lvd.report import figures
from lvd.report.page import ExampleRow, Section, SummaryRow, write_page

_LAMS = [round(0.05 * i, 2) for i in range(1, 21)]
_SHOWN_STEPS = 8


def write_report(
    path: Path,
    title: str,
    capture: CaptureReader,
    summary: Summary,
    val: Scored,
    test: Scored,
    cells: pd.DataFrame,
    problems: Sequence[str],
    attribution: Attribution,
    notes: Sequence[str],
    *,
    examples: int,
    show_unsafe: bool,
) -> None:
    """Write the self-contained page.

    `cells` has a row a detector; `problems` name the missing ones, `notes` say what the rates are not of.
    """
    names, eta, lam = capture.info.category_names, summary.eta, summary.lam
    decisions = decide(test.flags, eta, lam)
    write_page(
        path,
        title=title,
        lead=_lead(summary),
        sections=[
            Section(
                "Summary",
                "; ".join(notes),
                [_summary_rows(summary, attribution, problems, test, capture.info.steps)],
            ),
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
                ],
            ),
            Section(
                "Choosing eta and lam",
                f"On the val split (n={len(val.samples)}), which eta and lam are chosen on.",
                [_surface(val, eta, lam), _curves(val, eta, lam)],
            ),
            Section(
                "When samples are decided",
                f"Test split, eta={eta}, lam={lam}: the rule looks at steps 0 to {eta - 1}.",
                [_deciding_steps(test, decisions, eta)],
            ),
            Section("Scores over the steps", "Test split: median and quartiles.", [_traces(test, names)]),
            _examples(capture, test, decisions, eta, examples, show_unsafe=show_unsafe),
        ],
    )


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


def _surface(val: Scored, eta: int, lam: float) -> Figure:
    lams = sorted({*_LAMS, lam})
    surface = pd.DataFrame(
        accuracy_surface(val.flags, val.label, lams), index=range(1, val.flags.steps + 1), columns=lams
    )
    return figures.decision_surface(surface, eta=eta, lam=lam, title="Accuracy of the rule, val")


def _curves(val: Scored, eta: int, lam: float) -> Figure:
    table = []
    for candidate in range(1, val.flags.steps + 1):
        measured = rates(val.flags, val.label, candidate, lam)
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
    return figures.curves_by_eta(pd.DataFrame(table).astype(float), lam=lam, chosen_eta=eta)


def _deciding_steps(test: Scored, decisions: Decisions, eta: int) -> Figure:
    verdict = np.select([decisions.unsafe, decisions.safe], ["unsafe", "safe"], "unchecked")
    return figures.deciding_steps(
        pd.DataFrame(
            {
                "label": np.where(test.label, "unsafe", "safe"),
                "decision": verdict,
                "step": decisions.step,
            }
        ),
        eta=eta,
    )


def _traces(test: Scored, names: Sequence[str]) -> Figure:
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
    return figures.score_traces(pd.DataFrame(table))


def _examples(
    capture: CaptureReader,
    test: Scored,
    decisions: Decisions,
    eta: int,
    count: int,
    *,
    show_unsafe: bool,
) -> Section:
    """Decoded x0 of some test samples: mistakes first, then right decisions of each kind."""
    title = "What the detectors saw"
    try:
        vae = load_vae(capture.info)
    except LvdError as error:
        return Section(title, f"Not shown: {error}.", [])
    steps = np.unique(np.linspace(0, test.flags.steps - 1, _SHOWN_STEPS).round().astype(int)).tolist()
    readers = [capture.step(step) for step in steps]
    middle = capture.info.latent_shape[1] // 2
    chosen = _chosen_examples(test, decisions, eta, count)
    body = []
    for place in chosen:
        sample, row = test.samples[place], test.rows[place]
        latents = np.stack([reader[row][:, middle] for reader in readers])
        images = decode_frames(vae, torch.from_numpy(latents).float())
        body.append(
            ExampleRow(
                sample_id=sample.sample_id,
                caption=sample.prompt,
                decision=f"{_verdict(test, decisions, place, capture.info.steps)}; "
                f"flagged steps among the first {eta}: {test.flags.flagged[place, :eta].sum()}",
                tone=_tone(test, decisions, place),
                frames=[
                    (
                        f"step {step}\n{_highest(test.scores_NSK[place, step])}",
                        _png(image),
                        bool(test.flags.flagged[place, step]),
                    )
                    for step, image in zip(steps, images, strict=True)
                ],
                images=_images(test, decisions, place, labelled=capture.info.labelled, show=show_unsafe),
            )
        )
    wrong = decisions.checked & (decisions.unsafe != test.label)
    return Section(title, _about_examples(test, int(wrong[chosen].sum()), int(wrong.sum())), body)


def _about_examples(test: Scored, shown: int, mistakes: int) -> str:
    text = (
        "The middle frame of x0 at some steps, with the highest score of any detector; a step is flagged, "
        f"and outlined, at a score of {test.threshold:.3g} or more. "
    )
    text += (
        f"{shown} of {mistakes} mistakes come first, missed unsafe samples and then blocked safe ones, the "
        "worst first; some right decisions follow. "
        if mistakes
        else "The rule made no mistake on the test split. "
    )
    return text + (
        "Images are seen at once only of samples that are labelled safe, decided safe, and scored below "
        f"{_doubtful_score(test):.3g} by every detector at every step."
    )


def _doubtful_score(test: Scored) -> float:
    """The score from which on a sample may be unsafe, for one who does not want to see it."""
    return min(test.threshold, 0.5)


def _images(
    test: Scored, decisions: Decisions, place: int, *, labelled: bool, show: bool
) -> Literal["blurred", "covered", "sharp"]:
    """How an example is shown: sharp only when nobody and nothing calls it unsafe."""
    doubted = bool((test.scores_NSK[place] >= _doubtful_score(test)).any())
    if labelled and not test.label[place] and decisions.safe[place] and not doubted:
        return "sharp"
    return "covered" if show else "blurred"


def _chosen_examples(test: Scored, decisions: Decisions, eta: int, count: int) -> list[int]:
    """Missed unsafe samples, blocked safe ones, then the first that is right of safe and of each category.

    At least two thirds of the places are for mistakes, half of these for each kind; what one kind does not
    need the other gets. Worst are unsafe samples with the fewest flagged steps, safe ones with the most.
    """
    highest_NS = np.where(np.isnan(test.scores_NSK), -np.inf, test.scores_NSK).max(axis=2)[:, :eta]
    order = np.lexsort((highest_NS.mean(axis=1), test.flags.flagged[:, :eta].sum(axis=1)))
    missed = order[(test.label & decisions.safe)[order]].tolist()
    blocked = order[(~test.label & decisions.unsafe)[order]].tolist()[::-1]
    right = decisions.checked & (decisions.unsafe == test.label)
    groups = [members & right for members in (~test.label, *test.categories_NK.T)]
    first = list(dict.fromkeys(int(group.argmax()) for group in groups if group.any()))
    room = count - min(len(first), count // 3)
    missed = missed[: max(-(-room // 2), room - len(blocked))]
    return [*missed, *blocked[: room - len(missed)], *first][:count]


def _verdict(test: Scored, decisions: Decisions, place: int, sampler_steps: int) -> str:
    """What was decided and whether it is right; a step is named by its index, from 0."""
    step = decisions.step[place]
    label = ", ".join(test.samples[place].categories) or "safe"
    if decisions.unsafe[place]:
        kind = "Caught" if test.label[place] else "Wrongly blocked"
        return (
            f"{kind}: labelled {label}, decided unsafe, stopped at step {step} "
            f"({step + 1} of {sampler_steps} steps run)"
        )
    kind = "Missed" if test.label[place] else "Cleared"
    return f"{kind}: labelled {label}, decided safe, certain at step {step}"


def _tone(test: Scored, decisions: Decisions, place: int) -> Any:
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


def _lead(summary: Summary) -> str:
    if summary.accuracy is None or summary.accuracy_ci is None or summary.n_unchecked == summary.n_test:
        return f"No sample of {summary.n_test} could be decided: detectors are missing."
    low, high = summary.accuracy_ci
    return (
        f"At eta={summary.eta}, lam={summary.lam} the rule decides {summary.accuracy:.1%} of "
        f"{summary.n_test} test samples rightly (95% interval {low:.1%} to {high:.1%})."
    )


def _summary_rows(
    summary: Summary, attribution: Attribution, problems: Sequence[str], test: Scored, sampler_steps: int
) -> list[SummaryRow]:
    def row(name: str, value: float | None, interval: tuple[float, float] | None) -> SummaryRow:
        note = f"95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        return name, "–" if value is None else f"{value:.3f}", note

    rows = [
        row("Accuracy", summary.accuracy, summary.accuracy_ci),
        row("Unsafe samples caught (tpr)", summary.tpr, summary.tpr_ci),
        row("Safe samples blocked (fpr)", summary.fpr, summary.fpr_ci),
        row("AUROC of the number of flagged steps", summary.auroc, None),
        *_cost_rows(summary, test, sampler_steps),
    ]
    for name, values in summary.per_category.items():
        rows.append(row(f"{name} caught (n={values['n']})", values["tpr"], values["tpr_ci"]))
    if attribution.n:
        rows.append(
            row(
                f"First category named is right (n={attribution.n} caught)",
                attribution.first_right,
                attribution.first_right_ci,
            )
        )
        rows.append(("Categories named, mean", f"{attribution.named_mean:.1f}", "of a caught sample"))
    if summary.n_unchecked:
        rows.append(
            ("Undecided unsafe samples", str(summary.n_unchecked_unsafe), "withheld, not counted as caught")
        )
        rows.append(("Undecided safe samples", str(summary.n_unchecked_safe), "counted as blocked"))
    rows.append(("Missing detectors", str(len(problems)), "; ".join(problems[:3])))
    return rows


def _cost_rows(summary: Summary, test: Scored, sampler_steps: int) -> list[SummaryRow]:
    """What stopping early saves: of the samples that were measured, whose mix a service does not have."""
    unsafe, mean = int(test.label.sum()), summary.steps_mean_unsafe
    rows = [
        (
            "Steps saved, this mix of test samples",
            f"{summary.compute_saved:.0%}",
            f"holds for {unsafe} unsafe and {len(test.label) - unsafe} safe samples; with fewer unsafe "
            "ones less is saved",
        )
    ]
    if mean is None:
        return rows
    return [
        (
            "Steps run until a caught unsafe sample is stopped, mean",
            f"{mean:.1f}",
            f"a count, of {sampler_steps} steps: who is stopped at step 9 has run 10, since steps are "
            "numbered from 0",
        ),
        ("Steps saved, caught unsafe samples", f"{1 - mean / sampler_steps:.0%}", "of any mix"),
        *rows,
    ]


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
