"""Measure a run's defence: the whole grid's scores, the rules' decisions, the report, and the bundle.

Surfaces and curves are of the val split, which eta and lam are chosen on and boundaries are calibrated on.
The test split is read with the rules as they are then. No test sample counts whose prompt the detectors were
trained or selected on, in whatever capture that was.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from lvd.config import EvaluateConfig
from lvd.decide.recipe import EvaluationRecipe
from lvd.errors import LvdError
from lvd.evaluation.comparison import Compared, Entry, check_comparable, compare
from lvd.evaluation.measure import measure_run, open_run
from lvd.evaluation.write import Evaluation, write_evaluation
from lvd.latents.reader import CaptureReader
from lvd.sweep.results import learned_captures


def capture_to_measure(config: EvaluateConfig) -> Path:
    """The capture that is measured on.

    Raises:
        LvdError: runs that are compared learned from different ones, and none is given.
    """
    if config.capture is not None or not config.compare:
        return Path(config.captures) / (config.capture or config.name)
    learned = {run.name: learned_captures(run) for run in config.run_dirs}
    for name, captures in learned.items():
        if not captures:
            raise LvdError(f"{Path(config.runs) / name} has nothing trained: train it first")
    named = {capture for captures in learned.values() for capture in captures}
    if len(named) > 1:
        listed = ", ".join(f"{name} on {' and '.join(captures)}" for name, captures in learned.items())
        raise LvdError(
            f"the runs learned from different captures ({listed}): give capture=NAME to measure all on one"
        )
    return Path(config.captures) / named.pop()


def evaluate_runs(
    capture_dir: Path, runs: Sequence[Path], recipe: EvaluationRecipe, device: torch.device | None = None
) -> tuple[list[Evaluation], Compared | None]:
    """Score the capture with each run's detectors, decide by the rules, write `evaluation/`, export a bundle.

    The capture may be another than the runs were trained on. Several runs are laid side by side. Nothing is
    scored before all of them can be, and nothing is written before all are measured. `device` is where
    trunk and detectors run; None: the CPU.

    Raises:
        LvdError: the capture is not whole or not labelled, eta is more than the steps it holds, a run has no
            detector or stale ones, no test sample is left, the rule that was asked for cannot be had, or the
            runs are not measured on the same test samples.
    """
    capture = CaptureReader(capture_dir)
    steps = capture.info.stored_steps
    if recipe.eta > steps:
        raise LvdError(f"eta={recipe.eta} is more than the {steps} steps that are in {capture_dir}")
    if not any(sample.is_labelled for sample in capture.samples):
        raise LvdError(
            f"capture {capture_dir} has no labels: capture.py name={capture_dir.name} labels=FILE.csv"
        )
    opened = [open_run(capture, run, recipe.detector) for run in runs]
    check_comparable(
        {each.run.name: [capture.samples[row].sample_id for row in each.rows["test"]] for each in opened}
    )
    found = [measure_run(capture, each, recipe, device) for each in opened]
    compared = None
    if len(found) > 1:
        entries = [Entry(it.run, it.test, [(each.rule, each.summary) for each in it.rules]) for it in found]
        compared = compare(capture, entries, recipe.detector, device)
    return [write_evaluation(capture, it, recipe, compared) for it in found], compared
