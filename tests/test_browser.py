"""The sweep's page in a real headless Chromium: it loads without errors, and its cells answer a click."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lvd.report.sweep import JobRow, write_dashboard

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]

CATEGORIES, STEPS = ("digit_zero", "digit_one", "digit_two"), 10
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--window-size=1200,1500")


def job(category: str, step: int) -> JobRow:
    status = {3: "failed", 7: "to do"}.get(step, "done")
    done = status == "done"
    auroc = 0.5 + 0.01 * step + 0.1 * CATEGORIES.index(category)
    return JobRow(
        category=category,
        step=step,
        status=status,
        directory=f"{category}/step_{step:02d}",
        metrics={"auroc": auroc, "accuracy": auroc, "f1": auroc, "loss": 0.4, "seconds": 1.0} if done else {},
        curves={"epoch": [1.0, 2.0], "loss": [0.6, 0.4], "auroc": [0.7, 0.8]} if done else {},
        wandb_url="https://wandb.example/run" if done else None,
        error=None if status != "failed" else "<b>out of memory</b>",
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "index.html"
    jobs = [job(category, step) for category in CATEGORIES for step in range(STEPS)]
    write_dashboard(path, title="demo: 30 detectors", jobs=jobs, running=False)
    return path


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Any, page: Path) -> Any:
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
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
    shown = click_cell(browser, "digit_two", 5)
    assert shown.startswith("digit_two, step 5")
    assert "auroc 0.75" in shown
    links = {
        link.text: link.get_attribute("href") for link in browser.find_elements("css selector", ".detail a")
    }
    assert set(links) == {"result.json", "configuration", "folder", "wandb"}
    assert links["result.json"].endswith("/digit_two/step_05/result.json")
    assert len(browser.find_elements("css selector", ".detail .scatterlayer .trace")) == 2  # loss and AUROC


def test_a_click_on_a_failed_cell_tells_why_and_on_a_hole_that_it_is_to_do(browser: Any) -> None:
    assert "<b>out of memory</b>" in click_cell(browser, "digit_zero", 3)  # as text
    assert "to do" in click_cell(browser, "digit_one", 7)


def test_the_chosen_metric_is_drawn(browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    first = "return document.querySelector('.grid .js-plotly-plot').data[0].z[0][0]"
    assert browser.execute_script(first) == pytest.approx(0.5)
    Select(browser.find_element("css selector", ".grid select")).select_by_visible_text("loss")
    assert browser.execute_script(first) == pytest.approx(0.4)
    assert click_cell(browser, "digit_one", 2).startswith("digit_one, step 2")


@pytest.mark.parametrize("media", ["light", "dark", "print"])
def test_text_stands_out_from_its_ground(browser: Any, media: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": "light" if media == "light" else "dark"}]
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"media": "print" if media == "print" else "", "features": features}
    )
    if media == "print":
        browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    click_cell(browser, "digit_one", 1)
    for selector in (".lead", ".grid .xtick text", ".grid .ytick text", ".detail h3", ".detail .xtick text"):
        assert contrast(browser, selector) >= 4.5, selector
