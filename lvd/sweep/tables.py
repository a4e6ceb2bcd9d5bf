"""What a command says in the terminal: its plan, what it is about to run, and what became of that."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lvd.detect.rows import left_out
from lvd.errors import LvdError
from lvd.latents.format import read_samples
from lvd.sweep.check import refuse
from lvd.sweep.grid import Cell
from lvd.sweep.log import LOG
from lvd.sweep.request import Request
from lvd.sweep.results import Result, read_result, read_results


def print_plan(request: Request) -> None:
    """The grid, the state of its jobs, and what stands in the way of a sweep.

    Raises:
        LvdError: lists what stands in the way.
    """
    from lvd.sweep.job import identity_of
    from lvd.sweep.state import job_state

    config, run = request.config, request.config.run_dir
    _print_left_out(request)
    if not request.cells:
        result = read_result(run / "trunk")
        found = job_state(run / "trunk", result, identity_of(config, None).config_digest)
        _print_trunk(run, result, "changed" if config.force and found == "done" else found)
        return
    results = read_results(run, request.cells)
    states: dict[Cell, str] = {
        cell: job_state(run / cell.path, result, request.identities[cell].config_digest)
        for cell, result in results.items()
    }
    if config.force:
        states = {cell: "changed" if name == "done" else name for cell, name in states.items()}
    states = {cell: "data missing" if cell.step in request.missing else states[cell] for cell in states}
    _print_grid(run, results, states)
    refuse(request.problems)


def print_start(request: Request, left: Sequence[Cell]) -> None:
    """What takes no part in the training, what detectors start from, and how many of them are done."""
    _print_left_out(request)
    if not request.cells:
        return
    from lvd.detect.detector_training import starting_trunk

    config = request.config
    trunk = starting_trunk(config.run_dir, config.detector.init)
    kind = "heads on the trunk" if config.detector.tuning == "head" else "tuned copies of the trunk"
    if config.detector.pretrained is not None:
        kind = f"each {config.detector.pretrained} tuned on decoded frames"
    elif trunk is None:
        kind = "trained from scratch (no trunk)"
    print(f"{len(request.cells)} detectors, {kind}")
    if len(left) < len(request.cells):
        print(f"{len(request.cells) - len(left)} of them are done")


def print_outcome(request: Request) -> int:
    """What became of the jobs, by their results; returns how many did not get done.

    Raises:
        LvdError: the one job of a command without -m failed; its reason.
    """
    from lvd.sweep.state import job_state

    run = request.config.run_dir
    if request.multirun:
        results = {
            cell: result
            if job_state(run / cell.path, result, request.identities[cell].config_digest)
            in ("done", "failed")
            else None
            for cell, result in read_results(run, request.cells).items()
        }
        done = [result for result in results.values() if result is not None and result.status == "done"]
        if done:
            mean = sum(result.metrics["auroc"] for result in done) / len(done)
            print(f"{len(done)} of {len(results)} detectors done, mean val AUROC {mean:.3f}")
            if (run / "index.html").is_file():
                print(f"page: {run / 'index.html'}")
        return _print_failures(run, results, stopped=request.config.fail_fast)

    directory = run / (request.cells[0].path if request.cells else "trunk")
    result = read_result(directory)
    if result is None or result.status == "failed":
        raise LvdError("the job did not finish" if result is None else str(result.error))
    metrics = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
    print(f"{directory}: {result.seconds:.1f} s, from {result.started_from}; val: {metrics}")
    return 0


def _print_left_out(request: Request) -> None:
    note = left_out(read_samples(request.config.capture_dir))
    if note is not None:
        print(note)


def _print_trunk(run: Path, result: Result | None, state: str) -> None:
    """The one job of task=trunk: its state, and how long it took the last time."""
    took = f"; it took {result.seconds:.0f} s" if result is not None and result.status == "done" else ""
    Console().print(f"1 job for {run}: the trunk, {state}{took}")


def _print_grid(run: Path, results: dict[Cell, Result | None], states: dict[Cell, str]) -> None:
    """The grid as a table, a row a category: a mark for the state of each job, and the time that is left."""
    console = Console()
    steps = sorted({cell.step for cell in results})
    table = Table(title=f"{len(results)} jobs for {run}", title_justify="left")
    table.add_column("category")
    table.add_column(f"steps {steps[0]} to {steps[-1]}", no_wrap=True, overflow="fold")
    marks = {
        "done": "[green]#[/]",
        "failed": "[red]x[/]",
        "changed": "[yellow]~[/]",
        "to do": ".",
        "data missing": "[red]?[/]",
        "damaged": "[red]![/]",
    }
    for category in dict.fromkeys(cell.category for cell in results):
        table.add_row(category, "".join(marks[states[cell]] for cell in results if cell.category == category))
    console.print(table)
    counts = ", ".join(f"{list(states.values()).count(name)} {name} {mark}" for name, mark in marks.items())
    console.print(counts)
    seconds = [
        result.seconds for result in results.values() if result is not None and result.status == "done"
    ]
    left = sum(name != "done" for name in states.values())
    if seconds and left:
        a_job = sum(seconds) / len(seconds)
        console.print(f"about {left * a_job / 60:.1f} min of training left, one by one ({a_job:.2f} s a job)")
    elif left:
        console.print("no job has finished yet: the time that it takes is not known")


def _print_failures(run: Path, results: dict[Cell, Result | None], *, stopped: bool) -> int:
    """List the jobs that have no result or a failed one; returns how many there are.

    `stopped`: the sweep ends at its first failure, and a job without a result is one that did not start.
    """
    failures = {cell: r for cell, r in results.items() if r is None or r.status == "failed"}
    if stopped and any(failures.values()):
        failures = {cell: result for cell, result in failures.items() if result is not None}
        waiting = sum(result is None for result in results.values())
        print(f"fail_fast: {waiting} jobs were not started, or not finished", file=sys.stderr)
    if failures:
        table = Table(title=f"{len(failures)} of {len(results)} jobs failed", title_justify="left")
        for column in ("job", "reason", "log"):
            table.add_column(column, overflow="fold")
        for cell, result in failures.items():
            log = run / cell.path / LOG
            reason = "did not finish: its process died, or the sweep was stopped"
            table.add_row(
                str(cell.path),
                Text(reason if result is None else str(result.error)),
                str(log) if log.is_file() else "none",
            )
        Console(stderr=True).print(table)
    return len(failures)
