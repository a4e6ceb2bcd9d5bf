"""`runs/<name>/index.html`: the whole grid as a page, from what stands in result.json."""

from collections.abc import Sequence
from pathlib import Path

from lvd.report.sweep import JobRow, write_dashboard
from lvd.sweep.grid import Cell
from lvd.sweep.results import Result, read_results


def write_index(run: Path, cells: Sequence[Cell], *, running: bool) -> Path:
    """Write the page of `cells` into the run's directory and return its path.

    `running`: it will be written again, and a page that is open loads itself anew.
    """
    path = run / "index.html"
    jobs = [_row(cell, result) for cell, result in read_results(run, cells).items()]
    write_dashboard(path, title=f"{run.name}: {len(cells)} detectors", jobs=jobs, running=running)
    return path


def _row(cell: Cell, result: Result | None) -> JobRow:
    done = result is not None and result.status == "done"
    return JobRow(
        category=cell.category,
        step=cell.step,
        status=result.status if result is not None else "to do",
        directory=cell.path.as_posix(),
        metrics={**result.metrics, "seconds": result.seconds} if result is not None and done else {},
        curves=result.curves if result is not None else {},
        wandb_url=result.wandb_url if result is not None else None,
        error=result.error if result is not None else None,
    )
