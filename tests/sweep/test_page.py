"""The sweep's page, as a file; tests/report/test_browser.py has it in a browser."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from lvd.report import heatmaps
from lvd.sweep.grid import Cell
from lvd.sweep.page import Results, write_index
from lvd.sweep.results import Result
from support.html import HOSTILE, Tags

METRICS = {"auroc": 0.75, "accuracy": 0.7, "f1": 0.6, "loss": 0.5}
CURVES = {"epoch": [4.0, 8.0], "loss": [0.7, 0.5], "auroc": [0.6, 0.75]}


def done(cell: Cell, **changes: Any) -> Result:
    values = {"metrics": METRICS, "curves": CURVES, **changes}
    return Result("done", cell.category, cell.step, 0, "digest", {}, 2.0, **values)


def jobs(*status: str, category: str = "alpha") -> dict[Cell, Result | None]:
    """The jobs of a category's first steps: done, failed or to do."""
    found: dict[Cell, Result | None] = {}
    for step, name in enumerate(status):
        cell = Cell(category, step)
        failed = Result("failed", category, step, 0, "digest", {}, 1.0, error=HOSTILE)
        found[cell] = {"done": done(cell), "failed": failed, "to do": None}[name]
    return found


def written(folder: Path, results: Results, *, running: bool = False) -> str:
    return write_index(folder, results, running=running).read_text(encoding="utf-8")


def grid_of(page: str) -> dict[str, Any]:
    (cells,) = [script for script in Tags(page).scripts if '"cells":' in script]
    found: dict[str, Any] = json.loads(cells)
    return found


def test_the_sweeps_page_has_every_job_behind_its_cell(tmp_path: Path) -> None:
    page = written(tmp_path, jobs("done", "failed") | jobs("to do", "done", category="beta"))
    assert "2 of 4 detectors are done, 1 failed" in page
    grid = grid_of(page)
    assert set(grid["metrics"]) == {"AUROC", "accuracy", "F1", "loss", "seconds", "status"}
    assert set(grid["cells"]) == {"alpha 0", "alpha 1", "beta 0", "beta 1"}
    first = grid["cells"]["alpha 0"]
    assert ["auroc", "0.75"] in first["rows"]
    assert ["seconds", "2"] in first["rows"]
    assert ["result.json", "alpha/step_00/result.json"] in first["links"]
    assert [curve["y"] for curve in first["curves"]] == [[0.6, 0.75], [0.7, 0.5]]
    assert grid["cells"]["beta 0"]["links"] == []
    assert ["error", HOSTILE] in grid["cells"]["alpha 1"]["rows"]
    assert HOSTILE not in page


def test_a_missing_job_is_a_hole_in_every_metric(tmp_path: Path) -> None:
    for drawing in grid_of(written(tmp_path, jobs("done", "to do")))["metrics"].values():
        (row,) = drawing["data"][0]["z"]
        assert row[0] is not None
        assert row[1] is None


def reloads(page: Tags) -> list[dict[str, str | None]]:
    return [a for a in page.named("p") if "data-reload" in a]


def test_the_sweeps_page_says_as_of_when_and_looks_for_news_while_there_may_be_some(tmp_path: Path) -> None:
    def page(*status: str, running: bool) -> Tags:
        return Tags(written(tmp_path, jobs(*status), running=running))

    before = datetime.now().astimezone().replace(microsecond=0)
    live = page("done", "to do", running=True)
    (time,) = live.named("time")
    assert before <= datetime.fromisoformat(str(time["datetime"])) <= datetime.now().astimezone()
    assert before.strftime("As of %Y-") in live.text
    assert len(reloads(live)) == 1
    for ended in (page("done", "failed", running=False), page("done", "done", running=True)):
        assert ended.named("time")
        assert not reloads(ended)
        assert not any("location.reload" in script for script in ended.scripts)


def test_a_job_that_is_to_do_one_that_failed_and_one_without_samples_differ(tmp_path: Path) -> None:
    unmeasured = Cell("alpha", 2)
    results = jobs("to do", "failed") | {unmeasured: done(unmeasured, metrics={"auroc": float("nan")})}
    page = written(tmp_path, results, running=True)
    marks = [t["name"] for t in grid_of(page)["metrics"]["AUROC"]["data"] if t.get("mode") == "markers"]
    assert marks == [heatmaps.TO_DO, heatmaps.FAILED, heatmaps.NOT_MEASURED]
    assert ["auroc", "not measured"] in grid_of(page)["cells"]["alpha 2"]["rows"]
    assert "nan" not in Tags(page).text.lower()


def test_the_cells_are_named_for_the_keyboard_and_the_way_is_told(tmp_path: Path) -> None:
    cells = [Cell(name, step) for name in ("beta", "alpha") for step in (0, 2)]
    page = written(tmp_path, {cell: done(cell) for cell in cells})
    assert grid_of(page)["categories"] == ["beta", "alpha"]  # as they are drawn
    assert grid_of(page)["steps"] == [0, 2]
    assert "Enter opens a job, Escape closes" in Tags(page).text
