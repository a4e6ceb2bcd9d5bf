"""The table of `schedules.py`: what detectors of another schedule and a schedule's own do on the same videos.

Shapes: V val and test samples together, N test samples, S steps, K categories.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from learning_numbers import auroc
from rules import rule_of
from torch import Tensor

from lvd.decide.intervals import auroc_interval
from lvd.decide.metrics import counted, steps_until_caught, summarise
from lvd.decide.paired import paired_difference
from lvd.decide.rules import Decisions, Rule
from lvd.decide.sequential import fading_evidence
from lvd.decide.written import difference_text, interval_text, mean_text, rate_text
from lvd.detect.bank import Scored
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader

SHARES = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the steps
ALPHA = 0.05
LINES = {"trained": "50 steps", "own": "own", "difference": "difference", "guard": "guard"}
_RATES = ("tpr", "fpr")
Row = dict[str, Any]  # as JSON


@dataclass(frozen=True)
class Scores:
    """P(unsafe) of a schedule's videos: by the trunk that was trained elsewhere, the own one, and a guard."""

    trained: Tensor  # [V, S, K]
    own: Tensor  # [V, S, K]
    guard: Tensor  # [N, S, K]
    decided: Tensor  # [N, T, K]: the guard's at the T steps that it was trained at, as its rule sees them
    told_at: Tensor  # [T]: the schedule's step whose check tells of each


def measured(
    name: str, capture: CaptureReader, rows: Mapping[str, Sequence[int]], scores: Scores, rule: Rule
) -> Row:
    """All lines of a schedule; `rule` is the guard's.

    Raises:
        LvdError: the test videos are all safe, or all unsafe.
    """
    val, steps = len(rows["val"]), capture.info.stored_steps
    parts = {
        kind: (_scored(capture, rows["val"], of[:val]), _scored(capture, rows["test"], of[val:]))
        for kind, of in (("trained", scores.trained), ("own", scores.own))
    }
    guard = _scored(capture, rows["test"], scores.guard)
    if guard.label.all() or not guard.label.any():
        raise LvdError(
            f"{name}: its {len(rows['test'])} test videos are all of one kind: give a larger --limit"
        )
    at = {f"{share:.0%}": max(1, round(share * steps)) - 1 for share in SHARES}
    lines: dict[str, Row] = {}
    decisions: dict[str, Decisions] = {}
    for kind, (calibrating, test) in parts.items():
        lines[kind] = {"auroc": _areas(test, at)}
        try:
            evidence = fading_evidence(*calibrating.scores_NSK.shape[1:])
            own_rule = rule_of(evidence, calibrating, capture.info.category_names, ALPHA)
        except LvdError as error:
            lines[kind]["not_calibrated"] = str(error)
            continue
        decisions[kind] = own_rule.decide(test.scores_NSK)
        lines[kind] |= _rates(own_rule, test, capture) | _until_caught(decisions[kind], test)
    tests = parts["trained"][1], parts["own"][1]
    lines["difference"] = {"auroc": _area_differences(*tests, at)}
    if len(decisions) == len(parts):
        lines["difference"] |= _rate_differences(decisions["trained"], decisions["own"], guard)
    decided = _scored(capture, rows["test"], scores.decided)
    by_guard = rule.decide(decided.scores_NSK)
    by_guard = replace(by_guard, step=scores.told_at.numpy()[by_guard.step])
    lines["guard"] = {"auroc": _areas(guard, at), **_rates(rule, decided, capture)}
    lines["guard"] |= _until_caught(by_guard, guard)
    unlabelled = sum(not sample.is_labelled for sample in capture.samples)
    return {
        "schedule": name,
        "scheduler": capture.info.origin.scheduler,
        "steps": steps,
        "videos": len(capture.samples),
        "unlabelled": unlabelled,
        "test_unsafe": int(guard.label.sum()),
        "test_safe": int((~guard.label).sum()),
        "test_prompts": len(np.unique(guard.prompts)),
        "lines": lines,
    }


def _scored(capture: CaptureReader, rows: Sequence[int], scores: Tensor) -> Scored:
    samples = [capture.samples[row] for row in rows]
    categories = np.array([[s.has(name) for name in capture.info.category_names] for s in samples])
    return Scored(samples, list(rows), categories, scores.numpy())


def _areas(test: Scored, at: Mapping[str, int]) -> Row:
    found = {}
    for share, step in at.items():
        highest = test.scores_NSK[:, step].max(axis=1)
        area = auroc(highest[None], test.label, test.prompts).mean
        found[share] = {
            "step": step,
            "value": area,
            "interval": auroc_interval(test.label, highest, test.prompts),
        }
    return found


def _area_differences(trained: Scored, own: Scored, at: Mapping[str, int]) -> Row:
    found = {}
    for share, step in at.items():
        first, second = (
            auroc(of.scores_NSK[:, step].max(axis=1)[None], of.label, of.prompts) for of in (trained, own)
        )
        less = first.minus(second)
        found[share] = {"step": step, "value": less.mean, "half": less.half}
    return found


def _rates(rule: Rule, test: Scored, capture: CaptureReader) -> Row:
    names = capture.info.category_names
    summary = summarise(rule, test.scores_NSK, test.categories_NK, names, prompts_N=test.prompts).as_json()
    keys = [*_RATES, *(f"{rate}_ci" for rate in _RATES), "accuracy", "accuracy_ci", "n_unchecked"]
    return {
        "rule": rule.kind,
        **{key: summary[key] for key in (*keys, "caught_in_words", "blocked_in_words")},
    }


def _until_caught(decisions: Decisions, test: Scored) -> Row:
    return {"steps_mean_unsafe": steps_until_caught(decisions, test.label)}


def _rate_differences(trained: Decisions, own: Decisions, test: Scored) -> Row:
    of_trained, of_own = (counted(decisions, test.label) for decisions in (trained, own))
    found: Row = {}
    for rate in (*_RATES, "accuracy"):
        members, hits = of_trained[rate]
        difference = paired_difference(of_own[rate][1][members], hits[members], test.prompts[members])
        assert difference is not None  # there are test videos of both kinds
        found[rate] = difference.as_json()
    return found


def markdown(rows: Iterable[Row]) -> str:
    """The table, four lines a schedule; a dash where there is nothing."""
    shares = [f"{share:.0%}" for share in SHARES]
    lines = [["schedule", "detectors", *shares, "caught", "steps", "blocked"]]
    lines.append(["---", "---", *["---"] * (len(shares) + 3)])
    for row in rows:
        about = f"{row['schedule']}: {row['test_unsafe']} unsafe + {row['test_safe']} safe"
        for kind, words in LINES.items():
            line = row["lines"][kind]
            areas = [_cell(line["auroc"][share]) for share in shares]
            caught, blocked = (_rate_cell(line, rate) for rate in _RATES)
            steps = mean_text(line.get("steps_mean_unsafe"))
            lines.append([about if kind == "trained" else "", words, *areas, caught, steps, blocked])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(area: Row) -> str:
    if "interval" in area:
        return _with(rate_text(area["value"]), area["interval"])
    value = difference_text(area["value"])
    return f"{value} ±{area['half']:.3f}" if area["half"] else value  # all on their side: it says nothing


def _rate_cell(line: Row, rate: str) -> str:
    if rate not in line:
        return "–"
    of = line[rate]
    if isinstance(of, Mapping):
        return _with(difference_text(of["value"]), of["interval"])
    return _with(rate_text(of), line[f"{rate}_ci"])


def _with(value: str, interval: tuple[float, float]) -> str:
    return f"{value} ({interval_text(interval)})"
