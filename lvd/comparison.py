"""Runs of one capture side by side: what they catch on the same test samples, and what they cost."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
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
from lvd.detect.bank import Scored, step_check
from lvd.detect.files import trunk_digest
from lvd.errors import LvdError
from lvd.latents.disk import size_text
from lvd.latents.reader import CaptureReader
from lvd.report.page import Comparison, Section
from lvd.sweep.grid import Cell
from lvd.sweep.results import read_result, read_results
from lvd.sweep.state import WEIGHTS

_ROUNDS = 5  # timings of each step that is looked at, of all runs in turn


@dataclass(frozen=True)
class Cost:
    """What a run's detectors take.

    `train_seconds` are those of all its jobs together, of the trunk's where they start from one; a job that
    waits for another's frames counts its waiting. `bytes` are of weights and their configurations.
    `check_milliseconds` is one sample at one step in all categories, from x0 to scores, on this machine: the
    median of a few steps; None: a detector of them is missing.
    """

    detectors: int
    train_seconds: float
    parameters: int
    bytes: int
    check_milliseconds: float | None


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


def compare(capture: CaptureReader, entries: Sequence[Entry], device: torch.device | None = None) -> Compared:
    """Lay runs side by side that were measured on the same test samples."""
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
        _costs(capture, [entry.run for entry in entries], device),
        capture.info.origin.steps,
    )


def _difference(
    first: tuple[Bools, Bools], second: tuple[Bools, Bools], prompts_N: Ints
) -> Difference | None:
    members = first[0]
    return paired_difference(first[1][members], second[1][members], prompts_N[members])


def _costs(capture: CaptureReader, runs: Sequence[Path], device: torch.device | None) -> list[Cost]:
    names, steps = capture.info.category_names, capture.info.stored_steps
    milliseconds = _check_milliseconds(capture, runs, device)
    costs = []
    for run, check in zip(runs, milliseconds, strict=True):
        grid = [Cell(name, step) for name in names for step in range(steps)]
        results = {cell: it for cell, it in read_results(run, grid).items() if it and it.status == "done"}
        places = [run / cell.path / "detector" for cell in results]
        used = list(results.values())
        tunings = {result.settings.get("detector.tuning") for result in used} - {None}
        trunk = read_result(run / "trunk") if tunings else None
        seconds = sum(result.seconds for result in used) + (trunk.seconds if trunk else 0.0)
        if trunk is not None and "head" in tunings:  # a tuned copy needs the trunk no more
            used.append(trunk)
            places.append(run / "trunk")
        costs.append(
            Cost(
                detectors=len(results),
                train_seconds=seconds,
                parameters=sum(result.sizes.get("parameters", 0) for result in used),
                bytes=sum(
                    (place / name).stat().st_size
                    for place in places
                    for name in ("config.json", WEIGHTS)
                    if (place / name).is_file()
                ),
                check_milliseconds=check,
            )
        )
    return costs


def _check_milliseconds(
    capture: CaptureReader, runs: Sequence[Path], device: torch.device | None
) -> list[float | None]:
    """Runs take turns, so that what else the machine does slows all of them."""
    steps = sorted({0, capture.info.stored_steps // 2, capture.info.stored_steps - 1})
    taken: list[list[float]] = [[] for _ in runs]
    missing = set()
    for step in steps:
        x0 = torch.from_numpy(capture.step(step).read([0]))
        checks = []
        for place, run in enumerate(runs):
            try:
                check = step_check(capture, run, trunk_digest(run / "trunk"), step, device)
            except LvdError:  # a hole, which the report names
                missing.add(place)
                continue
            check(x0)  # what is done once is not counted
            checks.append((place, check))
        for _ in range(_ROUNDS):
            for place, check in checks:
                started = time.perf_counter()
                check(x0)
                taken[place].append(1000 * (time.perf_counter() - started))
    return [None if place in missing else median(times) for place, times in enumerate(taken)]


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
