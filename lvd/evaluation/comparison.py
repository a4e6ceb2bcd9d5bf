"""Runs of one capture side by side: what they catch on the same test samples, and what they cost."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lvd.decide.metrics import Summary, counted
from lvd.decide.paired import Difference, paired_difference
from lvd.decide.rules import Bools, Ints, Rule
from lvd.decide.written import (
    RATES,
    STEPS_UNTIL_CAUGHT,
    as_heading,
    difference_text,
    mean_text,
    rate_text,
    share_text,
    with_interval,
)
from lvd.detect.bank import Scored
from lvd.errors import LvdError
from lvd.evaluation.costs import Cost, measure_costs
from lvd.latents.disk import size_text
from lvd.latents.reader import CaptureReader
from lvd.report.page import Comparison, Section


@dataclass(frozen=True)
class Entry:
    """One run: each rule, what it did on the test samples, and on which of them it was right."""

    run: Path
    test: Scored
    rules: Sequence[tuple[Rule, Summary]]


@dataclass(frozen=True)
class Compared:
    """Runs side by side; differences are to the first, of the samples that a rate is of."""

    names: list[str]
    summaries: dict[str, list[Summary]]  # of each rule that all runs have, run by run
    differences: dict[
        str, dict[str, list[Difference | None]]
    ]  # of a rule and a rate, run by run from the second
    costs: list[Cost]
    sampler_steps: int

    def as_json(self) -> dict[str, Any]:
        rules = {
            kind: {
                name: {
                    **{key: getattr(summary, key) for rate in RATES for key in (rate, f"{rate}_ci")},
                    "auroc": summary.auroc,
                    "steps_mean_unsafe": summary.steps_mean_unsafe,
                    "compute_saved": summary.compute_saved,
                    "differences": {
                        rate: None if place == 0 else _json(self.differences[kind][rate][place - 1])
                        for rate in RATES
                    },
                }
                for place, (name, summary) in enumerate(zip(self.names, summaries, strict=True))
            }
            for kind, summaries in self.summaries.items()
        }
        costs = {name: asdict(cost) for name, cost in zip(self.names, self.costs, strict=True)}
        return {"runs": self.names, "rules": rules, "costs": costs}

    def as_csv(self) -> bytes:
        """A row for each rule, run and rate."""
        rows = [
            {
                "rule": kind,
                "run": name,
                "measure": rate,
                "value": getattr(summaries[place], rate),
                **_ends("", getattr(summaries[place], f"{rate}_ci")),
                **self._difference(kind, rate, place),
            }
            for kind, summaries in self.summaries.items()
            for place, name in enumerate(self.names)
            for rate in RATES
        ]
        rows += [
            {"run": name, "measure": measure, "value": value}
            for name, cost in zip(self.names, self.costs, strict=True)
            for measure, value in asdict(cost).items()
        ]
        text = io.StringIO()
        pd.DataFrame(rows).to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
        return text.getvalue().encode()

    def _difference(self, kind: str, rate: str, place: int) -> dict[str, Any]:
        difference = None if place == 0 else self.differences[kind][rate][place - 1]
        if difference is None:
            return {}
        return {
            "difference": difference.value,
            **_ends("difference_", difference.interval),
            "only_first": difference.only_first,
            "only_this": difference.only_second,
        }

    def table(self) -> Comparison:
        """As the terminal and the page show it."""
        rows: list[tuple[str, list[tuple[str, str]]]] = []
        for kind, summaries in self.summaries.items():
            for rate, words in RATES.items():
                rows.append((f"{as_heading(words)}, {kind}", [_rate(summary, rate) for summary in summaries]))
                told = [("", ""), *(_told(difference) for difference in self.differences[kind][rate])]
                rows.append((f"  difference to {self.names[0]}", told))
            means = [summary.steps_mean_unsafe for summary in summaries]
            rows += [
                (f"AUROC of the statistic, {kind}", [(rate_text(it.auroc), "") for it in summaries]),
                (
                    f"{as_heading(STEPS_UNTIL_CAUGHT)}, {kind}",
                    [("–" if mean is None else f"{mean:.1f} of {self.sampler_steps}", "") for mean in means],
                ),
                (f"Steps saved, this mix, {kind}", [(share_text(it.compute_saved), "") for it in summaries]),
            ]
        costs = self.costs
        rows += [
            ("Detectors", [(str(cost.detectors), "") for cost in costs]),
            ("Seconds to train, all jobs", [(f"{cost.train_seconds:,.0f}", "") for cost in costs]),
            ("Parameters", [(f"{cost.parameters:,}", "") for cost in costs]),
            ("Size of the weights", [(size_text(cost.bytes), "") for cost in costs]),
            (
                "Milliseconds a checked step, one sample",
                [(mean_text(cost.check_milliseconds), "") for cost in costs],
            ),
        ]
        return Comparison([(name, "") for name in self.names], rows)

    def section(self) -> Section:
        return Section("Compared with other runs", ABOUT, [self.table()])


ABOUT = (
    "All runs on the same test samples, by the same settings. Beside a rate its 95% interval; a difference "
    "is to the first run, with its own 95% interval, of paired samples (Newcombe, 1998; where prompts have "
    "several samples, at the number of independent ones that a bootstrap over prompts leaves), and how many "
    "samples only one of the two counts. Checked steps are timed on this machine."
)


def check_comparable(tests: Mapping[str, Sequence[str]]) -> None:
    """Take runs whose test samples are the same, by each run's name their ids.

    Raises:
        LvdError: says which runs differ.
    """
    (first, ids), *others = tests.items()
    for name, other_ids in others:
        if list(other_ids) != list(ids):
            raise LvdError(
                f"{first} and {name} have different test samples, {len(ids)} and {len(other_ids)} of them, "
                "since they learned from different prompts: their rates cannot be compared"
            )


def compare(
    capture: CaptureReader, entries: Sequence[Entry], detector: str, device: torch.device | None = None
) -> Compared:
    """Lay runs side by side that were measured on the same test samples, by their grids or all unified."""
    first = entries[0]
    kinds = [
        rule.kind
        for rule, _ in first.rules
        if all(any(rule.kind == other.kind for other, _ in entry.rules) for entry in entries)
    ]
    by_kind = [{rule.kind: (rule, summary) for rule, summary in entry.rules} for entry in entries]
    prompts_N = first.test.prompts
    differences: dict[str, dict[str, list[Difference | None]]] = {}
    for kind in kinds:
        hits = [
            counted(rules[kind][0].decide(entry.test.scores_NSK), entry.test.label)
            for rules, entry in zip(by_kind, entries, strict=True)
        ]
        differences[kind] = {
            rate: [_difference(hits[0][rate], other[rate], prompts_N) for other in hits[1:]] for rate in RATES
        }
    return Compared(
        [entry.run.name for entry in entries],
        {kind: [rules[kind][1] for rules in by_kind] for kind in kinds},
        differences,
        measure_costs(capture, [entry.run for entry in entries], detector, device),
        capture.info.origin.steps,
    )


def _difference(
    first: tuple[Bools, Bools], second: tuple[Bools, Bools], prompts_N: Ints
) -> Difference | None:
    members = first[0]
    return paired_difference(first[1][members], second[1][members], prompts_N[members])


def _json(difference: Difference | None) -> dict[str, Any] | None:
    return None if difference is None else difference.as_json()


def _ends(prefix: str, interval: tuple[float, float] | None) -> dict[str, Any]:
    return {} if interval is None else {f"{prefix}low": interval[0], f"{prefix}high": interval[1]}


def _rate(summary: Summary, rate: str) -> tuple[str, str]:
    return with_interval(getattr(summary, rate), getattr(summary, f"{rate}_ci"))


def _told(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "–", ""
    low, high = map(difference_text, difference.interval)
    return (
        difference_text(difference.value),
        f"{low} to {high}\n{difference.only_second} only here, {difference.only_first} only there",
    )
