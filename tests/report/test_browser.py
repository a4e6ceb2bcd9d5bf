"""The pages in a real headless Chromium: the cells of a sweep by pointer and by keyboard, its page loading
itself anew, narrow screens, and images that are covered.
"""

import io
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from lvd.report.page import Comparison, ExampleRow, Section, write_page
from lvd.sweep import page as sweep_page
from lvd.sweep.grid import Cell
from lvd.sweep.page import write_index
from lvd.sweep.results import Result

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]

CATEGORIES, STEPS = ("gore", "monster", "weapon"), 10


def result(category: str, step: int) -> Result:
    auroc = 0.5 + 0.01 * step + 0.1 * CATEGORIES.index(category)
    return Result(
        "done",
        category,
        step,
        seed=0,
        config_digest="digest",
        settings={},
        seconds=1.0,
        metrics={"auroc": auroc, "accuracy": auroc, "f1": auroc, "loss": 0.4},
        curves={"epoch": [1.0, 2.0], "loss": [0.6, 0.4], "auroc": [0.7, 0.8]},
        wandb_url="https://wandb.example/run",
    )


def failed(category: str, step: int) -> Result:
    return Result("failed", category, step, 0, "digest", {}, 1.0, error="<b>out of memory</b>")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = {}
    for category in CATEGORIES:
        for step in range(STEPS):
            make = {3: failed, 7: lambda *_: None}.get(step, result)
            results[Cell(category, step)] = make(category, step)
    return write_index(tmp_path_factory.mktemp("run"), results, running=False)


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.get(page.as_uri())
    return chromium


def click_cell(browser: Any, category: str, step: int) -> str:
    """Click where the cell is drawn; returns what the page then shows of it."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    plot = browser.find_element(By.CSS_SELECTOR, ".grid .js-plotly-plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    x, y, width, height = browser.execute_script(
        """const [plot, category, step] = arguments, {xaxis, yaxis, width, height} = plot._fullLayout;
        return [xaxis._offset + xaxis.d2p(step), yaxis._offset + yaxis.d2p(category), width, height];""",
        plot,
        category,
        step,
    )
    offset = (round(x - width / 2), round(y - height / 2))  # selenium counts from the middle
    ActionChains(browser).move_to_element_with_offset(plot, *offset).pause(0.3).click().perform()
    return str(browser.find_element(By.CSS_SELECTOR, ".detail").text)


def contrast(browser: Any, selector: str) -> float:
    """The WCAG contrast ratio of an element's text with the page's background."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return float(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])

    text, ground = browser.execute_script(
        """const element = document.querySelector(arguments[0]), style = getComputedStyle(element);
        return [element.ownerSVGElement ? style.fill : style.color,
                getComputedStyle(document.body).backgroundColor];""",
        selector,
    )
    light, dark = sorted((luminance(text), luminance(ground)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_loads_without_errors_and_holds_every_cell(browser: Any) -> None:
    heatmap = browser.execute_script("return document.querySelector('.grid .js-plotly-plot').data[0]")
    assert (len(heatmap["y"]), len(heatmap["x"])) == (len(CATEGORIES), STEPS)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_click_shows_the_job_of_the_cell(browser: Any) -> None:
    shown = click_cell(browser, "weapon", 5)
    assert shown.startswith("weapon, step 5")
    assert "auroc 0.75" in shown
    links = {
        link.text: link.get_attribute("href") for link in browser.find_elements("css selector", ".detail a")
    }
    assert set(links) == {"result.json", "configuration", "folder", "wandb"}
    assert links["result.json"].endswith("/weapon/step_05/result.json")
    assert len(browser.find_elements("css selector", ".detail .scatterlayer .trace")) == 2  # loss and AUROC


def test_a_click_on_a_failed_cell_tells_why_and_on_a_hole_that_it_is_to_do(browser: Any) -> None:
    assert "<b>out of memory</b>" in click_cell(browser, "gore", 3)  # as text
    assert "to do" in click_cell(browser, "monster", 7)


def test_the_chosen_metric_is_drawn(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    first = "return document.querySelector('.grid .js-plotly-plot').data[0].z[0][0]"
    assert browser.execute_script(first) == pytest.approx(0.5)
    Select(browser.find_element("css selector", ".grid select")).select_by_visible_text("loss")
    assert browser.execute_script(first) == pytest.approx(0.4)
    assert click_cell(browser, "monster", 2).startswith("monster, step 2")


# ---- by keyboard


def press(browser: Any, *keys: str) -> dict[str, Any]:
    """Press keys one after the other; returns what has the focus then, and how it is seen."""
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()
    found: dict[str, Any] = browser.execute_script(
        """const it = document.activeElement, style = getComputedStyle(it);
        return {role: it.getAttribute("role"), label: it.getAttribute("aria-label"), tag: it.tagName,
                text: it.textContent, outline: [style.outlineStyle, parseFloat(style.outlineWidth)]};"""
    )
    return found


def detail(browser: Any) -> str:
    return str(browser.find_element("css selector", ".detail").text)


def test_the_cells_are_reached_opened_and_closed_by_keyboard(browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    hint = detail(browser)
    press(browser, Keys.TAB)  # the choice of what is shown
    first = press(browser, Keys.TAB)
    assert (first["role"], first["label"].split(":")[0]) == ("gridcell", "gore, step 0")
    assert "status done" in first["label"]
    assert "auroc 0.5" in first["label"]
    assert first["outline"][0] == "solid"
    assert first["outline"][1] >= 2
    cell = press(browser, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert cell["label"].startswith("monster, step 2:")
    assert detail(browser) == hint
    press(browser, Keys.ENTER)
    assert detail(browser).startswith("monster, step 2")
    assert press(browser, Keys.TAB)["text"] == "result.json"
    assert press(browser, Keys.ESCAPE)["label"].startswith("monster, step 2:")  # back where it was opened
    assert detail(browser) == hint
    assert press(browser, Keys.END)["label"].startswith("monster, step 9:")
    assert press(browser, Keys.ARROW_RIGHT)["label"].startswith("monster, step 9:")
    assert press(browser, Keys.HOME)["label"].startswith("monster, step 0:")


def test_the_grid_is_one_stop_of_tab_and_lies_over_the_drawing(browser: Any) -> None:
    stops = "return document.querySelectorAll('.board button[tabindex=\"0\"]').length"
    assert browser.execute_script(stops) == 1
    click_cell(browser, "weapon", 5)
    assert browser.execute_script(stops) == 1
    box = browser.execute_script(
        """const cell = document.querySelector("[aria-selected=true]");
        const {x, y, width, height} = cell.getBoundingClientRect();
        const plot = document.querySelector(".grid .js-plotly-plot"), {xaxis, yaxis} = plot._fullLayout;
        const origin = plot.getBoundingClientRect();
        return [x + width / 2 - origin.x - xaxis._offset - xaxis.d2p(5),
                y + height / 2 - origin.y - yaxis._offset - yaxis.d2p("weapon")];"""
    )
    assert box == pytest.approx([0, 0], abs=1)


# ---- while jobs run


def test_the_page_loads_itself_anew_at_the_same_place_until_all_is_done(
    chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def write(done: int) -> None:
        results = {Cell(name, step): result(name, step) for name in CATEGORIES for step in (0, 1, 2, 4)}
        late = {Cell(name, 7): result(name, 7) if n < done else None for n, name in enumerate(CATEGORIES)}
        write_index(tmp_path, results | late, running=True)

    def lead() -> str:
        return str(chromium.find_element("css selector", ".lead").text)

    monkeypatch.setattr(sweep_page, "RELOAD_SECONDS", 0.5)
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 800, "height": 300, "deviceScaleFactor": 1, "mobile": False},
    )
    write(0)
    chromium.get((tmp_path / "index.html").as_uri())
    assert lead().startswith("12 of 15")
    Select(chromium.find_element("css selector", ".grid select")).select_by_visible_text("loss")
    chromium.execute_script(
        """const cell = document.querySelectorAll(".board button")[6];
        cell.focus(); cell.click(); scrollTo(0, 250);"""
    )
    opened = detail(chromium)
    assert opened.startswith("monster, step 1")
    for done in (2, 3):
        write(done)
        reached = WebDriverWait(chromium, 60, ignored_exceptions=[StaleElementReferenceException])
        reached.until(lambda _, counted=12 + done: lead().startswith(f"{counted} of 15"))
        reached.until(lambda _: chromium.execute_script("return document.readyState == 'complete'"))
    assert detail(chromium) == opened
    assert chromium.execute_script("return scrollY") == 250
    assert chromium.execute_script("return document.querySelector('.grid select').value") == "loss"
    focused = press(chromium)
    assert (focused["role"], str(focused["label"])[:16]) == ("gridcell", "monster, step 1:")
    assert not chromium.find_elements("css selector", "[data-reload]")
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


# ---- on every screen, and on paper


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, format="PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    note = "holds for 56 unsafe and 56 safe samples; with fewer unsafe ones less is saved"
    summary = [("Steps run until a caught unsafe sample is stopped, mean", "13.4", note)] * 3
    wide = pd.DataFrame({"job": ["distorted_weird, step 7"], **{f"measure {n}": [0.123] for n in range(12)}})
    frames = [(f"step {step}", picture(), True) for step in range(8)]
    rows = [ExampleRow(f"s{n}", "a prompt", "Caught", "unsafe", frames, "covered") for n in range(2)]
    shares = [("0.946", "0.853 to 0.982"), ("1.000", "0.936 to 1.000\nn=56")]
    rules = [("vote", ""), ("sequential", "decides")]
    comparison = Comparison(rules, [("Steps run until a caught unsafe sample is stopped, mean", shares)])
    write_page(
        path, title="Report", lead="", sections=[Section("All", "", [summary, wide, comparison, *rows])]
    )
    return path


@pytest.mark.parametrize("width", [390, 1280, 1920])
@pytest.mark.parametrize("name", ["page", "report"])
def test_nothing_is_off_the_screen(
    chromium: Any, request: pytest.FixtureRequest, name: str, width: int
) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    chromium.get(request.getfixturevalue(name).as_uri())
    assert chromium.execute_script("return innerWidth") == width
    assert chromium.execute_script(
        "const page = document.documentElement; return page.scrollWidth == page.clientWidth"
    )
    off = chromium.execute_script(
        """return [...document.querySelectorAll("main *")].filter(it =>
            !it.closest(".drawing") && !it.closest("table:not(.summary)")
            && it.getBoundingClientRect().right > innerWidth).map(it => it.outerHTML.slice(0, 99))"""
    )
    assert off == []
    clipped = chromium.execute_script(
        """return [...document.querySelectorAll(".summary :is(th, td)")].filter(it =>
            it.scrollWidth > it.clientWidth + 1 || it.scrollHeight > it.clientHeight + 1).length"""
    )
    assert clipped == 0


def test_a_wide_table_scrolls_within_itself_and_keeps_its_first_column(chromium: Any, report: Path) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    chromium.get(report.as_uri())
    moved, before, after = chromium.execute_script(
        """const table = document.querySelector("table:not(.summary)"), first = table.querySelector("td");
        const before = first.getBoundingClientRect().left;
        table.parentElement.scrollLeft = 200;
        return [table.parentElement.scrollLeft, before, first.getBoundingClientRect().left];"""
    )
    assert (moved, after) == (200, before)


@pytest.mark.parametrize("width", [390, 1280])
def test_rules_side_by_side_are_seen_whole(chromium: Any, report: Path, width: int) -> None:
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    chromium.get(report.as_uri())
    right, edge, heights = chromium.execute_script(
        """const table = document.querySelector(".comparison");
        return [table.getBoundingClientRect().right, table.parentElement.getBoundingClientRect().right,
            [...table.querySelectorAll("td small")].map(it => it.offsetHeight)]"""
    )
    assert right <= edge + 1
    assert heights[1] == 2 * heights[0]  # an interval keeps to its line


@pytest.mark.parametrize("way", ["click", "space"])
def test_a_covered_example_is_uncovered_by_a_click_or_a_key(chromium: Any, report: Path, way: str) -> None:
    from selenium.webdriver.common.keys import Keys

    def looks(style: str) -> list[str]:
        found: list[str] = chromium.execute_script(
            """return [...document.querySelectorAll(".example")].map(
                it => getComputedStyle(it.querySelector("img"))[arguments[0]])""",
            style,
        )
        return found

    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.get(report.as_uri())
    assert looks("filter") == ["blur(14px)"] * 2
    if way == "click":
        chromium.find_element("css selector", ".example img").click()
    else:
        while press(chromium, Keys.TAB)["tag"] != "INPUT":  # a table that scrolls is a stop of Tab too
            pass
        press(chromium, Keys.SPACE)
    assert looks("filter") == ["none", "blur(14px)"]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert looks("visibility") == ["visible", "hidden"]


@pytest.mark.parametrize("media", ["light", "dark", "print"])
def test_text_stands_out_from_its_ground(browser: Any, media: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": "light" if media == "light" else "dark"}]
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "print" if media == "print" else "", "features": features}
    )
    if media == "print":
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    click_cell(browser, "monster", 1)
    for selector in (".lead", ".grid .xtick text", ".grid .ytick text", ".detail h3", ".detail .xtick text"):
        assert contrast(browser, selector) >= 4.5, selector
