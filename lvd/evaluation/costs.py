"""What a run's detectors cost: to train, to keep and to ask."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from lvd.detect.bank import step_check, unified_check
from lvd.detect.files import trunk_digest
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader
from lvd.sweep.grid import all_cells
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


def measure_costs(
    capture: CaptureReader, runs: Sequence[Path], detector: str, device: torch.device | None
) -> list[Cost]:
    """`detector`: grid, or unified, which is the trunk alone."""
    unified = detector == "unified"
    milliseconds = _check_milliseconds(capture, runs, device, unified=unified)
    grid, costs = [] if unified else all_cells(capture.info), []
    for run, check in zip(runs, milliseconds, strict=True):
        results = {cell: it for cell, it in read_results(run, grid).items() if it and it.status == "done"}
        places = [run / cell.path / "detector" for cell in results]
        used = list(results.values())
        tunings = {result.settings.get("detector.tuning") for result in used} - {None}
        trunk = read_result(run / "trunk") if tunings or unified else None
        seconds = sum(result.seconds for result in used) + (trunk.seconds if trunk else 0.0)
        if trunk is not None and ("head" in tunings or unified):  # a tuned copy needs the trunk no more
            used.append(trunk)
            places.append(run / "trunk")
        costs.append(
            Cost(
                detectors=1 if unified else len(results),
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
    capture: CaptureReader, runs: Sequence[Path], device: torch.device | None, *, unified: bool
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
                check = (
                    unified_check(run, step, device)
                    if unified
                    else step_check(capture, run, trunk_digest(run / "trunk"), step, device)
                )
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
