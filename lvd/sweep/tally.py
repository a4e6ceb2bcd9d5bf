"""What has become of a sweep's jobs so far, read from their directories, under any launcher."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from lvd.sweep.grid import Cell
from lvd.sweep.log import LOG
from lvd.sweep.results import read_result, read_results


class Tally:
    """Counts the jobs of `cells` that start and end after it was made."""

    def __init__(self, run: Path, cells: Sequence[Cell], grid: Sequence[Cell]) -> None:
        """`grid` holds all cells of the run: what is done of them counts for the categories' means."""
        self._run = run
        self._waiting = {cell: (_stamp(run, cell, "result.json"), _stamp(run, cell, LOG)) for cell in cells}
        others = [cell for cell in grid if cell not in self._waiting]
        self._results = {cell: r for cell, r in read_results(run, others).items() if r is not None}
        self._last = ""
        self._done, self._failed, self._running = 0, 0, 0

    @property
    def waiting(self) -> int:
        """How many jobs have not ended."""
        return len(self._waiting)

    def look(self) -> int:
        """Look at the jobs that have not ended; returns how many of them have now."""
        ended, running = [], 0
        for cell, (old_result, old_log) in self._waiting.items():
            stamp = _stamp(self._run, cell, "result.json")
            if stamp not in (0, old_result):
                ended.append(cell)
            elif stamp == 0 and _stamp(self._run, cell, LOG) not in (0, old_log):
                running += 1  # it has removed its old result and begun its log
        self._running = running
        for cell in ended:
            del self._waiting[cell]
            result = read_result(self._run / cell.path)
            if result is None or result.status == "failed":
                self._failed += 1
                self._last = f"{cell.path}: failed"
            else:
                self._done += 1
                self._results[cell] = result
                self._last = f"{cell.path}: val AUROC {result.metrics['auroc']:.3f}"
        return len(ended)

    def notes(self) -> list[str]:
        """The counts, the last result, the best and the worst category, a sentence each."""
        counts = {"running": self._running, "failed": self._failed, "left": self.waiting - self._running}
        notes = [", ".join([f"{self._done} done", *(f"{n} {name}" for name, n in counts.items() if n)])]
        if self._last:
            notes.append(f"last {self._last}")
        means = self._category_means()
        if len(means) > 1:
            best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
            notes.append(f"mean val AUROC: best {best} {means[best]:.3f}, worst {worst} {means[worst]:.3f}")
        return notes

    def _category_means(self) -> dict[str, float]:
        scores: dict[str, list[float]] = {}
        for cell, result in self._results.items():
            if "auroc" in result.metrics:
                scores.setdefault(cell.category, []).append(result.metrics["auroc"])
        return {category: mean(values) for category, values in scores.items()}


def _stamp(run: Path, cell: Cell, name: str) -> int:
    """When a job's file was written; 0: it is not there."""
    try:
        return (run / cell.path / name).stat().st_mtime_ns
    except OSError:
        return 0
