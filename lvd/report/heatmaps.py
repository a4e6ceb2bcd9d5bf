"""Heatmaps of a grid of detectors and of the vote's settings: plain tables in, plotly figures out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from lvd.report.charts import GRID, NEUTRAL, UNSAFE, marker_trace, new_figure, whole_ticks

# Why a cell has no value. A detector that cannot be measured, for want of samples, is not a missing one.
NO_DETECTOR, FAILED, TO_DO, NOT_MEASURED = "no detector", "failed", "to do", "no samples to measure it on"
_UNKNOWN = "not measured"  # of a decision surface
_HOLE_MARKS: dict[str, dict[str, object]] = {
    NO_DETECTOR: {"symbol": "x-thin", "size": 7, "line": {"color": f"rgb({NEUTRAL})", "width": 1.5}},
    FAILED: {"symbol": "x-thin", "size": 7, "line": {"color": f"rgb({UNSAFE})", "width": 2.5}},
    TO_DO: {"symbol": "circle", "size": 3, "color": f"rgb({NEUTRAL})"},
    NOT_MEASURED: {
        "symbol": "circle-open",
        "size": 7,
        "color": f"rgb({NEUTRAL})",
        "line": {"color": f"rgb({NEUTRAL})", "width": 1.5},
    },
    _UNKNOWN: {"symbol": "x-thin", "size": 7, "line": {"color": f"rgb({NEUTRAL})", "width": 1.5}},
}


def cell_heatmap(
    values: pd.DataFrame,
    *,
    title: str,
    colour_range: tuple[float, float],
    holes: pd.DataFrame | None = None,
    number_format: str = ".3f",
) -> go.Figure:
    """One value per detector, e.g. its AUROC.

    Args:
        values: `[categories, steps]`; the index holds category names (first on top), the columns steps. A
            value that is not finite is a hole, drawn as a grey cell with a mark.
        title: what the values are.
        colour_range: the values at the two ends of the colour scale; 0.5 and 1 for an AUROC.
        holes: like `values`: why a cell is a hole, one of `NO_DETECTOR`, `FAILED`, `TO_DO`, `NOT_MEASURED`,
            each with a mark and a legend of its own. None: each hole is a missing detector.
        number_format: d3 format of the value under the pointer.
    """
    z, categories = _finite(values), [str(name) for name in values.index]
    steps = [int(step) for step in values.columns]
    why = np.full(z.shape, NO_DETECTOR, dtype=object) if holes is None else holes.to_numpy(dtype=object)
    figure = new_figure(title, "step", "", height=150 + 34 * len(categories))
    _add_cells(
        figure,
        z,
        steps,
        categories,
        colour_range,
        "%{y}, step %{x}: ",
        f"%{{z:{number_format}}}",
        why,
    )
    figure.update_yaxes(type="category", range=[len(categories) - 0.5, -0.5], fixedrange=True)
    # No zoom: the page lays its own cells over these.
    figure.update_xaxes(fixedrange=True, dtick=whole_ticks(len(steps)))
    return figure


def decision_surface(accuracy: pd.DataFrame, *, eta: int, lam: float, title: str) -> go.Figure:
    """Accuracy of the decision rule at every (eta, lam), with the chosen pair marked.

    Args:
        accuracy: `[etas, lams]`, in 0..1; the index holds eta (1..steps), the columns lam, both ascending. A
            value that is not finite is drawn as a hole.
        eta: the chosen number of steps looked at.
        lam: the chosen share of them that must be flagged.
        title: which samples the accuracy was measured on.
    """
    z, lams = _finite(accuracy).T, [float(column) for column in accuracy.columns]
    etas = [int(row) for row in accuracy.index]
    known = z[np.isfinite(z)]
    colour_range = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    figure = new_figure(title, "eta", "lam", height=440)
    why = np.full(z.shape, _UNKNOWN, dtype=object)
    _add_cells(figure, z, etas, lams, colour_range, "eta %{x}, lam %{y:.3~f}: ", "accuracy %{z:.3f}", why)
    figure.update_yaxes(range=_outer_edges(lams))
    ring = {"size": 12, "color": "white", "line": {"color": "black", "width": 3}}
    figure.add_trace(marker_trace([eta], [lam], f"chosen: eta {eta}, lam {lam:g}", ring))
    return figure


def _finite(values: pd.DataFrame) -> npt.NDArray[np.float64]:
    z = values.to_numpy(dtype=float, na_value=np.nan)
    return np.where(np.isfinite(z), z, np.nan)


def _add_cells(
    figure: go.Figure,
    z: npt.NDArray[np.float64],
    x: Sequence[int],
    y: Sequence[str | float],
    colour_range: tuple[float, float],
    place: str,
    value: str,
    why: npt.NDArray[np.object_],
) -> None:
    """Add cells `z` `[y, x]`, grey and marked where z is NaN; the hover shows place and value, or `why`."""
    low, high = colour_range
    bar = {"thickness": 12, "outlinewidth": 0, "ticks": ""}
    cells = _heat(z, x, y, f"{place}{value}")
    cells.update(zmin=low, zmax=high, colorscale="Viridis", colorbar=bar)  # Cividis has a hole's grey
    figure.add_trace(cells)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(showgrid=False, range=_outer_edges(x))
    figure.update_yaxes(showgrid=False)
    is_hole = np.isnan(z)
    for kind in dict.fromkeys(why[is_hole].tolist()):
        of_kind = is_hole & (why == kind)
        grey = _heat(np.where(of_kind, 1.0, np.nan), x, y, f"{place}{kind}")
        figure.add_trace(grey.update(colorscale=[GRID, GRID], showscale=False))
        holes = np.argwhere(of_kind).tolist()
        at_x, at_y = [x[column] for _, column in holes], [y[row] for row, _ in holes]
        figure.add_trace(marker_trace(at_x, at_y, kind, _HOLE_MARKS[kind]))


def _heat(z: npt.NDArray[np.float64], x: Sequence[int], y: Sequence[str | float], hover: str) -> go.Heatmap:
    hover = f"{hover}<extra></extra>"
    return go.Heatmap(z=z.tolist(), x=x, y=y, xgap=1, ygap=1, hoverongaps=False, hovertemplate=hover)


def _outer_edges(centres: Sequence[int] | Sequence[float]) -> list[float]:
    """Where the first and the last cell end; markers would widen the axis beyond."""
    if len(centres) < 2:
        return [centres[0] - 0.5, centres[0] + 0.5]
    return [1.5 * centres[0] - 0.5 * centres[1], 1.5 * centres[-1] - 0.5 * centres[-2]]
