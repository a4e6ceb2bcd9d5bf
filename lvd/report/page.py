"""A report or a sweep's page: sections of figures, tables and examples, as one self-contained file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from lvd.files import write_atomically
from lvd.report.html import render, source
from lvd.report.images import blurred, is_small

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
class Details:
    """What a click on a cell of heatmaps shows: rows of name and value, links, lines over epochs."""

    title: str
    rows: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]]  # text, address relative to the page
    curves: Sequence[go.Scatter]


@dataclass(frozen=True)
class Heatmaps:
    """Heatmaps of the same cells, one shown at a time. Cells are keyed by category and step."""

    title: str
    metrics: dict[str, go.Figure]
    cells: dict[tuple[str, int], Details]


@dataclass(frozen=True)
class Comparison:
    """The same measures of several things, side by side: each a value and, in small type, its interval."""

    columns: Sequence[tuple[str, str]]  # name, and a word below it; empty: none
    rows: Sequence[tuple[str, Sequence[tuple[str, str]]]]  # measure, and a value and an interval a column


Item: TypeAlias = go.Figure | Heatmaps | pd.DataFrame | ExampleRow | Comparison | Sequence[SummaryRow]


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
    path: Path, *, title: str, lead: str, sections: Sequence[Section], as_of: AsOf | None = None
) -> None:
    """Write the page in one move: a reader sees the old file or the whole new one.

    Raises:
        PIL.UnidentifiedImageError: bytes to be blurred are no image; nothing is written.
    """
    page = render(
        "report/web/page.html",
        styles=["report/web/page.css"],
        scripts=_scripts(sections, as_of),
        media="img-src data:",
        title=title,
        lead=lead,
        as_of=as_of,
        sections=[_section(number, section) for number, section in enumerate(sections, start=1)],
    )
    write_atomically(path, page)


def _scripts(sections: Sequence[Section], as_of: AsOf | None) -> list[str]:
    items = [item for section in sections for item in section.body]
    if not any(isinstance(item, go.Figure | Heatmaps) for item in items):
        return []
    scripts = [get_plotlyjs(), source("report/web/plots.js")]
    if any(isinstance(item, Heatmaps) for item in items):
        scripts.append(source("report/web/grid.js"))
        if as_of is not None and as_of.reload is not None:
            scripts.append(source("report/web/reload.js"))
    return scripts


def _section(number: int, section: Section) -> dict[str, Any]:
    """What the template shows of a section."""
    images = {item.images for item in section.body if isinstance(item, ExampleRow)}
    return {
        "title": section.title,
        "text": section.text,
        "has_blurred": "blurred" in images,
        "has_covered": "covered" in images,
        "body": [_item(item, f"{number}-{place}") for place, item in enumerate(section.body)],
    }


def _item(item: Item, place: str) -> dict[str, Any]:
    """The `kind` of an item, which names its template, and its values; `place` is its own within the page."""
    if isinstance(item, go.Figure):
        return {"kind": "plot", "title": item.layout.title.text or "", **_drawing(item)}
    if isinstance(item, Heatmaps):
        return {"kind": "heatmaps", "title": item.title, **_heatmaps(item)}
    if isinstance(item, pd.DataFrame):
        return {"kind": "table", **_table(item)}
    if isinstance(item, ExampleRow):
        return {
            "kind": "example",
            **vars(item),
            "frames": [_frame(frame, item.images) for frame in item.frames],
            "box": f"uncover-{place}",
        }
    if isinstance(item, Comparison):
        return {"kind": "comparison", **vars(item)}
    return {"kind": "summary", "rows": item}


def _drawing(figure: go.Figure) -> dict[str, Any]:
    """The page's caption stands above the drawing: plotly's own title does not wrap."""
    untitled = go.Figure(figure).update_layout(title=None, margin_t=30)
    return {"figure": untitled, "height": untitled.layout.height or 450}


def _heatmaps(item: Heatmaps) -> dict[str, Any]:
    drawings = {name: _drawing(figure) for name, figure in item.metrics.items()}
    cells = {
        "metrics": {name: drawing["figure"] for name, drawing in drawings.items()},
        "categories": list(dict.fromkeys(category for category, _ in item.cells)),
        "steps": sorted({step for _, step in item.cells}),
        "cells": {f"{category} {step}": vars(cell) for (category, step), cell in item.cells.items()},
    }
    return {**next(iter(drawings.values())), "cells": cells}


def _table(table: pd.DataFrame) -> dict[str, Any]:
    columns = [
        {"name": str(name), "is_number": pd.api.types.is_numeric_dtype(dtype)}
        for name, dtype in zip(table.columns, table.dtypes, strict=True)
    ]
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": columns, "rows": rows}


def _cell(value: object) -> str:
    if value is None or value is pd.NA or value != value:  # NaN and NaT differ from themselves
        return "–"
    return f"{value:.3f}" if isinstance(value, (float, np.floating)) else str(value)


def _frame(frame: Frame, images: str) -> dict[str, Any]:
    label, png, flagged = frame
    return {
        "label": label,
        "alt": label if images == "sharp" else f"{label}, {images}",
        "png": base64.b64encode(blurred(png) if images == "blurred" else png).decode(),
        "enlarged": images != "blurred" and is_small(png),
        "flagged": flagged,
    }
