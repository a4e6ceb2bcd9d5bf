"""What all figures have in common: their colours, axes, lines and bands.

Unsafe is orange and safe is blue throughout. Backgrounds are transparent and lines are a neutral grey, so
that a figure reads on light and on dark; the page sets the colour of the text.
"""

import re
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from lvd.decide.written import interval_text
from lvd.report.html import source


def _chart_colour(name: str) -> str:
    """A colour of the palette as `red,green,blue`; each reads on white and on black."""
    found = re.search(rf"--chart-{name}: ([\d,]+);", source("report/web/palette.css"))
    assert found is not None
    return found[1]


UNSAFE, SAFE, NEUTRAL = map(_chart_colour, ("unsafe", "safe", "neutral"))
CLEAR = "rgba(0,0,0,0)"
GRID = f"rgba({NEUTRAL},0.25)"


_AXIS_TITLE = {"standoff": 10, "font": {"size": 13}}
_AXIS = {"automargin": True, "zeroline": False, "gridcolor": GRID, "ticks": "", "title": _AXIS_TITLE}
_Y_AXIS = {**_AXIS, "range": [-0.02, 1.02], "ticklabelstandoff": 6}
_LEGEND = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "bgcolor": CLEAR}


def new_figure(title: str, x_title: str, y_title: str, *, height: int) -> go.Figure:
    """An empty figure, its layout given at once: plotly's updates cost more than all else of a report."""
    return go.Figure(
        layout={
            "template": "none",
            "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
            "height": height,
            "margin": {"l": 8, "r": 16, "t": 56, "b": 80},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
            "legend": _LEGEND,
            "hovermode": "x unified",
            "xaxis": _x_axis(x_title),
            "yaxis": {**_Y_AXIS, "title": {**_AXIS_TITLE, "text": y_title}},
        }
    )


def style_axes(figure: go.Figure, x_title: str) -> None:
    """Give all axes of a figure with several plots the looks of `new_figure`'s."""
    figure.update_xaxes(**_x_axis(x_title))
    figure.update_yaxes(**_Y_AXIS)


def _x_axis(title: str) -> dict[str, object]:
    return {
        **_AXIS,
        "title": {**_AXIS_TITLE, "text": title},
        "unifiedhovertitle": {"text": f"{title} %{{x}}"},
    }


def whole_ticks(count: int) -> int | None:
    """The distance of an axis' ticks where plotly would set some between two of a few steps."""
    return 1 if count <= 10 else None


def line_trace(
    x: list[int], y: list[float], name: str, colour: str, *, notes: Sequence[str] = (), dash: str = "solid"
) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=y,
        customdata=notes or None,
        name=name,
        mode="lines",
        line={"color": f"rgb({colour})", "dash": dash, "width": 2.5},
        hovertemplate="%{y:.3f} (%{customdata})" if notes else "%{y:.3f}",
    )


def band_trace(x: list[int], low: list[float], high: list[float], colour: str, group: str) -> go.Scatter:
    """Low to high as one closed outline, shown and hidden with the line of its legend group."""
    return go.Scatter(
        x=x + x[::-1],
        y=high + low[::-1],
        fill="toself",
        fillcolor=f"rgba({colour},0.15)",
        mode="none",
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
    )


def marker_trace(
    x: Sequence[int | None], y: Sequence[str | float | None], name: str, marker: dict[str, object]
) -> go.Scatter:
    return go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, showlegend=True, hoverinfo="skip")


def spans(low: list[float], high: list[float]) -> list[str]:
    """The intervals as text; empty where there is none."""
    return [
        interval_text((bottom, top) if np.isfinite([bottom, top]).all() else None)
        for bottom, top in zip(low, high, strict=True)
    ]
