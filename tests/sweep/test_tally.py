"""What a sweep's progress says of its jobs."""

from pathlib import Path

import pytest
from rich.console import Console

from lvd.progress import progress
from lvd.sweep.grid import Cell
from lvd.sweep.log import LOG
from lvd.sweep.results import Result, write_result
from lvd.sweep.tally import Tally

CELLS = [Cell(category, step) for category in ("one", "two") for step in range(3)]


def start(run: Path, cell: Cell) -> None:
    directory = run / cell.path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").unlink(missing_ok=True)
    (directory / LOG).write_text("")


def end(run: Path, cell: Cell, auroc: float | None) -> None:
    start(run, cell)
    write_result(
        run / cell.path,
        Result(
            status="done" if auroc is not None else "failed",
            category=cell.category,
            step=cell.step,
            seed=0,
            config_digest="",
            settings={},
            seconds=1.0,
            metrics={} if auroc is None else {"auroc": auroc},
        ),
    )


def test_it_counts_what_starts_and_ends(tmp_path: Path) -> None:
    tally = Tally(tmp_path, CELLS, CELLS)
    assert (tally.look(), tally.notes()) == (0, ["0 done, 6 left"])
    start(tmp_path, CELLS[0])
    start(tmp_path, CELLS[3])
    assert (tally.look(), tally.notes()) == (0, ["0 done, 2 running, 4 left"])
    end(tmp_path, CELLS[0], 0.9)
    assert tally.look() == 1
    assert tally.notes() == ["1 done, 1 running, 4 left", "last one/step_00: val AUROC 0.900"]
    end(tmp_path, CELLS[3], None)
    assert tally.look() == 1
    assert tally.notes() == ["1 done, 1 failed, 4 left", "last two/step_00: failed"]
    end(tmp_path, CELLS[4], 0.7)
    end(tmp_path, CELLS[1], 0.8)
    assert tally.look() == 2
    assert tally.notes()[-1] == "mean val AUROC: best one 0.850, worst two 0.700"
    assert tally.waiting == 2


def test_jobs_of_an_earlier_sweep_neither_run_nor_end_but_count_for_their_category(tmp_path: Path) -> None:
    end(tmp_path, CELLS[0], 0.6)  # done, and not of this sweep
    end(tmp_path, CELLS[1], None)  # failed, runs again
    end(tmp_path, CELLS[3], 0.9)
    tally = Tally(tmp_path, CELLS[1:3], CELLS)
    assert (tally.look(), tally.notes()) == (
        0,
        ["0 done, 2 left", "mean val AUROC: best two 0.900, worst one 0.600"],
    )
    start(tmp_path, CELLS[1])
    assert (tally.look(), tally.notes()[0]) == (0, "0 done, 1 running, 1 left")


def test_a_damaged_result_counts_as_failed(tmp_path: Path) -> None:
    tally = Tally(tmp_path, CELLS, CELLS)
    start(tmp_path, CELLS[0])
    (tmp_path / CELLS[0].path / "result.json").write_text("{")
    assert (tally.look(), tally.notes()[0]) == (1, "0 done, 1 failed, 5 left")


def test_notes_are_lines_of_their_own_in_a_terminal_and_one_line_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", 2, "jobs", Console(force_terminal=True, width=80)) as advance:
        advance(1, "1 done", "last one/step_00")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[-3:-1]] == [
        "1 done",
        "last one/step_00",
    ]

    monkeypatch.setattr("lvd.progress.QUIET_SECONDS", 0.0)
    with progress("training", 2, "jobs", Console(force_terminal=False)) as advance:
        advance(0, "0 done")
        advance(2, "2 done", "last one/step_01")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["training: 0/2 jobs; 0 done", "training: 2/2 jobs, 0 s left; 2 done; last one/step_01"]
