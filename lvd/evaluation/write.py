"""What an evaluation leaves in a run: scores, summary, report and bundle."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from lvd.decide.metrics import cell_metrics
from lvd.decide.recipe import EvaluationRecipe
from lvd.decide.rules import Rule
from lvd.detect.bank import Scored
from lvd.evaluation.comparison import Compared
from lvd.evaluation.measure import Found, Measured
from lvd.evaluation.provenance import Provenance
from lvd.files import write_atomically, write_json
from lvd.guard.bundle import BundleInfo
from lvd.guard.export import export_bundle
from lvd.guard.verify import BUNDLE_VERSION
from lvd.latents.format import CaptureInfo, label_text
from lvd.latents.reader import CaptureReader
from lvd.report.defence import Findings, auroc_heatmap, hole, write_report


@dataclass(frozen=True)
class Evaluation:
    """What evaluate.py found: each rule's numbers, the page, and the pieces that wandb shows too."""

    decision: Measured  # by the rule that was asked for, which is in the bundle
    rules: list[Measured]  # the vote, and the sequential rule where it could be calibrated
    not_calibrated: str | None  # why it could not
    provenance: Provenance
    threshold: float  # of the vote
    report: Path
    cells: pd.DataFrame
    heatmap: Figure
    problems: list[str]
    bundle: str | None  # the digest of the exported bundle
    no_bundle: str | None  # why there is none
    refused: list[str]  # why a guard refuses it, in sentences


def write_evaluation(
    capture: CaptureReader, found: Found, recipe: EvaluationRecipe, compared: Compared | None
) -> Evaluation:
    """Write `evaluation/`, and export a bundle where a guard can run one."""
    run, val, test, chosen, measured = found.run, found.val, found.test, found.decision, found.rules
    provenance, problems, not_calibrated = found.provenance, found.problems, found.not_calibrated
    names, steps = capture.info.category_names, capture.info.stored_steps
    directory = run / "evaluation"
    cells = _cells(test, names)
    numbers = {**chosen.as_json(), **vars(provenance)}
    exported, no_bundle, refused = None, None, list[str]()
    if provenance.other_origin:
        no_bundle = "the detectors were trained on latents of another origin"
    elif found.state.on_frames:
        no_bundle = "its detectors read decoded frames, and a guard decodes nothing before it decides"
    elif np.isnan(test.scores_NSK[:, : chosen.rule.steps]).any():
        no_bundle = "a guard needs every detector of the steps that decide"
    else:
        info = _bundle_info(capture.info, chosen.rule, recipe.detector, numbers)
        exported = export_bundle(run / "bundle", run, info, found.state.files)
        refused = [f"a guard refuses the bundle: {why}" for why in info.origin.x0_mismatches()]
    _write_scores(directory / "scores.csv", [val, test], names)
    findings = Findings(
        capture,
        [(each.rule, each.summary, each.attribution) for each in measured],
        chosen.rule,
        val,
        test,
        cells,
        problems,
        notes=[
            *refused,
            *provenance.notes(),
            *([f"sequential: {not_calibrated}"] if not_calibrated else []),
        ],
        compared=[] if compared is None else [compared.section()],
    )
    write_report(
        directory / "report.html",
        f"{run.name}: the measured defence",
        findings,
        examples=recipe.examples,
        show_unsafe=recipe.show_unsafe,
    )
    if compared is None:
        (directory / "comparison.csv").unlink(missing_ok=True)  # of an evaluation before this one
    else:
        write_atomically(directory / "comparison.csv", compared.as_csv())
    write_json(
        directory / "summary.json",
        {
            **numbers,
            "detector": recipe.detector,
            "threshold": found.threshold,
            "max_fpr": recipe.max_fpr,
            "rules": {each.rule.kind: each.as_json() for each in measured},
            "not_calibrated": not_calibrated,
            "bundle": exported,
            "detectors": 1 if recipe.detector == "unified" else steps * len(names) - len(problems),
            "detectors_missing": problems,
            "comparison": None if compared is None else compared.as_json(),
        },
    )
    return Evaluation(
        chosen,
        measured,
        not_calibrated,
        provenance,
        found.threshold,
        directory / "report.html",
        cells,
        auroc_heatmap(cells, names),
        problems,
        exported,
        no_bundle,
        refused,
    )


def _cells(test: Scored, names: Sequence[str]) -> pd.DataFrame:
    """A row a detector: its metrics on its category's test samples and the safe ones."""
    table = []
    for column, name in enumerate(names):
        positive = test.categories_NK[:, column]
        members = positive | ~test.label
        for step in range(test.flags.steps):
            metrics = cell_metrics(positive[members], test.scores_NSK[members, step, column], test.threshold)
            why = hole(test, column, step)
            table.append({"category": name, "step": step, "n": int(members.sum()), **metrics, "hole": why})
    return pd.DataFrame(table)


def _write_scores(path: Path, parts: Sequence[Scored], names: Sequence[str]) -> None:
    frames = []
    for part in parts:
        samples, steps, categories = part.scores_NSK.shape
        labels = ["" if s.is_safe else label_text(s.categories) for s in part.samples]
        frames.append(
            pd.DataFrame(
                {
                    "sample_id": np.repeat([s.sample_id for s in part.samples], steps * categories),
                    "split": part.samples[0].split if part.samples else "",
                    "label": np.repeat(labels, steps * categories),
                    "step": np.tile(np.repeat(np.arange(steps), categories), samples),
                    "category": np.tile(list(names), samples * steps),
                    "score": part.scores_NSK.ravel(),
                }
            )
        )
    text = pd.concat(frames).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(path, text.encode())


def _bundle_info(info: CaptureInfo, rule: Rule, detector: str, measured: dict[str, Any]) -> BundleInfo:
    """The rule, what it was measured to do, and how the latents are made that it is for."""
    return BundleInfo(
        format_version=BUNDLE_VERSION,
        rule=rule,
        category_names=info.category_names,
        origin=info.origin,
        measured=measured,
        detector=detector,
    )
