"""Measure a run's defence: the whole grid's scores, the rules' decisions, the report, and the bundle.

Surfaces and curves are of the val split, which eta and lam are chosen on and boundaries are calibrated on.
The test split is read with the rules as they are then. No test sample counts whose prompt the detectors were
trained or selected on, in whatever capture that was.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from plotly.graph_objects import Figure

from lvd.comparison import Compared, Entry, check_comparable, compare
from lvd.config import EvaluateConfig
from lvd.decide.calibrate import calibrate, choose_threshold, with_release
from lvd.decide.metrics import Attribution, Summary, cell_metrics, measure_attribution, summarise
from lvd.decide.recipe import EvaluationRecipe
from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential, fading_evidence
from lvd.detect.bank import Scored, score_grid
from lvd.detect.rows import labelled_rows
from lvd.errors import LvdError
from lvd.files import write_atomically, write_json
from lvd.guard.bundle import BUNDLE_VERSION, BundleInfo
from lvd.guard.export import export_bundle
from lvd.latents.format import SPLITS, CaptureInfo, Sample, label_text
from lvd.latents.reader import CaptureReader
from lvd.report.defence import Findings, auroc_heatmap, hole, write_report
from lvd.report.tables import print_summary
from lvd.sweep.grid import Cell
from lvd.sweep.results import learned_captures
from lvd.sweep.state import Usable, usable
from lvd.sweep.trained_on import TrainedOn, seen
from lvd.tracking import LoggerConfig, tracker


@dataclass(frozen=True)
class Provenance:
    """The capture that the rates are of, and how it stands to the one that the detectors learned from."""

    capture: str
    trained_on: str  # that capture's name, or several joined by commas
    n_left_out: int  # labelled test samples: the detectors were trained or selected on their prompts
    n_unlabelled: dict[str, int]  # samples of each split, which nothing is learned from or measured on
    other_origin: list[str]  # the fields of capture.json in which the two differ

    def sentences(self) -> list[str]:
        """What a reader of the rates must know; nothing to know: []."""
        told = []
        if any(self.n_unlabelled.values()):
            counts = ", ".join(f"{count} of {split}" for split, count in self.n_unlabelled.items())
            told.append(f"unlabelled samples of {self.capture} are in no rate and no calibration: {counts}")
        if self.n_left_out:
            told.append(
                f"{self.n_left_out} test samples of {self.capture} are left out: the detectors were trained "
                f"or selected on their prompts, in {self.trained_on}"
            )
        if self.other_origin:
            told.append(
                f"{self.capture} was made otherwise than {self.trained_on}, which the detectors were trained "
                f"on ({', '.join(self.other_origin)}): the rates are not those of a guard, there is no bundle"
            )
        return told


@dataclass(frozen=True)
class Measured:
    """One rule, and what it did on the test split."""

    rule: Rule
    summary: Summary
    attribution: Attribution
    lost_by_release: int | None  # unsafe samples that would be caught if none was let go; None: none is

    def as_json(self) -> dict[str, Any]:
        bound = {}
        if isinstance(self.rule, Sequential):
            bound = {name: getattr(self.rule, name) for name in ("alpha", "guarantee", "prompts", "miss")}
            bound["lost_by_release"] = self.lost_by_release
        return {
            "decision": self.rule.kind,
            **bound,
            **self.summary.as_json(),
            "attribution": self.attribution.as_json(),
        }


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
            raise LvdError(f"{Path(config.runs) / name} has no detectors: train it first")
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
    detectors of pixels run.

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
    opened = [_open(capture, run) for run in runs]
    check_comparable(
        {each.run.name: [capture.samples[row].sample_id for row in each.rows["test"]] for each in opened}
    )
    found = [_measure(capture, each, recipe, device) for each in opened]
    compared = None
    if len(found) > 1:
        entries = [Entry(it.run, it.test, [(each.rule, each.summary) for each in it.rules]) for it in found]
        compared = compare(capture, entries, device)
    return [_write(capture, it, recipe, compared) for it in found], compared


@dataclass(frozen=True)
class _Opened:
    """A run that can be scored, and the rows of the capture that count for it."""

    run: Path
    state: Usable
    rows: dict[str, list[int]]
    provenance: Provenance


@dataclass(frozen=True)
class _Found:
    """A run's scores and what each rule did with them, before anything is written."""

    run: Path
    state: Usable
    provenance: Provenance
    val: Scored
    test: Scored
    rules: list[Measured]
    decision: Measured
    not_calibrated: str | None
    threshold: float
    problems: list[str]


def _open(capture: CaptureReader, run: Path) -> _Opened:
    names, steps = capture.info.category_names, capture.info.stored_steps
    state = usable(run, capture.directory, [Cell(name, step) for name in names for step in range(steps)])
    return _Opened(run, state, *_unseen(capture, state.trained_on))


def _measure(
    capture: CaptureReader, opened: _Opened, recipe: EvaluationRecipe, device: torch.device | None
) -> _Found:
    run, state = opened.run, opened.state
    names, steps = capture.info.category_names, capture.info.stored_steps
    grid = [Cell(name, step) for name in names for step in range(steps)]
    holes = {
        step: {c.category: why for c, why in state.holes.items() if c.step == step} for step in range(steps)
    }
    scored, problems = score_grid(capture, run, opened.rows, holes, device)
    if len(problems) == len(grid):
        raise LvdError(f"{run} has no detectors: python train.py -m category=0..{len(names) - 1} ...")
    val, test = scored["val"], scored["test"]

    eta, lam, threshold = recipe.eta, recipe.lam, recipe.threshold
    if recipe.max_fpr is not None:
        threshold = choose_threshold(val.scores_NSK, val.label, eta, lam, recipe.max_fpr)
    val, test = replace(val, threshold=threshold), replace(test, threshold=threshold)
    rules: list[Rule] = [Vote(eta, lam, threshold)]
    not_calibrated = None
    try:
        rules.append(_sequential(val, names, recipe))
    except LvdError as error:
        if recipe.decision == Sequential.kind:
            raise
        not_calibrated = str(error)
    measured = [
        Measured(
            rule,
            summarise(
                rule,
                test.scores_NSK,
                test.categories_NK,
                names,
                prompts_N=test.prompts,
                sampler_steps=capture.info.origin.steps,
            ),
            measure_attribution(rule, test.scores_NSK, test.categories_NK, test.prompts),
            _lost_by_release(rule, test),
        )
        for rule in rules
    ]
    chosen = next(each for each in measured if each.rule.kind == recipe.decision)
    return _Found(
        run,
        state,
        opened.provenance,
        val,
        test,
        measured,
        chosen,
        not_calibrated,
        threshold,
        problems,
    )


def _write(
    capture: CaptureReader, found: _Found, recipe: EvaluationRecipe, compared: Compared | None
) -> Evaluation:
    """Write `evaluation/`, and export a bundle where a guard can run one."""
    run, val, test, chosen, measured = found.run, found.val, found.test, found.decision, found.rules
    provenance, problems, not_calibrated = found.provenance, found.problems, found.not_calibrated
    names, steps = capture.info.category_names, capture.info.stored_steps
    directory = run / "evaluation"
    cells = _cells(test, names)
    numbers = {**chosen.as_json(), **vars(provenance)}
    exported, no_bundle = None, None
    if provenance.other_origin:
        no_bundle = "the detectors were trained on latents of another origin"
    elif found.state.on_frames:
        no_bundle = "its detectors read decoded frames, and a guard decodes nothing before it decides"
    elif np.isnan(test.scores_NSK[:, : chosen.rule.steps]).any():
        no_bundle = "a guard needs every detector of the steps that decide"
    else:
        info = _bundle_info(capture.info, chosen.rule, numbers)
        exported = export_bundle(run / "bundle", run, info, found.state.files)
    _write_scores(directory / "scores.csv", [val, test], names)
    findings = Findings(
        capture,
        [(each.rule, each.summary, each.attribution) for each in measured],
        chosen.rule,
        val,
        test,
        cells,
        problems,
        notes=[*provenance.sentences(), *([f"sequential: {not_calibrated}"] if not_calibrated else [])],
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
            "threshold": found.threshold,
            "max_fpr": recipe.max_fpr,
            "rules": {each.rule.kind: each.as_json() for each in measured},
            "not_calibrated": not_calibrated,
            "bundle": exported,
            "detectors": steps * len(names) - len(problems),
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
    )


def _sequential(val: Scored, names: tuple[str, ...], recipe: EvaluationRecipe) -> Sequential:
    """The rule whose boundaries are calibrated on the safe samples of val.

    Raises:
        LvdError: a score is missing, or there are too few safe val prompts.
    """
    if np.isnan(val.scores_NSK).any():
        raise LvdError("detectors are missing, and a calibrated rule needs every one")
    safe = np.flatnonzero(~val.label)
    calibrating = val.scores_NSK[safe], val.prompts[safe].tolist()
    rule = calibrate(
        fading_evidence(*val.scores_NSK.shape[1:]),
        *calibrating,
        names,
        alpha=recipe.alpha,
        guarantee=recipe.guarantee,
        policy=recipe.policy,
        shares=recipe.shares,
    )
    if recipe.miss is None:
        return rule
    unsafe = np.flatnonzero(val.label)
    return with_release(rule, *calibrating, val.scores_NSK[unsafe], val.prompts[unsafe].tolist(), recipe.miss)


def _lost_by_release(rule: Rule, test: Scored) -> int | None:
    """Unsafe samples that a rule would catch if it let none go; None: it lets none go."""
    if not isinstance(rule, Sequential) or rule.release is None:
        return None
    whole, own = (each.decide(test.scores_NSK).unsafe for each in (replace(rule, release=None), rule))
    return int((whole & ~own & test.label).sum())


def print_evaluation(found: Evaluation, run: Path, recipe: EvaluationRecipe) -> None:
    """What `evaluate.py` prints of a run: the rules' numbers, what limits them, and where the files are."""
    print_summary([(each.rule, each.summary, each.attribution) for each in found.rules], recipe.decision)
    for each in found.rules:
        if each.lost_by_release is not None:
            print(
                f"{each.rule.kind}: {each.lost_by_release} of {each.summary.n_unsafe} unsafe samples "
                "were let go that it would have caught at a later step"
            )
    if found.not_calibrated is not None:
        print(f"sequential is not there: {found.not_calibrated}")
    if recipe.max_fpr is not None:
        print(f"threshold {found.threshold:.4f}, chosen on val for max_fpr={recipe.max_fpr}")
    if found.problems:
        print(f"{len(found.problems)} detectors are missing, e.g. {found.problems[0]}")
    for sentence in found.provenance.sentences():
        print(sentence)
    print(f"report: {found.report}")
    bundle = run / "bundle"
    if found.bundle is not None:
        print(f"bundle: {bundle}, digest {found.bundle}")
        return
    if not found.provenance.other_origin:
        print(f"no bundle: {found.no_bundle}")
    if bundle.exists():
        print(f"{bundle} is still the one of an earlier evaluation")


def log_evaluation(evaluation: Evaluation, run: Path, chosen: LoggerConfig, config: dict[str, Any]) -> None:
    """Log the rules' numbers and the detectors'; to wandb as one aggregate run with a table and a heatmap."""
    with tracker(
        chosen,
        run / "evaluation",
        group=run.name,
        name=f"{run.name}/evaluation",
        job_type="evaluation",
        tags=["evaluation"],
        config=config,
    ) as tracked:
        if tracked.wandb is not None:
            import wandb

            tracked.wandb.log(
                {
                    "detectors": wandb.Table(dataframe=evaluation.cells),
                    "auroc_by_category_and_step": wandb.Plotly(evaluation.heatmap),
                }
            )
            tracked.wandb.summary.update(
                {
                    **evaluation.decision.as_json(),
                    "rules": {each.rule.kind: each.as_json() for each in evaluation.rules},
                }
            )
        elif tracked.logger is not None:
            tracked.logger.log_metrics(_rule_numbers(evaluation), step=0)
            for step, metrics in _detector_numbers(evaluation).items():
                tracked.logger.log_metrics(metrics, step=step)


def _rule_numbers(evaluation: Evaluation) -> dict[str, float]:
    """The numbers of each rule's summary; what could not be measured is left out."""
    return {
        f"{each.rule.kind}/{name}": value
        for each in evaluation.rules
        for name, value in each.as_json().items()
        if isinstance(value, int | float)
    }


def _detector_numbers(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """By step, each category's AUROC and accuracy; of detectors that could not be measured, none."""
    found: dict[int, dict[str, float]] = {}
    for row in evaluation.cells.to_dict("records"):
        numbers = {f"{name}/{row['category']}": float(row[name]) for name in ("auroc", "accuracy")}
        known = {name: value for name, value in numbers.items() if np.isfinite(value)}
        found.setdefault(int(row["step"]), {}).update(known)
    return {step: numbers for step, numbers in found.items() if numbers}


def _unseen(
    capture: CaptureReader, trained_on: Sequence[TrainedOn]
) -> tuple[dict[str, list[int]], Provenance]:
    """The rows that count: val samples that nothing was trained on, test samples not selected on either.

    Raises:
        LvdError: the detectors are of latents of another shape, or no test sample is left.
    """
    trained = frozenset[str]().union(*(learned.trained for learned in trained_on))
    selected = frozenset[str]().union(*(learned.selected for learned in trained_on))
    origin = sorted({field for learned in trained_on for field in learned.other_origin(capture.info)})
    learned_from = ", ".join(sorted({learned.capture for learned in trained_on}))
    name = capture.directory.name
    if "latent_shape" in origin:
        raise LvdError(
            f"the detectors were trained on latents of another shape, those of {learned_from}: "
            f"capture {name} cannot be scored"
        )
    samples = capture.samples
    test = labelled_rows(samples, "test")
    rows = {
        "val": _without(samples, labelled_rows(samples, "val"), trained),
        "test": _without(samples, test, trained | selected),
    }
    if not rows["test"]:
        raise LvdError(
            f"no test sample of {capture.directory} is left to measure on: the detectors were trained or "
            f"selected on all their prompts, in {learned_from}"
            if test
            else f"{capture.directory} has no labelled test sample: capture or label more"
        )
    unlabelled = {split: sum(s.split == split and not s.is_labelled for s in samples) for split in SPLITS}
    return rows, Provenance(name, learned_from, len(test) - len(rows["test"]), unlabelled, origin)


def _without(samples: Sequence[Sample], rows: Sequence[int], keys: frozenset[str]) -> list[int]:
    """The rows whose prompts the keys are not of."""
    known = seen([samples[row] for row in rows], keys)
    return [row for row, is_known in zip(rows, known, strict=True) if not is_known]


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


def _bundle_info(info: CaptureInfo, rule: Rule, measured: dict[str, Any]) -> BundleInfo:
    """The rule, what it was measured to do, and how the latents are made that it is for."""
    return BundleInfo(
        format_version=BUNDLE_VERSION,
        rule=rule,
        category_names=info.category_names,
        origin=info.origin,
        measured=measured,
    )
