"""Take the pictures of docs/sweep.md and docs/labels.md; needs Debian's chromium and chromium-driver.

    python docs/screenshots.py sweep     # after `make demo`: a sweep in a terminal, its plan after an
                                         # interruption, its page
    python docs/screenshots.py labels    # after `python capture.py name=demo page=true run=demo`

The sweep is the demo's grid once more, in a folder of its own, in a real pseudo-terminal.
"""

import codecs
import fcntl
import io
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).parent.parent
ROWS, COLUMNS = 30, 96
INTERRUPTED_AT = 150  # jobs
_CONTROL = re.compile(r"(\r|\n|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh])")


def main() -> None:
    pictures = {"sweep": pictures_of_sweep, "labels": pictures_of_labels}
    if len(sys.argv) != 2 or sys.argv[1] not in pictures:
        sys.exit(str(__doc__))
    pictures[sys.argv[1]]()


def pictures_of_labels() -> None:
    """The labelling page of the demo: as it opens, and on a phone in the dark, with a label given."""
    page = ROOT / "captures/demo/label.html"
    if not page.is_file():
        sys.exit(f"{page} is not there: python capture.py name=demo page=true run=demo")
    with browser() as chromium:
        for picture, scheme, width, height, keys in (
            ("labelling.png", "light", 1200, 800, ""),
            ("labelling_phone.png", "dark", 390, 844, " 4"),
        ):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            chromium.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
            )
            chromium.get(page.as_uri())
            for key in keys:
                press(chromium, key)
            time.sleep(1)  # a first frame
            chromium.save_screenshot(str(ROOT / "docs" / picture))
            print(ROOT / "docs" / picture)


def press(chromium: Any, key: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(chromium).send_keys(key).perform()


def pictures_of_sweep() -> None:
    if not (ROOT / "runs/demo/trunk/result.json").is_file():
        sys.exit("the demo's trunk is not there: run make demo first")
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        place = Path(folder)
        (place / "captures").symlink_to(ROOT / "captures")
        shutil.copytree(ROOT / "runs/demo/trunk", place / "runs/demo/trunk")
        arguments = ["-m", "category=0..4", "step=0..49", "experiment=demo"]
        command = [str(ROOT / "train.py"), *arguments, "logger=none"]
        shown = f"$ python train.py {' '.join(arguments)}"

        screen = in_terminal(place, command, _interrupt_at(INTERRUPTED_AT))
        photograph(chromium, shown, screen, ROOT / "docs/sweep.png")
        screen = in_terminal(place, [*command, "plan=true"])
        photograph(chromium, f"{shown} plan=true", screen, ROOT / "docs/plan.png")
        in_terminal(place, command)
        photograph_page(chromium, place / "runs/demo/index.html", ROOT / "docs/dashboard.png")


def in_terminal(folder: Path, command: list[str], look: Callable[[str], bool] | None = None) -> str:
    """What a terminal shows at a command's end, or when `look` says so: the command is interrupted then."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    written, found = "", ""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with suppress(OSError):  # the other end is closed: how Linux says that the command has ended
        while True:
            written += decoder.decode(os.read(ours, 65536))
            if look is not None and not found and look(screen_of(written)):
                found = screen_of(written)
                os.killpg(process.pid, signal.SIGINT)
    os.close(ours)
    process.wait()
    return found or screen_of(written)


def _interrupt_at(jobs: int) -> Callable[[str], bool]:
    def look(screen: str) -> bool:
        counts = re.findall(r"(\d+)/\d+", Text.from_ansi(screen).plain)
        return bool(counts) and int(counts[-1]) >= jobs and " running" in screen

    return look


def screen_of(written: str) -> str:
    """The lines that a terminal shows after what was written: rich moves up and clears lines, no more."""
    lines, row = [""], 0
    for part in _CONTROL.split(written):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif part.endswith("A") and part.startswith("\x1b["):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r" and not part.startswith("\x1b[?25"):
            lines[row] += part
    return "\n".join(lines).rstrip()


@contextmanager
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
        try:
            yield driver
        finally:
            driver.quit()


def photograph(chromium: Any, command: str, screen: str, picture: Path) -> None:
    """A terminal's screen as a picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(command, style="bold"))
    console.print(Text.from_ansi(screen))
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as page:
        page.write(console.export_html(theme=MONOKAI, inline_styles=True))
        page.write("<style>pre { width: max-content; padding: 16px; background: #0c0c0c }</style>")
        page.flush()
        chromium.set_window_size(1100, 1000)
        chromium.get(Path(page.name).as_uri())
        chromium.find_element("css selector", "pre").screenshot(str(picture))
    print(picture)


def photograph_page(chromium: Any, page: Path, picture: Path) -> None:
    """A sweep's page, one cell clicked."""
    from selenium.webdriver import ActionChains

    chromium.set_window_size(1100, 1180)
    chromium.get(page.as_uri())
    plot = chromium.find_element("css selector", ".grid .js-plotly-plot")
    x, y = chromium.execute_script(
        """const {xaxis, yaxis, width, height} = arguments[0]._fullLayout;
        return [xaxis._offset + xaxis.d2p(12) - width / 2,
                yaxis._offset + yaxis.d2p("weapon") - height / 2];""",
        plot,
    )
    ActionChains(chromium).move_to_element_with_offset(plot, round(x), round(y)).pause(0.3).click().perform()
    chromium.execute_script("scrollTo(0, 0)")
    chromium.save_screenshot(str(picture))
    print(picture)


if __name__ == "__main__":
    main()
