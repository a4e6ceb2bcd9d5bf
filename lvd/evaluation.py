"""Measure a run's defence: the whole grid's scores, the rule's decisions, the report, and the bundle.

Surfaces and curves are of the val split, which eta and lam are chosen on. The test split is read at the
chosen eta and lam alone.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from plotly.graph_objects import Figure

from lvd.decide.calibrate import choose_threshold
from lvd.decide.metrics import Summary, cell_metrics, summarise
from lvd.detect.bank import Scored, score_grid
from lvd.errors import LvdError
from lvd.guard.bundle import BUNDLE_VERSION, BundleInfo, export_bundle
from lvd.latents.format import CaptureInfo, write_atomically, write_json
from lvd.latents.reader import CaptureReader
from lvd.report.defence import auroc_heatmap, hole, write_report
from lvd.report.wandb import WandbTarget, wandb_run


@dataclass(frozen=True)
class Evaluation:
    """What evaluate.py found: the summary, the page, and the pieces that wandb shows too."""

    summary: Summary
    threshold: float
    report: Path
    cells: pd.DataFrame
    heatmap: Figure
    problems: list[str]
    bundle: str | None  # the digest of the exported bundle; None: a detector that it needs is missing


def evaluate(
    capture_dir: Path,
    run: Path,
    *,
    eta: int,
    lam: float,
    threshold: float,
    max_fpr: float | None = None,
    examples: int,
    show_unsafe: bool,
) -> Evaluation:
    """Score val and test, decide, and write `evaluation/` and `bundle/` of the run.

    With `max_fpr`, the threshold is the lowest that blocks at most that share of the safe val samples.

    Raises:
        LvdError: the capture is not whole, eta is more than the steps it holds, or the run has no detector.
    """
    capture = CaptureReader(capture_dir)
    names, steps = capture.info.category_names, capture.info.stored_steps
    if eta > steps:
        raise LvdError(f"eta={eta} is more than the {steps} steps that are in {capture_dir}")
    val, test, problems = score_grid(capture, run)
    if len(problems) == steps * len(names):
        raise LvdError(f"{run} has no detectors: python train.py -m category=0..{len(names) - 1} ...")

    if max_fpr is not None:
        threshold = choose_threshold(val.scores_NSK, val.label, eta, lam, max_fpr)
    val, test = replace(val, threshold=threshold), replace(test, threshold=threshold)

    directory = run / "evaluation"
    summary = summarise(test.flags, test.categories_NK, names, eta, lam, sampler_steps=capture.info.steps)
    cells = _cells(test, names)
    _write_scores(directory / "scores.csv", [val, test], names)
    write_json(
        directory / "summary.json",
        {
            **summary.as_json(),
            "threshold": threshold,
            "max_fpr": max_fpr,
            "detectors": steps * len(names) - len(problems),
            "detectors_missing": problems,
        },
    )
    write_report(
        directory / "report.html",
        f"{run.name}: the measured defence",
        capture,
        summary,
        val,
        test,
        cells,
        problems,
        examples=examples,
        show_unsafe=show_unsafe,
    )
    return Evaluation(
        summary,
        threshold,
        directory / "report.html",
        cells,
        auroc_heatmap(cells, names),
        problems,
        _export(run, capture.info, summary, test),
    )


def log_to_wandb(evaluation: Evaluation, run: Path, target: WandbTarget, config: dict[str, Any]) -> None:
    """One aggregate run: the summary, a table of all detectors and the heatmap."""
    with wandb_run(
        target,
        run / "evaluation",
        group=run.name,
        name=f"{run.name}/evaluation",
        job_type="evaluation",
        tags=["evaluation"],
        config=config,
    ) as logged:
        if logged is None:
            return
        import wandb

        logged.log(
            {
                "detectors": wandb.Table(dataframe=evaluation.cells),
                "auroc_by_category_and_step": wandb.Plotly(evaluation.heatmap),
            }
        )
        logged.summary.update(evaluation.summary.as_json())


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
        frames.append(
            pd.DataFrame(
                {
                    "sample_id": np.repeat([s.sample_id for s in part.samples], steps * categories),
                    "split": part.samples[0].split if part.samples else "",
                    "label": np.repeat(["|".join(s.categories) for s in part.samples], steps * categories),
                    "step": np.tile(np.repeat(np.arange(steps), categories), samples),
                    "category": np.tile(list(names), samples * steps),
                    "score": part.scores_NSK.ravel(),
                }
            )
        )
    text = pd.concat(frames).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_atomically(path, text.encode())


def _export(run: Path, info: CaptureInfo, summary: Summary, test: Scored) -> str | None:
    """The digest of the run's bundle, or None, and no bundle, when a detector that decides is missing."""
    shutil.rmtree(run / "bundle", ignore_errors=True)  # of an earlier evaluation
    if np.isnan(test.scores_NSK[:, : summary.eta]).any():
        return None
    return export_bundle(
        run / "bundle",
        run,
        BundleInfo(
            format_version=BUNDLE_VERSION,
            eta=summary.eta,
            lam=summary.lam,
            threshold=test.threshold,
            measured=summary.as_json(),
            **{
                name: getattr(info, name)
                for name in (
                    "category_names",
                    "pipeline",
                    "revision",
                    "pipeline_class",
                    "fingerprint",
                    "scheduler",
                    "scheduler_config",
                    "layout",
                    "steps",
                    "guidance",
                    "call",
                    "latent_shape",
                    "x0_from",
                )
            },
        ),
    )
