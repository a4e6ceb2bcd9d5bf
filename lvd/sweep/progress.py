"""Watch a sweep: one display for all its jobs, read from their result.json, under any launcher."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lvd.errors import LvdError
from lvd.latents import disk
from lvd.progress import progress
from lvd.sweep.grid import Cell
from lvd.sweep.log import LOG
from lvd.sweep.results import Result, read_results
from lvd.sweep.tally import Tally

_POLL_SECONDS = 0.5
_PAGE_SECONDS = 30.0  # between two versions of index.html: each costs about a second


@contextmanager
def watch(run: Path, cells: Sequence[Cell], grid: Sequence[Cell]) -> Iterator[None]:
    """While open, show what becomes of the jobs of `cells`.

    Keeps `index.html` in the run's directory, the page of the whole `grid`.
    """
    stop = threading.Event()
    tally = Tally(run, cells, grid)
    watcher = threading.Thread(target=_watch, args=(run, tally, grid, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(run: Path, tally: Tally, grid: Sequence[Cell], stop: threading.Event) -> None:
    from lvd.sweep.page import write_index  # plotly and pandas: not for a single job

    def write_page(*, running: bool) -> str | None:
        """Why there is no new one, which ends no sweep."""
        try:
            with disk.errors_as_sentences(run):
                write_index(run, read_results(run, grid), running=running)
        except (LvdError, OSError) as error:
            return f"the page {run / 'index.html'} is not up to date: {error}"
        return None

    written = time.monotonic()
    problem = write_page(running=True)
    with progress("training detectors", tally.waiting, "jobs", Console(stderr=True)) as advance:
        while tally.waiting:
            stopping = stop.is_set()  # one last look after the end
            advance(tally.look(), *tally.notes(), *([problem] if problem else []))
            if stopping:
                break
            if time.monotonic() - written > _PAGE_SECONDS:
                problem = write_page(running=True)
                written = time.monotonic()
            stop.wait(_POLL_SECONDS)
    if (problem := write_page(running=False)) is not None:
        print(problem, file=sys.stderr)


def print_trunk_plan(run: Path, result: Result | None, state: str) -> None:
    """The one job of task=trunk: its state, and how long it took the last time."""
    took = f"; it took {result.seconds:.0f} s" if result is not None and result.status == "done" else ""
    Console().print(f"1 job for {run}: the trunk, {state}{took}")


def print_plan(run: Path, results: dict[Cell, Result | None], states: dict[Cell, str]) -> None:
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


def print_failures(run: Path, results: dict[Cell, Result | None], *, stopped: bool) -> int:
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
