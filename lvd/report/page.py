"""A self-contained HTML page: opened from disk, it loads nothing, in light, dark and print.

Prompts and names are hostile input. Every text is escaped, and a content policy lets only this module's
two scripts run and loads nothing. An image is blurred before it is embedded: its sharp pixels are not in
the file.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Literal

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from PIL import Image
from plotly.offline import get_plotlyjs
from plotly.utils import PlotlyJSONEncoder

TEMPLATE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;  // paper is white, whatever the screen prefers
const theme = () => {
  const [ink, panel, line] =
    dark.matches && !printing ? ["#e4e9ee", "#1c2229", "#313a44"] : ["#1d232b", "#ffffff", "#dde2e8"];
  return {"font.color": ink, "hoverlabel.font.color": ink, "hoverlabel.bgcolor": panel,
    "hoverlabel.bordercolor": line};
};
const draw = (plot, {data, layout}) =>
  Plotly.react(plot, data, layout, {responsive: true, displayModeBar: false})
    .then(() => Plotly.relayout(plot, theme()));
const repaint = change => document.querySelectorAll(".js-plotly-plot").forEach(
  plot => Plotly.relayout(plot, {...theme(), ...change}));
for (const figure of document.querySelectorAll(".plot")) {
  const plot = figure.querySelector("div");
  draw(plot, JSON.parse(plot.nextElementSibling.textContent));
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
    const axis = {gridcolor: "rgba(125,133,144,0.25)", zeroline: false, automargin: true};
    draw(curves, {data: cell.curves, layout: {
      height: 260, margin: {l: 50, r: 10, t: 10, b: 45}, paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)", xaxis: {...axis, title: {text: "epoch"}}, yaxis: axis,
      legend: {orientation: "h", y: 1.15},
    }});
  }
};
for (const figure of document.querySelectorAll(".grid")) {
  const plot = figure.querySelector("div");
  const {metrics, cells} = JSON.parse(figure.querySelector(".cells").textContent);
  const panel = figure.querySelector(".detail");
  figure.querySelector("select").addEventListener("change", event => {
    draw(plot, metrics[event.target.value]);
  });
  plot.on("plotly_click", event => {
    const cell = cells[`${event.points[0].y} ${event.points[0].x}`];
    if (cell) show(panel, cell);
  });
}
"""
SHARP_SIDE = 6  # pixels that a blurred image keeps along its longer side
SMALL_SIDE = 64  # images up to this many pixels wide are enlarged as squares

SummaryRow = tuple[str, str, str]
"""Name, value, note."""
Frame = tuple[str, bytes, bool]
"""Label under the image (a line break is kept), PNG bytes, flagged."""


@dataclass(frozen=True)
class ExampleRow:
    """One sample as a strip of steps. The tone colours the decision; wrong is for mistakes of either kind."""

    caption: str
    decision: str
    tone: Literal["unsafe", "safe", "wrong"]
    frames: Sequence[Frame]
    blurred: bool = True


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
class Section:
    """A heading, a paragraph and what stands under it, in order.

    A list is a summary table. A DataFrame shows its columns, not its index; floats with three decimals.
    """

    title: str
    text: str
    body: Sequence[go.Figure | Grid | pd.DataFrame | ExampleRow | Sequence[SummaryRow]]


def write_page(path: Path, *, title: str, lead: str, sections: list[Section]) -> None:
    """Write the page in one move: a reader sees the old file or the whole new one.

    Raises:
        PIL.UnidentifiedImageError: bytes to be blurred are no image; nothing is written.
    """
    page = _page(title, lead, sections).encode("utf-8", "replace")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(page)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _page(title: str, lead: str, sections: list[Section]) -> str:
    items = [item for section in sections for item in section.body]
    scripts = [get_plotlyjs(), SCRIPT] if any(isinstance(item, go.Figure | Grid) for item in items) else []
    if any(isinstance(item, Grid) for item in items):
        scripts.append(GRID_SCRIPT)
    return TEMPLATE.substitute(
        title=escape(title),
        lead=escape(lead),
        policy=escape(_policy(scripts)),
        nav=_nav(sections) if len(sections) > 3 else "",
        sections="\n".join(_section(number, section) for number, section in enumerate(sections, start=1)),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"


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
    if any(isinstance(item, ExampleRow) and item.blurred for item in section.body):
        parts.append(
            '<p class="note">Images are blurred, and this file does not hold the sharp ones. '
            "To see them, render the page again with <code>show_unsafe=true</code>.</p>"
        )
    return "\n".join([*parts, *map(_item, section.body), "</section>"])


def _item(item: go.Figure | Grid | pd.DataFrame | ExampleRow | Sequence[SummaryRow]) -> str:
    if isinstance(item, go.Figure):
        return _plot(item)
    if isinstance(item, Grid):
        return _grid(item)
    if isinstance(item, pd.DataFrame):
        return _table(item)
    if isinstance(item, ExampleRow):
        return _example(item)
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
        f'<div style="height:{drawing.layout.height or 450}px"></div>'
        f'<script type="application/json">{data}</script></figure>'
    )


def _grid(grid: Grid) -> str:
    drawings = {name: _untitled(figure) for name, figure in grid.metrics.items()}
    first = next(iter(drawings.values()))
    options = "".join(f"<option>{escape(name)}</option>" for name in drawings)
    data = {
        "metrics": {name: drawing.to_plotly_json() for name, drawing in drawings.items()},
        "cells": {
            f"{category} {step}": {**vars(cell), "curves": [curve.to_plotly_json() for curve in cell.curves]}
            for (category, step), cell in grid.cells.items()
        },
    }
    cells = json.dumps(data, cls=PlotlyJSONEncoder).replace("<", "\\u003c")
    return (
        f'<figure class="plot grid"><figcaption>{escape(grid.title)} '
        f"<label>Shown: <select>{options}</select></label></figcaption>"
        f'<div style="height:{first.layout.height or 450}px"></div>'
        f'<script type="application/json">{first.to_json()}</script>'
        f'<script type="application/json" class="cells">{cells}</script>'
        '<section class="detail" aria-live="polite"><p class="note">Click a cell for its job.</p></section>'
        "</figure>"
    )


def _summary(rows: Sequence[SummaryRow]) -> str:
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="number">{escape(value)}</td><td>{escape(note)}</td></tr>'
        for name, value, note in rows
    )
    return f'<div class="scroll"><table class="summary"><tbody>{lines}</tbody></table></div>'


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


def _example(row: ExampleRow) -> str:
    frames = "".join(_frame(frame, blurred=row.blurred) for frame in row.frames)
    return (
        f'<article class="example {row.tone}"><p class="caption">{escape(row.caption)}</p>'
        f'<p class="decision">{escape(row.decision)}</p><ol class="strip">{frames}</ol></article>'
    )


def _frame(frame: Frame, *, blurred: bool) -> str:
    label, png, flagged = frame
    data = base64.b64encode(_blur(png) if blurred else png).decode()
    look = ' class="pixels"' if not blurred and _is_small(png) else ""
    mark = '<span class="flag">flagged</span>' if flagged else ""
    return (
        f'<li{" class=flagged" if flagged else ""}><img{look} src="data:image/png;base64,{data}" '
        f'alt="{escape(label)}{", blurred" if blurred else ""}"><span>{escape(label)}</span>{mark}</li>'
    )


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
