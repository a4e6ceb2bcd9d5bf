"""A self-contained HTML page: opened from disk, it loads nothing, in light, dark and print.

Prompts and names are hostile input. Every text is escaped, and a content policy lets only this module's
scripts run and loads nothing. An image is blurred before it is embedded: its sharp pixels are not in the
file.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
PALETTE = Path(__file__).with_name("palette.css").read_text(encoding="utf-8")
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;  // paper is white, whatever the screen prefers
const theme = () => {
  const [ink, panel, line] =
    dark.matches && !printing ? ["#e4e9ee", "#1c2229", "#313a44"] : ["#1d232b", "#ffffff", "#dde2e8"];
  return {"font.color": ink, "hoverlabel.font.color": ink, "hoverlabel.bgcolor": panel,
    "hoverlabel.bordercolor": line};
};
const coarse = matchMedia("(pointer: coarse)");  // a finger scrolls the page, and zooms no drawing
const draw = (plot, {data, layout}) =>
  Plotly.react(plot, data, coarse.matches ? {...layout, dragmode: false} : layout,
               {responsive: true, displayModeBar: false})
    .then(() => Plotly.relayout(plot, theme()));
const repaint = change => document.querySelectorAll(".js-plotly-plot").forEach(
  plot => Plotly.relayout(plot, {...theme(), ...change}));
for (const figure of document.querySelectorAll(".plot")) {
  draw(figure.querySelector(".drawing"), JSON.parse(figure.querySelector("script").textContent));
}
dark.addEventListener("change", () => repaint({}));
// Drawings have a fixed width: on paper they must fit the narrowest common sheet.
addEventListener("beforeprint", () => { printing = true; repaint({width: 660}); });
addEventListener("afterprint", () => { printing = false; repaint({width: null, autosize: true}); });
"""
GRID_SCRIPT = """
const element = (tag, text, attributes = {}) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
};
const show = (panel, cell) => {
  const table = element("table", "");
  for (const [name, value] of cell.rows) {
    const row = table.insertRow();
    row.append(element("th", name, {scope: "row"}), element("td", value));
  }
  const links = element("p", "");
  for (const [text, href] of cell.links) links.append(element("a", text, {href}), " ");
  const curves = element("div", "", {className: "curves"});
  const facts = element("div", "", {className: "facts"});
  facts.append(table, curves);
  panel.replaceChildren(element("h3", cell.title), facts, links);
  if (cell.curves.length) {
    curves.style.minHeight = "260px";  // its room, before it is drawn
    const axis = {gridcolor: "rgba(125,133,144,0.25)", zeroline: false, automargin: true};
    draw(curves, {data: cell.curves, layout: {
      height: 260, margin: {l: 50, r: 10, t: 10, b: 45}, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", xaxis: {...axis, title: {text: "epoch"}}, yaxis: axis,
      legend: {orientation: "h", y: 1.15},
    }});
  }
};
// One button a cell lies over the drawing, for the keyboard: the pointer goes through to the drawing itself.
const gridOf = figure => {
  const plot = figure.querySelector(".drawing"), board = figure.querySelector(".board");
  const panel = figure.querySelector(".detail"), select = figure.querySelector("select");
  const {metrics, categories, steps, cells} = JSON.parse(figure.querySelector(".cells").textContent);
  const hint = panel.firstElementChild, buttons = new Map();
  let opened = null;
  const mark = key => {
    for (const [other, button] of buttons) button.setAttribute("aria-selected", other === key);
    opened = key;
  };
  const reach = key => {  // the cell that Tab leads to
    for (const [other, button] of buttons) button.tabIndex = other === key ? 0 : -1;
  };
  const open = key => { reach(key); mark(key); show(panel, cells[key]); };
  const close = () => {
    const inside = figure.contains(document.activeElement) && document.activeElement !== select;
    if (inside) buttons.get(opened).focus();
    mark(null);
    panel.replaceChildren(hint);
  };
  const choose = metric => { select.value = metric; draw(plot, metrics[metric]); };
  board.setAttribute("role", "grid");
  board.setAttribute("aria-label", figure.querySelector("figcaption").firstChild.textContent.trim());
  for (const category of categories) {
    const row = element("div", "");
    row.setAttribute("role", "row");
    for (const step of steps) {
      const key = `${category} ${step}`, button = element("button", "", {type: "button", tabIndex: -1});
      if (cells[key]) {
        const facts = cells[key].rows.map(pair => pair.join(" ")).join(", ");
        button.setAttribute("role", "gridcell");
        button.setAttribute("aria-label", `${cells[key].title}: ${facts}`);
        button.addEventListener("click", () => open(key));
        button.addEventListener("focus", () => {
          reach(key);
          Plotly.Fx.hover(plot, {xval: step, yval: categories.indexOf(category)});
        });
        button.addEventListener("blur", () => Plotly.Fx.unhover(plot));
        buttons.set(key, button);
      } else {
        button.disabled = true;
      }
      row.append(button);
    }
    board.append(row);
  }
  reach(buttons.keys().next().value);
  board.addEventListener("keydown", event => {
    const rows = [...board.children].map(row => [...row.children]);
    const y = rows.findIndex(row => row.includes(event.target)), x = rows[y].indexOf(event.target);
    const last = steps.length - 1, bottom = categories.length - 1;
    const [toY, toX] = {
      ArrowLeft: [y, x - 1], ArrowRight: [y, x + 1], ArrowUp: [y - 1, x], ArrowDown: [y + 1, x],
      Home: [event.ctrlKey ? 0 : y, 0], End: [event.ctrlKey ? bottom : y, last],
    }[event.key] ?? [-1, -1];
    const target = rows[toY]?.[toX];
    if (!target || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (!target.disabled) target.focus();
  });
  figure.addEventListener("keydown", event => {
    if (event.key === "Escape" && opened !== null && event.target !== select) close();
  });
  select.addEventListener("change", () => choose(select.value));
  plot.on("plotly_click", event => {
    const key = `${event.points[0].y} ${event.points[0].x}`;
    if (cells[key]) open(key);
  });
  const place = () => {
    const {xaxis, yaxis} = plot._fullLayout;
    Object.assign(board.style, {left: `${xaxis._offset}px`, top: `${yaxis._offset}px`,
      width: `${xaxis._length}px`, height: `${yaxis._length}px`});
  };
  plot.on("plotly_afterplot", place);
  place();
  return {
    state: () => ({metric: select.value, opened, focused: [...buttons].findIndex(
      ([, button]) => button === document.activeElement)}),
    restore: ({metric, opened, focused}) => {
      if (metrics[metric]) choose(metric);
      if (cells[opened]) open(opened);
      if (focused >= 0) [...buttons.values()][focused]?.focus({preventScroll: true});
    },
  };
};
const grids = [...document.querySelectorAll(".grid")].map(gridOf);
const memory = `lvd ${location.pathname}`;
try {  // where a reader was when the version before this one made way for it
  const {top, states} = JSON.parse(sessionStorage.getItem(memory)) ?? {};
  sessionStorage.removeItem(memory);
  if (states) {
    history.scrollRestoration = "manual";
    states.forEach((state, number) => grids[number]?.restore(state));
    scrollTo(0, top);
  }
} catch {}  // a browser that keeps nothing
"""
RELOAD_SCRIPT = """
// The page is written anew while jobs run: when nobody is at work on this version, look for the next one.
const made = document.querySelector("[data-reload]");
const minutes = Math.floor((Date.now() - Date.parse(made.querySelector("time").dateTime)) / 60000);
if (minutes >= 5) made.append(` Not written anew for ${minutes} minutes: the sweep may have been stopped.`);
let timer;
const later = () => {
  clearTimeout(timer);
  timer = setTimeout(reload, 1000 * Number(made.dataset.reload));
};
const reload = () => {
  if (document.hidden || !getSelection().isCollapsed) return later();
  try {
    const states = grids.map(grid => grid.state());
    sessionStorage.setItem(memory, JSON.stringify({top: scrollY, states}));
  } catch {}
  location.reload();
};
for (const name of ["pointerdown", "keydown", "wheel", "visibilitychange"]) addEventListener(name, later);
later();
"""
SHARP_SIDE = 6  # pixels that a blurred image keeps along its longer side
SMALL_SIDE = 64  # images up to this many pixels wide are enlarged as squares

SummaryRow = tuple[str, str, str]
"""Name, value, note."""
Frame = tuple[str, bytes, bool]
"""Label under the image (a line break is kept), PNG bytes, flagged."""


@dataclass(frozen=True)
class ExampleRow:
    """One sample as a strip of steps. The tone colours the decision; wrong is for mistakes of either kind.

    `images`: "blurred" ones have no sharp pixels in the file; "covered" ones have, and are shown when a
    reader asks for them by a click or a key; "sharp" ones are seen at once.
    """

    sample_id: str
    caption: str
    decision: str
    tone: Literal["unsafe", "safe", "wrong"]
    frames: Sequence[Frame]
    images: Literal["blurred", "covered", "sharp"] = "blurred"


@dataclass(frozen=True)
class Cell:
    """What a click on a cell of a grid shows: rows of name and value, links, lines over epochs."""

    title: str
    rows: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]]  # text, address relative to the page
    curves: Sequence[go.Scatter]


@dataclass(frozen=True)
class Grid:
    """Heatmaps of the same cells, one shown at a time. Cells are keyed by category and step."""

    title: str
    metrics: dict[str, go.Figure]
    cells: dict[tuple[str, int], Cell]


@dataclass(frozen=True)
class Comparison:
    """The same measures of several things, side by side: each a value and, in small type, its interval."""

    columns: Sequence[tuple[str, str]]  # name, and a word below it; empty: none
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]  # measure, and a value and an interval a column


Item: TypeAlias = go.Figure | Grid | pd.DataFrame | ExampleRow | Comparison | Sequence[SummaryRow]


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph and what stands under it, in order.

    A list is a summary table. A DataFrame shows its columns, not its index; floats with three decimals.
    """

    title: str
    text: str
    body: Sequence[Item]


@dataclass(frozen=True)
class AsOf:
    """When the page was written. `reload` seconds after it was opened it loads itself anew; None: never.

    A reader who is at work on the page is not disturbed, and finds the same place and job again.
    """

    time: datetime  # with its time zone
    text: str  # follows the time
    reload: float | None = None


def write_page(
    path: Path, *, title: str, lead: str, sections: list[Section], as_of: AsOf | None = None
) -> None:
    """Write the page in one move: a reader sees the old file or the whole new one.

    Raises:
        PIL.UnidentifiedImageError: bytes to be blurred are no image; nothing is written.
    """
    page = _page(title, lead, sections, as_of).encode("utf-8", "replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(page)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _page(title: str, lead: str, sections: list[Section], as_of: AsOf | None) -> str:
    items = [item for section in sections for item in section.body]
    scripts = [get_plotlyjs(), SCRIPT] if any(isinstance(item, go.Figure | Grid) for item in items) else []
    if any(isinstance(item, Grid) for item in items):
        scripts.append(GRID_SCRIPT)
        if as_of is not None and as_of.reload is not None:
            scripts.append(RELOAD_SCRIPT)
    return TEMPLATE.substitute(
        palette=PALETTE,
        title=escape(title),
        lead=escape(lead),
        as_of=_as_of(as_of) if as_of is not None else "",
        policy=escape(_policy(scripts)),
        nav=_nav(sections) if len(sections) > 3 else "",
        sections="\n".join(_section(number, section) for number, section in enumerate(sections, start=1)),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _policy(scripts: list[str]) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script_sources(scripts)}"
    )


def script_sources(scripts: Sequence[str]) -> str:
    """What a content policy names so that these inline scripts run, and no other."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    return " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"


def _as_of(as_of: AsOf) -> str:
    reload = f' data-reload="{as_of.reload:g}"' if as_of.reload is not None else ""
    return (
        f'<p class="note"{reload}>As of <time datetime="{as_of.time.isoformat(timespec="seconds")}">'
        f"{as_of.time:%Y-%m-%d %H:%M:%S %Z}</time>{escape(as_of.text)}</p>"
    )


def _nav(sections: list[Section]) -> str:
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>'
        for number, section in enumerate(sections, start=1)
    )
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def _section(number: int, section: Section) -> str:
    parts = [f'<section id="section-{number}">', f"<h2>{escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{escape(section.text)}</p>")
    images = {item.images for item in section.body if isinstance(item, ExampleRow)}
    if "blurred" in images:
        parts.append(
            '<p class="note">This file does not hold the sharp images of a blurred example. '
            "To see them, render the page again with <code>show_unsafe=true</code>.</p>"
        )
    if "covered" in images:
        parts.append(
            '<p class="note">A click on a covered example, or the space bar, uncovers it. '
            "This file holds the sharp images.</p>"
        )
    body = "".join(_item(item, f"{number}-{place}") for place, item in enumerate(section.body))
    return "\n".join([*parts, body, "</section>"])


def _item(item: Item, place: str) -> str:
    """`place` is its own within the page."""
    if isinstance(item, go.Figure):
        return _plot(item)
    if isinstance(item, Grid):
        return _grid(item)
    if isinstance(item, pd.DataFrame):
        return _table(item)
    if isinstance(item, ExampleRow):
        return _example(item, place)
    if isinstance(item, Comparison):
        return _comparison(item)
    return _summary(item)


def _untitled(figure: go.Figure) -> go.Figure:
    """The page's caption stands above the drawing instead: plotly's own title does not wrap."""
    return go.Figure(figure).update_layout(title=None, margin_t=30)


def _plot(figure: go.Figure) -> str:
    title = figure.layout.title.text or ""
    drawing = _untitled(figure)
    data = drawing.to_json()  # plotly writes < and > in it as \\u003c and \\u003e
    return (
        f'<figure class="plot"><figcaption>{escape(title)}</figcaption>'
        f'<div class="drawing" style="height:{drawing.layout.height or 450}px"></div>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _grid(grid: Grid) -> str:
    drawings = {name: _untitled(figure) for name, figure in grid.metrics.items()}
    first = next(iter(drawings.values()))
    options = "".join(f"<option>{escape(name)}</option>" for name in drawings)
    data = {
        "metrics": {name: drawing.to_plotly_json() for name, drawing in drawings.items()},
        "categories": list(dict.fromkeys(category for category, _ in grid.cells)),
        "steps": sorted({step for _, step in grid.cells}),
        "cells": {
            f"{category} {step}": {**vars(cell), "curves": [curve.to_plotly_json() for curve in cell.curves]}
            for (category, step), cell in grid.cells.items()
        },
    }
    cells = json.dumps(data, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
    return (
        f'<figure class="plot grid"><figcaption>{escape(grid.title)} '
        f"<label>Shown: <select>{options}</select></label></figcaption>"
        f'<div class="over"><div class="drawing" style="height:{first.layout.height or 450}px"></div>'
        '<div class="board"></div></div>'
        f'<script type="application/json">{first.to_json()}</script>'
        f'<script type="application/json" class="cells">{cells}</script>'
        '<section class="detail" aria-live="polite"><p class="note">Click a cell for its job. Or reach the '
        "cells with Tab, and go from one to the next with the arrow keys: Enter opens a job, Escape closes "
        "it.</p></section>"
        "</figure>"
    )


def _summary(rows: Sequence[SummaryRow]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="number">{escape(value)}</td><td>{escape(note)}</td></tr>'
        for name, value, note in rows
    )
    return f'<div class="scroll"><table class="summary"><tbody>{lines}</tbody></table></div>'


def _comparison(comparison: Comparison) -> str:
    head = "".join(
        f'<th scope="col" class="number">{escape(name)}<small>{escape(word)}</small></th>'
        for name, word in comparison.columns
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(measure)}</th>'
        + "".join(
            f'<td class="number">{escape(value)}<small>{escape(interval)}</small></td>'
            for value, interval in values
        )
        + "</tr>"
        for measure, values in comparison.rows
    )
    return (
        '<div class="scroll"><table class="comparison"><thead><tr><th scope="col">Measure</th>'
        f"{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _table(table: pd.DataFrame) -> str:
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    head = "".join(
        f'<th scope="col"{_number(right)}>{escape(str(name))}</th>'
        for name, right in zip(table.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_number(right)}>{_cell(value)}</td>" for value, right in zip(row, numeric, strict=True)
        )
        for row in table.itertuples(index=False, name=None)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _number(right: bool) -> str:
    return ' class="number"' if right else ""


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:  # NaN and NaT differ from themselves
        return "–"
    return escape(f"{value:.3f}" if isinstance(value, (float, np.floating)) else str(value))


def _example(row: ExampleRow, place: str) -> str:
    frames = "".join(_frame(frame, row.images, f"uncover-{place}") for frame in row.frames)
    head = (
        f'<p class="caption">{escape(row.caption)}</p><p class="sample">sample {escape(row.sample_id)}</p>'
        f'<p class="decision">{escape(row.decision)}</p>'
    )
    if row.images == "covered":  # without a script: a box that uncovers what follows it, and labels for it
        head += (
            f'<input type="checkbox" class="uncover" id="uncover-{place}" autocomplete="off">'
            f'<label for="uncover-{place}">Show the images of {escape(row.sample_id)}</label>'
        )
    elif row.images == "blurred":
        head += '<p class="note">Blurred.</p>'
    return f'<article class="example {row.tone}">{head}<ol class="strip">{frames}</ol></article>'


def _frame(frame: Frame, images: str, box: str) -> str:
    label, png, flagged = frame
    data = base64.b64encode(_blur(png) if images == "blurred" else png).decode()
    look = ' class="pixels"' if images != "blurred" and _is_small(png) else ""
    said = escape(label if images == "sharp" else f"{label}, {images}")
    image = f'<img{look} src="data:image/png;base64,{data}" alt="{said}">'
    if images == "covered":
        image = f'<label class="cover" for="{box}">{image}</label>'
    mark = '<span class="flag">flagged</span>' if flagged else ""
    return f"<li{' class=flagged' if flagged else ''}>{image}<span>{escape(label)}</span>{mark}</li>"


def _is_small(png: bytes) -> bool:
    with Image.open(io.BytesIO(png)) as image:
        return bool(image.width <= SMALL_SIDE)


def _blur(png: bytes) -> bytes:
    """The image at its own size, from a few pixels only, and without its metadata."""
    with Image.open(io.BytesIO(png)) as image:
        sharp = image.convert("RGB")
    scale = SHARP_SIDE / max(sharp.size)
    coarse = sharp.resize(
        (max(1, round(sharp.width * scale)), max(1, round(sharp.height * scale))), Image.Resampling.BOX
    )
    out = io.BytesIO()
    coarse.resize(sharp.size, Image.Resampling.BICUBIC).save(out, format="PNG")
    return out.getvalue()
