"""Score a run's whole grid and decide by each rule: nothing is written here.

Boundaries and thresholds are set on val; the test split is read with the rules as they are then.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvd.decide.calibrate import calibrate, choose_threshold, with_release
from lvd.decide.metrics import Attribution, Summary, measure_attribution, summarise
from lvd.decide.recipe import EvaluationRecipe
from lvd.decide.rules import Rule, Vote
from lvd.decide.sequential import Sequential, fading_evidence
from lvd.detect.bank import Scored, score_grid, score_unified
from lvd.errors import LvdError
from lvd.evaluation.provenance import Provenance, rows_that_count
from lvd.latents.reader import CaptureReader
from lvd.sweep.grid import all_cells
from lvd.sweep.state import Usable, usable, usable_trunk


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
class Opened:
    """A run that can be scored, and the rows of the capture that count for it."""

    run: Path
    state: Usable
    rows: dict[str, list[int]]
    provenance: Provenance


@dataclass(frozen=True)
class Found:
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


def open_run(capture: CaptureReader, run: Path, detector: str) -> Opened:
    if detector == "unified":
        state = usable_trunk(run, capture.directory)
    else:
        state = usable(run, capture.directory, all_cells(capture.info))
    return Opened(run, state, *rows_that_count(capture, state.trained_on))


def measure_run(
    capture: CaptureReader, opened: Opened, recipe: EvaluationRecipe, device: torch.device | None
) -> Found:
    run, state = opened.run, opened.state
    names, steps = capture.info.category_names, capture.info.stored_steps
    problems: list[str] = []
    if recipe.detector == "unified":
        scored = score_unified(capture, run, opened.rows)
    else:
        holes = {
            step: {c.category: why for c, why in state.holes.items() if c.step == step}
            for step in range(steps)
        }
        scored, problems = score_grid(capture, run, opened.rows, holes, device)
    if len(problems) == steps * len(names):
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
    return Found(
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
