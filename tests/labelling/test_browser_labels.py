"""The labelling page in a real headless Chromium, by its keys: what is pressed becomes labels.csv."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import NAMES, write_capture
from lvd.capture.preview import write_preview
from lvd.latents.format import SAFE, label_text, read_samples
from support.commands import Shell

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        shutil.which("chromium") is None or shutil.which("chromedriver") is None,
        reason="needs chromium and chromedriver: apt-get install chromium chromium-driver",
    ),
]

CAPTURE = "mine"
LONG = "a prompt with <b>markup</b> and </script> in it, " + "and one_word_that_is_long" * 4


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("capture.py", tmp_path, monkeypatch, capfd)


@pytest.fixture
def make(command: Shell) -> Callable[..., Path]:
    """Writes a capture with previews and, by the command, its page; returns the page."""

    def made(count: int, *arguments: str, labelled: bool = False) -> Path:
        capture = write_capture(command.directory / "captures" / CAPTURE, count, labelled=labelled)
        frames = np.random.default_rng(0).random((4, 64, 64, 3))
        write_preview(capture, "s000", frames, 8.0)
        for sample in read_samples(capture)[1:]:
            shutil.copy(capture / "preview" / "s000.mp4", capture / "preview" / f"{sample.sample_id}.mp4")
        ran = command(f"name={CAPTURE}", "page=true", *arguments)
        assert ran.code == 0, ran.err
        return capture / "label.html"

    return made


@pytest.fixture
def browser(chromium: Any, tmp_path: Path) -> Any:
    downloads = {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    chromium.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    yield chromium
    chromium.execute_script("localStorage.clear()")
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def press(browser: Any, *keys: str) -> str:
    """Press keys one after the other; returns what the page says of it to those who listen."""
    from selenium.webdriver import ActionChains

    chain = ActionChains(browser, duration=0)
    for key in keys:
        chain.send_keys(key)
    chain.perform()
    return text(browser, "said")


def text(browser: Any, id_: str) -> str:
    return str(browser.find_element("id", id_).text)


def media(browser: Any) -> dict[str, Any]:
    """How the one video of the page stands."""
    (found,) = browser.execute_script(
        """return [...document.querySelectorAll("video")].map(it => ({filter: getComputedStyle(it).filter,
            inert: it.inert, paused: it.paused, controls: it.controls, error: it.error, src: it.src,
            width: it.videoWidth}))"""
    )
    return dict(found)


def wait(browser: Any, script: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"return {script}"))


def pressed(browser: Any) -> list[str]:
    found: list[str] = browser.execute_script(
        """return [...document.querySelectorAll("#labels [aria-pressed=true]")].map(it => it.dataset.name)"""
    )
    return found


def save(browser: Any, tmp_path: Path) -> Path:
    """The file that the page's button has the browser download."""
    (path := tmp_path / "downloads" / "labels.csv").unlink(missing_ok=True)
    browser.find_element("id", "save").click()
    wait(browser, "true")
    for _ in range(600):
        if path.is_file():
            break
        wait(browser, "new Promise(done => setTimeout(() => done(true), 50))")
    return path


def rows(path: Path) -> list[tuple[str, ...]]:
    with path.open(newline="") as file:
        return [tuple(row) for row in csv.reader(file)]


# What it is for


def test_300_samples_labelled_by_keys_are_read_as_they_were_meant(
    make: Callable[..., Path], command: Shell, browser: Any, tmp_path: Path, train: Shell
) -> None:
    from selenium.webdriver.common.keys import Keys

    page = make(300)
    truth = {f"s{i:03d}": NAMES[i % 4] if i % 4 < 2 else SAFE for i in range(300)}  # as conftest makes them
    truth["s004"], truth["s008"] = "alpha|beta", SAFE
    browser.get(page.as_uri())
    browser.find_element("id", "annotator").send_keys('Ann, "A."', Keys.ENTER)
    keys = {"alpha": ["1", Keys.ENTER], "beta": ["2", Keys.ENTER], SAFE: ["0"]}
    keys["alpha|beta"] = ["1", "2", Keys.ENTER]
    said = press(browser, *(key for label in truth.values() for key in keys[label]))
    assert said == "s299: safe. That was the last one: save labels.csv."
    assert text(browser, "count") == "300 of 300 labelled"
    labels = save(browser, tmp_path)
    assert rows(labels)[:2] == [("sample_id", "category", "annotator"), ("s000", "alpha", 'Ann, "A."')]
    assert len(rows(labels)) == 1 + 300 + 1

    ran = command(f"name={CAPTURE}", f"labels={labels}", "unnamed=keep")
    assert ran.code == 0, ran.err
    found = {s.sample_id: label_text(s.categories) for s in read_samples(page.parent)}
    assert found == truth
    ran = train(
        f"name={CAPTURE}", "category=alpha", "step=0", "encoder.width=32", "encoder.layers=2", "logger=none",
        "detector.network.epochs=1",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "unlabelled" not in ran.out


def test_a_key_gives_a_category_another_one_more_and_undo_takes_them_back(
    make: Callable[..., Path], browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(make(6).as_uri())
    assert (text(browser, "sample"), text(browser, "count")) == ("s000 1 of 6", "0 of 6 labelled")
    assert press(browser, Keys.ENTER).startswith("s000 has no label: press the key of a category")
    assert press(browser, "2", "1") == "s000: alpha, beta."
    assert pressed(browser) == ["alpha", "beta"]
    assert press(browser, "2") == "s000: alpha."
    assert press(browser, Keys.ENTER) == "s000: alpha. Now s001, 2 of 6."
    assert press(browser, "s") == "s001 skipped. Now s002, 3 of 6."
    assert press(browser, "0") == "s002: safe. Now s003, 4 of 6."
    assert text(browser, "count") == "2 of 6 labelled, 1 skipped"
    assert press(browser, "u") == "Undone. s002: no label."
    assert text(browser, "sample") == "s002 3 of 6"
    assert press(browser, "u", "u") == "Undone. s000: alpha, beta."
    assert press(browser, "u", "u", "u") == "There is nothing to undo."
    assert text(browser, "count") == "0 of 6 labelled"
    assert press(browser, "1", "0") == "s000: safe. Now s001, 2 of 6."  # safe stands alone
    assert press(browser, Keys.ARROW_LEFT) == "Now s000, 1 of 6: safe."
    assert pressed(browser) == ["safe"]
    assert press(browser, Keys.ARROW_LEFT) == "This is the first one."


def test_what_was_skipped_comes_again_at_the_end(make: Callable[..., Path], browser: Any) -> None:
    browser.get(make(4).as_uri())
    assert press(browser, "s", "0", "s", "0") == "s003: safe. Now s000, 1 of 4."
    assert press(browser, "0") == "s000: safe. Now s002, 3 of 4."
    assert press(browser, "0") == "s002: safe. That was the last one: save labels.csv."


def test_a_video_is_blurred_and_still_until_it_is_asked_for(make: Callable[..., Path], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(make(4).as_uri())
    before = media(browser)
    assert (before["filter"], before["inert"], before["paused"]) == ("blur(28px)", True, True)
    assert before["controls"]
    assert press(browser, Keys.SPACE) == "s000 is shown."
    wait(browser, "!document.querySelector('video').paused")
    assert (media(browser)["filter"], media(browser)["inert"], media(browser)["error"]) == (
        "none",
        False,
        None,
    )
    assert media(browser)["width"] == 256
    press(browser, Keys.SPACE)
    wait(browser, "document.querySelector('video').paused")
    press(browser, Keys.ESCAPE)
    assert media(browser)["filter"] == "blur(28px)"
    press(browser, Keys.SPACE, "0")
    assert media(browser)["src"].endswith("s001.mp4")
    assert media(browser)["filter"] == "blur(28px)"  # the next one was not asked for
    browser.find_element("id", "uncovered").click()
    press(browser, "0")
    assert media(browser)["filter"] == "none"


def test_a_moving_picture_of_an_earlier_capture_is_shown_as_one(
    make: Callable[..., Path], browser: Any
) -> None:
    from PIL import Image

    page = make(2)
    (page.parent / "preview" / "s000.mp4").unlink()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(page.parent / "preview" / "s000.gif", save_all=True, append_images=frames[1:])
    page.write_text(page.read_text().replace("preview/s000.mp4", "preview/s000.gif"))
    browser.get(page.as_uri())
    wait(browser, "document.querySelector('img').naturalWidth == 32")
    blur = "return getComputedStyle(document.querySelector('img')).filter"
    assert browser.execute_script(blur) == "blur(28px)"
    assert press(browser, " ") == "s000 is shown."
    assert browser.execute_script(blur) == "none"
    press(browser, "0")
    assert media(browser)["src"].endswith("s001.mp4")


def test_the_browser_keeps_labels_by_capture_and_annotator(
    make: Callable[..., Path], browser: Any, tmp_path: Path
) -> None:
    from selenium.webdriver.common.keys import Keys

    page = make(4)
    browser.get(page.as_uri())
    press(browser, "0", "1")
    browser.refresh()
    assert text(browser, "count") == "2 of 4 labelled"
    browser.find_element("id", "annotator").send_keys("ann", Keys.ENTER)  # who was nameless has a name now
    assert text(browser, "count") == "2 of 4 labelled"
    name = browser.find_element("id", "annotator")
    name.clear()
    name.send_keys("bob", Keys.ENTER)
    assert text(browser, "count") == "0 of 4 labelled"
    press(browser, "0")
    assert text(browser, "kept") == "Samples: 2 by ann, 1 by bob. Changes since the last save."
    assert rows(save(browser, tmp_path))[1:] == [
        ("s000", "safe", "ann"),
        ("s001", "alpha", "ann"),
        ("s000", "safe", "bob"),
    ]
    assert text(browser, "kept") == "Samples: 2 by ann, 1 by bob."
    shutil.copytree(page.parent, other := page.parent.with_name("other"))
    (other / "label.html").write_text(page.read_text().replace("lvd labels mine", "lvd labels other"))
    browser.get((other / "label.html").as_uri())
    assert text(browser, "count") == "0 of 4 labelled"


def test_an_existing_file_is_loaded_and_a_bad_one_changes_nothing(
    make: Callable[..., Path], browser: Any, tmp_path: Path
) -> None:
    browser.get(make(4).as_uri())
    press(browser, "0")
    for content, sentence in (
        ("sample_id,category\ns001,alpha\nnobody,safe\n", "row 2: this capture has no sample nobody"),
        ("sample_id,category\ns001,Alpha\n", "row 1: there is no category Alpha"),
        ("sample_id,category\ns001,alpha\ns001,safe\n", "row 2: s001 is safe and alpha"),
        ("id,category\ns001,alpha\n", "it needs the columns sample_id, category"),
        ('sample_id,category\n"s001,alpha\n', "a quote is not closed"),
    ):
        (tmp_path / "bad.csv").write_text(content)
        browser.find_element("id", "load").send_keys(str(tmp_path / "bad.csv"))
        wait(browser, f"document.getElementById('said').textContent.includes({sentence!r})")
        assert text(browser, "said").endswith("Nothing was loaded.")
        assert text(browser, "count") == "1 of 4 labelled"
    good = [
        "\ufeffsample_id,category,annotator",
        "s001,alpha,",
        "s001,beta,",
        '"s002",safe,"B, ""b"""',
        "s003,,",
    ]
    (tmp_path / "labels.csv").write_text("\r\n".join(good), newline="")
    browser.find_element("id", "load").send_keys(str(tmp_path / "labels.csv"))
    wait(browser, "document.getElementById('said').textContent.startsWith('2 samples')")
    assert text(browser, "count") == "2 of 4 labelled"
    saved = rows(save(browser, tmp_path))[1:]
    assert saved == [
        ("s000", "safe", ""),
        ("s001", "alpha", ""),
        ("s001", "beta", ""),
        ("s002", "safe", 'B, "b"'),
    ]
    assert press(browser, "u") == "Undone: 2 labels are as before."
    assert text(browser, "count") == "1 of 4 labelled"


def test_a_capture_that_is_all_labelled_says_so_and_what_comes_next(
    make: Callable[..., Path], browser: Any
) -> None:
    browser.get(make(4, labelled=True).as_uri())
    assert text(browser, "count") == "all 4 labelled"
    assert browser.execute_script("const bar = document.getElementById('done'); return bar.value === bar.max")
    assert text(browser, "said").startswith("All 4 samples are labelled, and nothing speaks against")
    assert "Next: python train.py task=trunk name=mine." in text(browser, "said")
    assert text(browser, "sample") == "s000 1 of 4"
    assert press(browser, "0") == "s000: safe. Now s001, 2 of 4."
    assert text(browser, "count") == "all 4 labelled"


# For everyone


def test_it_is_worked_by_tab_alone_and_the_focus_is_seen(make: Callable[..., Path], browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(make(3).as_uri())
    names = []
    for _ in range(18):
        press(browser, Keys.TAB)
        name, outline = browser.execute_script(
            """const it = document.activeElement, seen = it.id === "load" ? it.parentElement : it;
            const style = getComputedStyle(seen);
            return [it.labels?.[0]?.textContent.trim() ?? it.textContent.trim(),
                    style.outlineStyle === "solid" ? parseFloat(style.outlineWidth) : 0];"""
        )
        names.append(" ".join(name.split()))
        assert outline >= 3, name
    assert names[:4] == ["Show the video Space", "1alpha", "2beta", "0safe"]
    assert {"Next Enter", "Skip S", "Save labels.csv", "Load labels.csv", "Single keys"} <= set(names)
    browser.execute_script("document.activeElement.blur()")
    browser.execute_script("document.querySelector('#labels button').focus()")
    press(browser, Keys.SPACE)  # the button's own, not the video's
    assert pressed(browser) == ["alpha"]
    press(browser, Keys.ENTER)
    assert pressed(browser) == []
    browser.execute_script("document.getElementById('cover').focus()")
    press(browser, Keys.ENTER)
    assert browser.execute_script("return document.activeElement.tagName") == "VIDEO"


def test_what_is_done_is_told_to_who_listens_and_single_keys_can_be_off(
    make: Callable[..., Path], browser: Any
) -> None:
    browser.get(make(3).as_uri())
    said = browser.find_element("id", "said")
    assert (said.get_attribute("role"), said.get_attribute("aria-live")) == ("status", "polite")
    unnamed = browser.execute_script(
        """return [...document.querySelectorAll("button, input, select, progress, video")].filter(it =>
            !(it.getAttribute("aria-label") || it.labels?.[0]?.textContent.trim() || it.textContent.trim()))
            .map(it => it.outerHTML)"""
    )
    assert unnamed == []
    browser.find_element("id", "keys").click()
    press(browser, "1", "0")
    assert text(browser, "count") == "0 of 3 labelled"
    browser.find_element("css selector", "#labels .safe").click()
    assert text(browser, "said") == "s000: safe. Now s001, 2 of 3."
    browser.find_element("id", "annotator").send_keys("1 0 s u")  # a text, not keys
    assert text(browser, "count") == "1 of 3 labelled"


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped_and_text_stands_out(
    make: Callable[..., Path], browser: Any, width: int, scheme: str, tmp_path: Path
) -> None:
    page = make(3)
    page.write_text(page.read_text().replace("prompt number 0", LONG.replace("<", "\\u003c")))
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    assert text(browser, "prompt") == LONG
    press(browser, "1")
    off = browser.execute_script(
        """return [...document.querySelectorAll("body *")].filter(it =>
            it.getBoundingClientRect().right > innerWidth + 1 || !it.matches("select, .screen, .screen *")
            && it.scrollWidth > it.clientWidth + 1 && getComputedStyle(it).display !== "inline")
            .filter(it => it.id !== "load").map(it => it.outerHTML.slice(0, 99))"""
    )
    assert off == []
    poor = browser.execute_script(
        """const channels = colour => colour.match(/[\\d.]+/g).map(Number);
        const luminance = ([r, g, b]) => [0.2126 * r, 0.7152 * g, 0.0722 * b].length && [r, g, b]
            .map(c => c / 255).map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
            .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
        const ground = it => { for (; it; it = it.parentElement) {
            const found = channels(getComputedStyle(it).backgroundColor);
            if (found.length < 4 || found[3] === 1) return found; } return [255, 255, 255]; };
        return [...document.querySelectorAll("h1, h2, p, span, button, label, legend, small, kbd, code")]
            .filter(it => it.textContent.trim() && !it.closest(".screen")).map(it => {
                const [low, high] = [luminance(channels(getComputedStyle(it).color)), luminance(ground(it))]
                    .sort((a, b) => a - b);
                return [(high + 0.05) / (low + 0.05), it.textContent.trim()]; })
            .filter(([ratio]) => ratio < 4.5)"""
    )
    assert poor == []


def test_of_two_thousand_samples_one_video_is_shown_and_the_next_two_are_fetched(
    make: Callable[..., Path], browser: Any
) -> None:
    page = make(5)
    many = page.read_text()
    start, end = many.index('"entries": [') + len('"entries": ['), many.index("]}</script>")
    one = many[start : many.index("}", start) + 1]
    entries = ", ".join(one.replace('"s000"', f'"s{n:03d}"') for n in range(2000))
    page.write_text(many[:start] + entries + many[end:])
    count = """const create = document.createElement.bind(document);
        window.videos = 0;
        document.createElement = tag => { window.videos += tag === "video"; return create(tag); };"""
    added = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": count})
    browser.get(page.as_uri())
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert text(browser, "count") == "0 of 2000 labelled"
    assert browser.execute_script("return window.videos") == 3
    assert browser.execute_script("return document.querySelectorAll('main *').length") < 2200
    assert press(browser, *"000") == "s002: safe. Now s003, 4 of 2000."
    assert browser.execute_script("return window.videos") == 6
    assert browser.execute_script("return document.querySelectorAll('video').length") == 1
