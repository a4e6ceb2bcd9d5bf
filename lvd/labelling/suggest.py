"""Suggestions for people who label: the scores of a run's grid, or of any program. They never are labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from lvd.capture.table import read_table
from lvd.decide.rules import Rule
from lvd.detect.bank import grid_scores, unified_scores
from lvd.errors import LvdError
from lvd.guard.bundle import load_bundle
from lvd.latents.reader import CaptureReader


@dataclass(frozen=True)
class Decision:
    """What a run's rule makes of a sample."""

    unsafe: bool
    step: int  # at which it was fixed
    categories: tuple[str, ...]  # of an unsafe one, the strongest first


@dataclass(frozen=True)
class Suggestions:
    """What one source says of a capture's samples."""

    source: str
    scores: Mapping[str, Mapping[str, float]]  # sample_id -> category -> score in [0, 1]
    decisions: Mapping[str, Decision] = field(default_factory=dict)  # of a run that was evaluated


def of_run(capture: CaptureReader, run: Path, device: torch.device | None = None) -> Suggestions:
    """The mean of each category's scores over all stored steps, and the decisions of the run's bundle.

    The run may have learned from other labels than those of today. `device` is where trunk and detectors
    run; None: the CPU.

    Raises:
        LvdError: there is no such run, it has no detector for this capture's categories and latents, or its
            bundle is damaged.
    """
    if not run.is_dir():
        raise LvdError(f"no run at {run}: run=NAME is the name that train.py was given")
    names, steps = capture.info.category_names, capture.info.stored_steps
    bundle = load_bundle(run / "bundle").info if (run / "bundle").exists() else None
    if bundle is not None and bundle.detector == "unified":
        scores_NSK = unified_scores(capture, run)
    else:
        scores_NSK = _grid_scores(capture, run, device)
    mean_NK = scores_NSK.nanmean(dim=1)
    scores = {
        sample.sample_id: {
            name: float(score) for name, score in zip(names, row, strict=True) if not np.isnan(score)
        }
        for sample, row in zip(capture.samples, mean_NK.tolist(), strict=True)
    }
    decisions = {}
    if bundle is not None and bundle.rule.steps <= steps:
        decisions = _decided(capture, bundle.rule, scores_NSK)
    return Suggestions(f"run {run.name}", scores, decisions)


def _grid_scores(capture: CaptureReader, run: Path, device: torch.device | None) -> torch.Tensor:
    """Of every sample `[N, S, K]`, NaN where a detector is missing; raises as `of_run`."""
    scores_NSK, problems = grid_scores(capture, run, range(len(capture.samples)), {}, device)
    if len(problems) == capture.info.stored_steps * len(capture.info.category_names):
        raise LvdError(f"{run} has no detectors to suggest anything with: {problems[0]}")
    return scores_NSK


def _decided(capture: CaptureReader, rule: Rule, scores_NSK: torch.Tensor) -> dict[str, Decision]:
    """By sample_id; a sample that could not be decided is left out."""
    table = scores_NSK.numpy()
    found = rule.decide(table)
    names = capture.info.category_names
    decisions = {}
    for row, sample in enumerate(capture.samples):
        if not found.checked[row]:
            continue
        unsafe, step = bool(found.unsafe[row]), int(found.step[row])
        given = rule.attribute(table[row, : step + 1]) if unsafe else ()
        decisions[sample.sample_id] = Decision(unsafe, step, tuple(names[index] for index in given))
    return decisions


def of_file(capture: CaptureReader, path: Path) -> Suggestions:
    """What any program wrote: a table `sample_id, category` and, in [0, 1], `score` (without it: 1).

    Raises:
        LvdError: names the file, the row and what is wrong with it.
    """
    table = read_table(path, {"sample_id", "category", "score"})
    if not {"sample_id", "category"} <= set(table.columns):
        raise LvdError(f"{path} needs the columns sample_id, category and, where it has scores, score")
    known = {sample.sample_id for sample in capture.samples}
    scores: dict[str, dict[str, float]] = {}
    for row in table.rows:
        sample_id, category = row.values["sample_id"], row.values["category"].strip()
        if sample_id not in known:
            raise LvdError(f"{row.where}: the capture has no sample {sample_id!r}")
        if category not in capture.info.category_names:
            raise LvdError(
                f"{row.where}: unknown category {category!r}, use {', '.join(capture.info.category_names)}"
            )
        by = scores.setdefault(sample_id, {})
        if category in by:
            raise LvdError(f"{row.where}: {category} of sample {sample_id} appears twice")
        by[category] = _score(row.values.get("score", "1"), row.where)
    return Suggestions(path.name, scores)


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 1:
        raise LvdError(f"{where}: score {text!r} must be a number from 0 to 1")
    return score
