"""The report's page: what was measured, laid out."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from plotly.graph_objects import Figure
from torch import Tensor

from lvd.capture.decode import decode_frames, load_vae
from lvd.decide.metrics import Summary, accuracy_surface, rates
from lvd.decide.rules import Decisions, decide
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
    *,
    examples: int,
    show_unsafe: bool,
) -> None:
    """Write the self-contained page. `cells` has a row a detector; `problems` name the missing ones."""
    names, eta, lam = capture.info.category_names, summary.eta, summary.lam
    decisions = decide(test.flags, eta, lam)
    write_page(
        path,
        title=title,
        lead=_lead(summary),
        sections=[
            Section("Summary", "", [_summary_rows(summary, problems)]),
            Section(
                "Detectors",
                _holes(problems),
                [
                    auroc_heatmap(cells, names),
                    figures.cell_heatmap(
                        cells.pivot(index="category", columns="step", values="accuracy").loc[list(names)],
                        title=f"Balanced accuracy of each detector at threshold {test.threshold:.3g}, test",
                        colour_range=(0.5, 1.0),
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
                f"Test split, eta={eta}, lam={lam}.",
                [_deciding_steps(test, decisions)],
            ),
            Section("Scores over the steps", "Test split: median and quartiles.", [_traces(test, names)]),
            _examples(capture, test, decisions, examples, show_unsafe=show_unsafe),
        ],
    )


def auroc_heatmap(cells: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Category x step, of the test split."""
    return figures.cell_heatmap(
        cells.pivot(index="category", columns="step", values="auroc").loc[list(names)],
        title="AUROC of each detector, test",
        colour_range=(0.5, 1.0),
    )


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


def _deciding_steps(test: Scored, decisions: Decisions) -> Figure:
    verdict = np.select([decisions.unsafe, decisions.safe], ["unsafe", "safe"], "unchecked")
    return figures.deciding_steps(
        pd.DataFrame(
            {
                "label": np.where(test.label, "unsafe", "safe"),
                "decision": verdict,
                "step": decisions.step,
            }
        )
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
    count: int,
    *,
    show_unsafe: bool,
) -> Section:
    """Decoded x0 of some test samples: wrong decisions first, then one of each category and safe ones."""
    title = "What the detectors saw"
    text = "The middle frame of x0 at some steps, with the highest score; flagged steps are outlined."
    try:
        vae = load_vae(capture.info)
    except LvdError as error:
        return Section(title, f"Not shown: {error}.", [])
    steps = np.unique(np.linspace(0, test.flags.steps - 1, _SHOWN_STEPS).round().astype(int)).tolist()
    readers = [capture.step(step) for step in steps]
    middle = capture.info.latent_shape[1] // 2
    body = []
    for place in _chosen_examples(test, decisions, count):
        sample, row = test.samples[place], test.rows[place]
        latents = np.stack([reader[row][:, middle] for reader in readers])
        images = decode_frames(vae, torch.from_numpy(latents).float())
        highest = test.scores_NSK[place].max(axis=1)
        body.append(
            ExampleRow(
                caption=f"{sample.prompt} ({', '.join(sample.categories) or 'safe'})",
                decision=_verdict(decisions, place),
                tone=_tone(test, decisions, place),
                frames=[
                    (f"step {step}\n{highest[step]:.2f}", _png(image), bool(test.flags.flagged[place, step]))
                    for step, image in zip(steps, images, strict=True)
                ],
                blurred=bool(sample.categories) and not show_unsafe,
            )
        )
    return Section(title, f"{text} A step is flagged at a score of {test.threshold:.3g} or more.", body)


def _chosen_examples(test: Scored, decisions: Decisions, count: int) -> list[int]:
    wrong = np.flatnonzero((decisions.unsafe != test.label) & decisions.checked).tolist()[: count // 3]
    groups = [*test.categories_NK.T, ~test.label]
    first = [
        int(np.flatnonzero(members & (decisions.unsafe == test.label))[:1][0])
        for members in groups
        if (members & (decisions.unsafe == test.label)).any()
    ]
    return list(dict.fromkeys([*wrong, *first]))[:count]


def _verdict(decisions: Decisions, place: int) -> str:
    step = decisions.step[place]
    if decisions.unsafe[place]:
        return f"unsafe, stopped at step {step}"
    return f"safe, certain at step {step}" if decisions.safe[place] else "unchecked"


def _tone(test: Scored, decisions: Decisions, place: int) -> Any:
    if decisions.unsafe[place] != test.label[place]:
        return "wrong"
    return "unsafe" if test.label[place] else "safe"


def _png(image_CHW: Tensor) -> bytes:
    pixels = (image_CHW.permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _lead(summary: Summary) -> str:
    if summary.accuracy is None or summary.accuracy_ci is None:
        return f"No sample of {summary.n_test} could be decided: detectors are missing."
    low, high = summary.accuracy_ci
    return (
        f"At eta={summary.eta}, lam={summary.lam} the rule decides {summary.accuracy:.1%} of "
        f"{summary.n_test} test samples rightly (95% interval {low:.1%} to {high:.1%})."
    )


def _summary_rows(summary: Summary, problems: Sequence[str]) -> list[SummaryRow]:
    def row(name: str, value: float | None, interval: tuple[float, float] | None) -> SummaryRow:
        note = f"95% interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        return name, "–" if value is None else f"{value:.3f}", note

    rows = [
        row("Accuracy", summary.accuracy, summary.accuracy_ci),
        row("Unsafe samples caught (tpr)", summary.tpr, summary.tpr_ci),
        row("Safe samples blocked (fpr)", summary.fpr, summary.fpr_ci),
        row("AUROC of the number of flagged steps", summary.auroc, None),
        row("Mean steps until a caught sample is stopped", summary.steps_mean_unsafe, None),
        row("Denoising steps saved, all test samples", summary.compute_saved, None),
    ]
    for name, values in summary.per_category.items():
        rows.append(row(f"{name} caught (n={values['n']})", values["tpr"], values["tpr_ci"]))
    if summary.n_unchecked:
        rows.append(("Unchecked for want of detectors", str(summary.n_unchecked), "counted in no rate"))
    rows.append(("Missing detectors", str(len(problems)), "; ".join(problems[:3])))
    return rows


def _holes(problems: Sequence[str]) -> str:
    if not problems:
        return "Each cell is one detector, on its category's test samples and the safe ones."
    return f"{len(problems)} detectors are missing and shown as holes; they are never counted as zero."
