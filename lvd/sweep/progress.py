"""Watch a sweep: one display for all its jobs, read from their result.json, under any launcher."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lvd.progress import progress
from lvd.sweep.grid import Cell
from lvd.sweep.results import Result, read_result, state

_POLL_SECONDS = 0.5


@contextmanager
def watch(run: Path, cells: Sequence[Cell]) -> Iterator[None]:
    """While open, show how many of `cells` have finished since it was opened."""
    stop = threading.Event()
    before = {cell: _stamp(run, cell) for cell in cells}
    watcher = threading.Thread(target=_watch, args=(run, before, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()


def _watch(run: Path, before: dict[Cell, int], stop: threading.Event) -> None:
    waiting = dict(before)
    failed = 0
    with progress("training detectors", len(before), "jobs", Console(stderr=True)) as advance:
        while waiting:
            stopping = stop.is_set()  # one last look after the end
            for cell, stamp in list(waiting.items()):
                if _stamp(run, cell) in (0, stamp):
                    continue
                del waiting[cell]
                result = read_result(run / cell.path)
                failed += result is None or result.status == "failed"
                advance(note=_note(cell, result, failed))
            if stopping:
                return
            stop.wait(_POLL_SECONDS)


def _stamp(run: Path, cell: Cell) -> int:
    try:
        return (run / cell.path / "result.json").stat().st_mtime_ns
    except OSError:
        return 0


def _note(cell: Cell, result: Result | None, failed: int) -> str:
    if result is None or result.status == "failed":
        return f"{cell.path} failed ({failed} in all)"
    note = f"{cell.path} val AUROC {result.metrics.get('auroc', float('nan')):.3f}"
    return f"{note}, {failed} failed" if failed else note


def print_plan(run: Path, results: dict[Cell, Result | None], digests: dict[Cell, str]) -> None:
    """The grid as a table, a row a category: which jobs are done, failed, stale or to do."""
    console = Console()
    steps = sorted({cell.step for cell in results})
    table = Table(title=f"{len(results)} jobs for {run}", title_justify="left")
    table.add_column("category")
    table.add_column(f"steps {steps[0]} to {steps[-1]}", no_wrap=True, overflow="fold")
    states = {cell: state(result, digests[cell]) for cell, result in results.items()}
    marks = {"done": "[green]#[/]", "failed": "[red]x[/]", "changed": "[yellow]~[/]", "to do": "."}
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
        console.print(f"about {left * sum(seconds) / len(seconds) / 60:.1f} min of training left, one by one")


def print_failures(run: Path, results: dict[Cell, Result | None]) -> int:
    """List the jobs that have no result or a failed one; returns how many there are."""
    failures = {cell: r for cell, r in results.items() if r is None or r.status == "failed"}
    if failures:
        table = Table(title=f"{len(failures)} of {len(results)} jobs failed", title_justify="left")
        table.add_column("job")
        table.add_column("reason")
        for cell, result in failures.items():
            table.add_row(str(run / cell.path), "did not finish" if result is None else result.error)
        Console(stderr=True).print(table)
    return len(failures)
