import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from plotly.offline import get_plotlyjs

from lvd.report import figures
from lvd.report.page import ExampleRow, Section, write_page
from lvd.report.sweep import JobRow, write_dashboard

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"double\" 'single' &amp;"


class Tags(HTMLParser):
    """The tags of a page as a browser sees them, and the text in its scripts and elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def png(pixels: np.ndarray, note: str = "") -> bytes:
    out, info = io.BytesIO(), PngInfo()
    info.add_text("prompt", note)
    Image.fromarray(pixels).save(out, format="PNG", pnginfo=info)
    return out.getvalue()


def noise(side: int = 32, note: str = "") -> bytes:
    return png(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8), note)


def example(text: str = "a caption", *, images: Any = "blurred", side: int = 32) -> ExampleRow:
    image = noise(side, note=text)
    return ExampleRow(text, text, text, "wrong", [(text, image, True), ("step 1", image, False)], images)


def grid(
    values: list[list[float]], categories: tuple[str, ...] = ("digit_zero", "digit_one")
) -> pd.DataFrame:
    return pd.DataFrame(values, index=list(categories), columns=range(len(values[0])))


def heatmap(name: str = "digit_zero") -> "figures.go.Figure":
    values = grid([[0.6, 0.7], [0.8, float("nan")]], (name, "digit_one"))
    return figures.cell_heatmap(values, title=name, colour_range=(0.5, 1))


def render(folder: Path, sections: list[Section], title: str = "Report", lead: str = "") -> Tags:
    write_page(folder / "report.html", title=title, lead=lead, sections=sections)
    return Tags((folder / "report.html").read_text(encoding="utf-8"))


def test_hostile_text_is_shown_and_never_becomes_markup(tmp_path: Path) -> None:
    def sections(text: str) -> list[Section]:
        table = pd.DataFrame({text: [text], "n": [1]})
        return [Section(text, text, [[(text, text, text)], table, example(text), heatmap(text)])] * 4

    calm = render(tmp_path, sections("calm"), "calm", "calm")
    hostile = render(tmp_path, sections(HOSTILE), HOSTILE, HOSTILE)
    names = [(tag, sorted(attributes)) for tag, attributes in hostile.tags]
    assert names == [(tag, sorted(attributes)) for tag, attributes in calm.tags]
    shown = calm.text.count("calm")
    assert shown > 40
    assert hostile.text.count(HOSTILE) == shown


def test_page_loads_nothing_and_only_its_own_scripts_may_run(tmp_path: Path) -> None:
    page = render(tmp_path, [Section("One", "", [heatmap(), example()])])
    loaded = [
        value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "data")
    ]
    assert len(loaded) == 2
    assert all(value and value.startswith("data:image/png;base64,") for value in loaded)
    assert not page.named("link")
    assert all((a.get("href") or "").startswith("#section-") for a in page.named("a"))
    policy = next(
        a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_plotly_is_inlined_once_and_only_where_it_is_needed(tmp_path: Path) -> None:
    drawn = render(tmp_path, [Section("One", "", [heatmap(), heatmap()]), Section("Two", "", [heatmap()])])
    assert drawn.scripts.count(get_plotlyjs()) == 1
    assert sum(len(script) > 1_000_000 for script in drawn.scripts) == 1
    assert len([a for a in drawn.named("script") if a.get("type") == "application/json"]) == 3
    assert render(tmp_path, [Section("One", "", [example()])]).scripts == []


def test_long_pages_have_a_nav_to_every_section(tmp_path: Path) -> None:
    sections = [Section(str(number), "", []) for number in range(4)]
    assert not render(tmp_path, sections[:3]).named("nav")
    page = render(tmp_path, sections)
    targets = [f"#{a['id']}" for a in page.named("section")]
    assert [a["href"] for a in page.named("a")] == targets


def test_blurred_pixels_and_their_metadata_are_not_in_the_file(tmp_path: Path) -> None:
    blocks = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8)
    frame = ("step 0", png(np.kron(blocks, np.ones((32, 32, 3), dtype=np.uint8)), note="secret"), False)
    page = render(tmp_path, [Section("One", "", [ExampleRow("s1", "a", "b", "unsafe", [frame])])])
    data = base64.b64decode(str(page.named("img")[0]["src"]).partition(",")[2])
    assert b"secret" not in data
    soft = np.asarray(Image.open(io.BytesIO(data)), dtype=float)
    assert soft.shape == (512, 512, 3)
    assert np.abs(np.diff(soft, axis=0)).max() <= 4
    assert "show_unsafe=true" in page.text


def test_sharp_images_are_kept_and_small_ones_enlarged_as_pixels(tmp_path: Path) -> None:
    rows = [example(images="sharp"), example(images="sharp", side=300)]
    page = render(tmp_path, [Section("One", "", rows)])
    small, large = page.named("img")[0], page.named("img")[2]
    assert small["src"] == f"data:image/png;base64,{base64.b64encode(noise(note='a caption')).decode()}"
    assert small["class"] == "pixels"
    assert "class" not in large
    assert [a.get("class") for a in page.named("li")] == ["flagged", None] * 2
    assert "show_unsafe=true" not in page.text


def test_an_image_that_cannot_be_blurred_stops_the_page(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot identify image"):
        render(
            tmp_path,
            [Section("One", "", [ExampleRow("s1", "x", "x", "safe", [("step 0", b"no image", False)])])],
        )
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_page_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render(tmp_path, [], title="old")

    def torn(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", torn)
    with pytest.raises(OSError, match="disk full"):
        render(tmp_path, [], title="new")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert Tags((tmp_path / "report.html").read_text()).text.strip().startswith("old")


def test_a_table_shows_a_missing_value_as_missing(tmp_path: Path) -> None:
    table = pd.DataFrame({"auroc": [0.0, float("nan")], "category": ["digit_zero", None]})
    page = render(tmp_path, [Section("One", "", [table])])
    assert re.findall(r"0\.000|nan|None|–", page.text) == ["0.000", "–", "–"]


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_a_hole_is_no_value_but_a_cell_of_its_own(hole: float) -> None:
    figure = figures.cell_heatmap(grid([[0.6, hole], [0.0, 0.9]]), title="AUROC", colour_range=(0.5, 1))
    values, holes, crosses = figure.data
    z = np.array(values.z, dtype=float)
    assert np.isnan(z[0, 1])
    assert z[1, 0] == 0.0
    assert np.array_equal(np.isnan(np.array(holes.z, dtype=float)), [[True, False], [True, True]])
    assert "no detector" in holes.hovertemplate
    assert (list(crosses.x), list(crosses.y)) == ([1], ["digit_zero"])


def test_a_full_grid_has_no_sign_of_holes() -> None:
    assert len(figures.cell_heatmap(grid([[0.6, 0.7]] * 2), title="AUROC", colour_range=(0.5, 1)).data) == 1


def test_the_surface_has_eta_to_the_right_and_marks_the_choice() -> None:
    accuracy = pd.DataFrame([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], index=[1, 2, 3], columns=[0.5, 1.0])
    cells, chosen = figures.decision_surface(accuracy, eta=3, lam=0.5, title="on val").data
    assert cells.z[list(cells.y).index(0.5)][list(cells.x).index(3)] == 0.5
    assert (chosen.x[0], chosen.y[0]) == (3, 0.5)
    assert (cells.zmin, cells.zmax) == (0.1, 0.6)


def test_decisions_are_cumulated_over_all_samples_of_their_label() -> None:
    rows = [
        ("unsafe", "unsafe", 2),
        ("unsafe", "unsafe", 0),
        ("unsafe", "safe", 1),
        ("unsafe", "unchecked", 9),
    ]
    decided = pd.DataFrame([*rows, ("safe", "safe", 1)], columns=["label", "decision", "step"])
    lines = {line.name: list(line.y) for line in figures.deciding_steps(decided, eta=3).data}
    assert lines["unsafe blocked"] == [0.25, 0.25, 0.5]
    assert lines["unsafe cleared (missed)"] == [0, 0.25, 0.25]
    assert lines["safe cleared"] == [0, 1, 1]
    assert lines["safe blocked (false block)"] == [0, 0, 0]


def test_every_unsafe_group_is_drawn_against_safe() -> None:
    rows = [(step, group, 0.5, 0.4, 0.6) for group in ("safe", "digit_zero", "digit_one") for step in (1, 0)]
    figure = figures.score_traces(pd.DataFrame(rows, columns=["step", "group", "median", "low", "high"]))
    lines = [(trace.name, trace.xaxis, list(trace.x)) for trace in figure.data if trace.mode == "lines"]
    assert lines == [(name, axis, [0, 1]) for axis in ("x", "x2") for name in ("unsafe", "safe")]
    assert [note.text for note in figure.layout.annotations] == ["digit_zero", "digit_one"]
    assert sum(trace.showlegend for trace in figure.data) == 2


def test_the_interval_and_the_chosen_eta_are_drawn() -> None:
    table = pd.DataFrame({"eta": [1, 2], "accuracy": [0.5, 0.6], "tpr": [0.7, 0.8], "fpr": [0.2, 0.1]})
    table = table.assign(accuracy_low=[0.4, 0.5], accuracy_high=[0.6, 0.7])
    figure = figures.curves_by_eta(table, lam=0.6, chosen_eta=2)
    band, accuracy, *_ = figure.data
    assert list(band.y) == [0.6, 0.7, 0.5, 0.4]
    assert list(accuracy.customdata) == ["0.400 to 0.600", "0.500 to 0.700"]
    assert (figure.layout.shapes[0].x0, figure.layout.annotations[0].text) == (2, "chosen eta 2")


def job(category: str, step: int, status: str, **changes: object) -> JobRow:
    metrics = {"auroc": 0.75, "accuracy": 0.7, "f1": 0.6, "loss": 0.5, "seconds": 2.0}
    curves = {"epoch": [4.0, 8.0], "loss": [0.7, 0.5], "auroc": [0.6, 0.75]}
    done = status == "done"
    values = {
        "directory": f"{category}/step_{step:02d}",
        "metrics": metrics if done else {},
        "curves": curves if done else {},
        "wandb_url": None,
        "error": HOSTILE if status == "failed" else None,
    }
    return JobRow(category, step, status, **{**values, **changes})  # type: ignore[arg-type]


def grid_of(page: str) -> dict[str, Any]:
    (cells,) = [script for script in Tags(page).scripts if '"cells":' in script]
    found: dict[str, Any] = json.loads(cells)
    return found


def test_the_sweeps_page_has_every_job_behind_its_cell(tmp_path: Path) -> None:
    jobs = [
        job("alpha", 0, "done"),
        job("alpha", 1, "failed"),
        job("beta", 0, "to do"),
        job("beta", 1, "done"),
    ]
    write_dashboard(tmp_path / "index.html", title="tiny", jobs=jobs, running=False)
    page = (tmp_path / "index.html").read_text()
    assert "2 of 4 detectors are done, 1 failed" in page
    grid = grid_of(page)
    assert set(grid["metrics"]) == {"AUROC", "accuracy", "F1", "loss", "seconds", "status"}
    assert set(grid["cells"]) == {"alpha 0", "alpha 1", "beta 0", "beta 1"}
    done = grid["cells"]["alpha 0"]
    assert ["auroc", "0.75"] in done["rows"]
    assert ["result.json", "alpha/step_00/result.json"] in done["links"]
    assert [curve["y"] for curve in done["curves"]] == [[0.6, 0.75], [0.7, 0.5]]
    assert grid["cells"]["beta 0"]["links"] == []
    assert ["error", HOSTILE] in grid["cells"]["alpha 1"]["rows"]
    assert HOSTILE not in page


def test_a_missing_job_is_a_hole_in_every_metric(tmp_path: Path) -> None:
    jobs = [job("alpha", 0, "done"), job("alpha", 1, "to do")]
    write_dashboard(tmp_path / "index.html", title="tiny", jobs=jobs, running=False)
    for drawing in grid_of((tmp_path / "index.html").read_text())["metrics"].values():
        (row,) = drawing["data"][0]["z"]
        assert row[0] is not None
        assert row[1] is None
