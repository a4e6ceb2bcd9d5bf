"""The numbers that the report's figures are drawn from, as tables."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lvd.decide.calibrate import highest_threshold
from lvd.decide.metrics import Attribution, Summary, accuracy_surface, rates, steps_until_caught
from lvd.decide.rules import Floats, Rule, Vote, decide
from lvd.decide.sequential import Sequential
from lvd.detect.bank import Scored

_LAMS = [round(0.05 * i, 2) for i in range(1, 21)]
_CURVE_POINTS = 60


def surface(val: Scored, lam: float) -> pd.DataFrame:
    """`[etas, lams]`"""
    lams = sorted({*_LAMS, lam})
    return pd.DataFrame(
        accuracy_surface(val.flags, val.label, lams), index=range(1, val.flags.steps + 1), columns=lams
    )


def by_eta(val: Scored, lam: float) -> pd.DataFrame:
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


def trade_off(
    measured: Sequence[tuple[Rule, Summary, Attribution]], test: Scored
) -> tuple[pd.DataFrame, pd.DataFrame]:
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


def stopped(rules: Sequence[Rule], test: Scored) -> pd.DataFrame:
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


def stopped_by_step(stopped: pd.DataFrame, steps: int) -> pd.DataFrame:
    """How many samples of a label a rule has stopped by a step, and of how many: a row each."""
    rows = []
    for (rule, label), part in stopped.groupby(["rule", "label"], sort=False):
        counts = np.bincount(part.loc[part["stopped"], "step"], minlength=steps).cumsum()
        rows += [
            {"rule": rule, "label": label, "step": step, "stopped": int(count), "n": len(part)}
            for step, count in enumerate(counts)
        ]
    return pd.DataFrame(rows)


def score_quartiles(test: Scored, names: Sequence[str]) -> pd.DataFrame:
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
