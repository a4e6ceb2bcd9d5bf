"""Watch a sweep: one display for all its jobs, read from their result.json, under any launcher."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from lvd.errors import LvdError
from lvd.latents import disk
from lvd.progress import progress
from lvd.sweep.grid import Cell
from lvd.sweep.results import read_results
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
            with disk.translate_errors(run):
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
