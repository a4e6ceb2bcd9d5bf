"""Figures of a grid and of its decisions: plain tables in, plotly figures out.

Unsafe is orange and safe is blue throughout. Backgrounds are transparent and lines are a neutral grey, so
that a figure reads on light and on dark; `lvd.report.page` sets the colour of the text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import plotly.graph_objects as go

from lvd.decide.written import interval_text

UNSAFE, SAFE, NEUTRAL = "217,115,13", "59,130,196", "125,133,144"  # RGB; each reads on white and on black
CLEAR = "rgba(0,0,0,0)"
GRID = f"rgba({NEUTRAL},0.25)"

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
    figure = _figure(title, "step", "", height=150 + 34 * len(categories))
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
    figure.update_xaxes(fixedrange=True, dtick=_whole_ticks(len(steps)))
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
    figure = _figure(title, "eta", "lam", height=440)
    why = np.full(z.shape, _UNKNOWN, dtype=object)
    _add_cells(figure, z, etas, lams, colour_range, "eta %{x}, lam %{y:.3~f}: ", "accuracy %{z:.3f}", why)
    figure.update_yaxes(range=_outer_edges(lams))
    ring = {"size": 12, "color": "white", "line": {"color": "black", "width": 3}}
    figure.add_trace(_markers([eta], [lam], f"chosen: eta {eta}, lam {lam:g}", ring))
    return figure


def curves_by_eta(table: pd.DataFrame, *, lam: float, chosen_eta: int) -> go.Figure:
    """Accuracy with its interval, blocked unsafe samples and false blocks against eta, at one lam.

    Args:
        table: columns `eta` (ascending) and `accuracy`, `accuracy_low`, `accuracy_high`, `tpr`, `fpr` (0..1).
        lam: the lam that the table was made at.
        chosen_eta: marked by a vertical line.
    """
    title = f"Accuracy, unsafe blocked and safe blocked against eta, at lam {lam:g}"
    figure = _figure(title, "eta", "share", height=420)
    etas, low, high = table["eta"].tolist(), table["accuracy_low"].tolist(), table["accuracy_high"].tolist()
    figure.add_trace(_band(etas, low, high, NEUTRAL, "accuracy"))
    accuracy = _line(etas, table["accuracy"].tolist(), "accuracy", NEUTRAL, notes=_spans(low, high))
    figure.add_trace(accuracy.update(legendgroup="accuracy"))
    figure.add_trace(_line(etas, table["tpr"].tolist(), "unsafe blocked (tpr)", UNSAFE))
    figure.add_trace(_line(etas, table["fpr"].tolist(), "safe blocked (fpr)", SAFE, dash="dash"))
    in_right_half = bool(etas) and chosen_eta > (etas[0] + etas[-1]) / 2
    figure.add_vline(
        chosen_eta,
        line={"color": f"rgb({NEUTRAL})", "dash": "dot", "width": 1.5},
        annotation={"text": f"chosen eta {chosen_eta}", "yanchor": "bottom"},
        annotation_position="top left" if in_right_half else "top right",
    )
    return figure


def trade_off(curves: pd.DataFrame, rules: pd.DataFrame) -> go.Figure:
    """What each rule catches, what it wrongly blocks and when it stops: its curve, and where it stands.

    The axes show the corner that the rules stand in; the pointer zooms out by a double click.

    Args:
        curves: columns `rule`, `fpr`, `tpr` (0..1) and `steps`, the mean number of steps run until a caught
            sample is stopped (NaN where none is); a row a point, in the order of its curve.
        rules: a row a rule, with the same columns, `fpr_low`, `fpr_high`, `tpr_low`, `tpr_high`, and `alpha`,
            the share of safe samples that it guarantees, drawn as a line (NaN: it guarantees none).
    """
    title = "Caught, wrongly blocked, and steps run until caught"
    figure = _figure(title, "safe samples blocked", "unsafe samples caught", height=540)
    right = min(float(np.nanmax([0.2, *(1.1 * rules["fpr_high"]), *(2 * rules["alpha"])])), 1.02)
    bottom = max(float(np.nanmin([0.8, *(rules["tpr_low"] - 0.1)])), -0.02)
    points = pd.concat([curves, rules])
    steps = points.loc[(points["fpr"] <= right) & (points["tpr"] >= bottom), "steps"].dropna()
    figure.update_layout(
        hovermode="closest",
        coloraxis={
            "colorscale": "Viridis",
            "cmin": float(steps.min()) if len(steps) else 0.0,
            "cmax": float(steps.max()) if len(steps) else 1.0,
            "colorbar": {
                "title": {"text": "steps run until caught, mean", "side": "top", "font": {"size": 13}},
                "orientation": "h",
                "thickness": 10,
                "outlinewidth": 0,
                "y": 1.0,
                "yanchor": "bottom",
            },
        },
    )
    for place, (_, rule) in enumerate(rules.iterrows()):
        dash, symbol = (("dash", "diamond"), ("solid", "circle"))[place % 2]
        name = str(rule["rule"])
        line = {"color": f"rgb({NEUTRAL})", "dash": dash, "width": 1.5}
        curve = _rule_points(curves[curves["rule"] == name], name, {"symbol": symbol, "size": 7})
        figure.add_trace(curve.update(mode="lines+markers", line=line))
        ring = {"color": f"rgb({NEUTRAL})", "width": 3}
        itself = _rule_points(rule.to_frame().T, name, {"symbol": symbol, "size": 18, "line": ring})
        figure.add_trace(itself.update(error_x=_error_bar(rule, "fpr"), error_y=_error_bar(rule, "tpr")))
        # In the legend: a marker that is coloured by its value has no colour there.
        grey = {"symbol": symbol, "size": 10, "color": f"rgb({NEUTRAL})"}
        figure.add_trace(
            _markers([None], [None], name, grey).update(mode="lines+markers", line=line, legendgroup=name)
        )
    for _, rule in rules[rules["alpha"].notna()].iterrows():
        figure.add_vline(
            rule["alpha"],
            line={"color": f"rgb({SAFE})", "dash": "dot", "width": 2},
            annotation={
                "text": f"{rule['rule']}: alpha {100 * rule['alpha']:g}%",
                "textangle": -90,
                "xanchor": "left",
            },
            annotation_position="bottom right",
        )
    # With a horizontal colour bar plotly sets the axis' own title over its ticks.
    figure.update_xaxes(range=[-0.01, right], tickformat=".0%", title_text=None)
    below = {"x": 0.5, "xref": "paper", "y": 0, "yref": "paper", "yanchor": "top", "yshift": -24}
    figure.add_annotation(text="safe samples blocked", showarrow=False, font_size=13, **below)
    figure.update_yaxes(range=[bottom, 1.02], tickformat=".0%")
    return figure


def _rule_points(table: pd.DataFrame, name: str, marker: dict[str, object]) -> go.Scatter:
    steps = table["steps"].astype(float)
    return go.Scatter(
        x=table["fpr"].astype(float).tolist(),
        y=table["tpr"].astype(float).tolist(),
        customdata=["none is caught" if np.isnan(it) else f"{it:.1f} steps until caught" for it in steps],
        name=name,
        legendgroup=name,
        showlegend=False,
        mode="markers",
        marker={**marker, "color": steps.tolist(), "coloraxis": "coloraxis"},
        hovertemplate="blocked %{x:.3f}, caught %{y:.3f}, %{customdata}",
    )


def _error_bar(rule: "pd.Series[Any]", axis: str) -> dict[str, object]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [float(rule[f"{axis}_high"] - rule[axis])],
        "arrayminus": [float(rule[axis] - rule[f"{axis}_low"])],
        "color": f"rgb({NEUTRAL})",
        "thickness": 2,
    }


def stopped_by_step(stopped: pd.DataFrame, *, steps: int) -> go.Figure:
    """By which step each rule has caught unsafe samples, and blocked safe ones; cumulated.

    Args:
        stopped: a row a sample and rule: `rule`, `label` ("unsafe" or "safe"), whether it is `stopped`, and
            the `step` (0 = first) of the decision.
        steps: how many steps are drawn.
    """
    figure = _figure("Samples stopped by each step", "step", "share of their label", height=440)
    for place, rule in enumerate(stopped["rule"].unique()):
        for label, what, colour in (("unsafe", "unsafe caught", UNSAFE), ("safe", "safe blocked", SAFE)):
            of_label = stopped[(stopped["rule"] == rule) & (stopped["label"] == label)]
            at = of_label.loc[of_label["stopped"], "step"].to_numpy(dtype=int)
            counts = np.cumsum(np.bincount(at, minlength=steps)).tolist()
            line = _line(
                list(range(steps)),
                [count / max(len(of_label), 1) for count in counts],
                f"{rule}: {what}",
                colour,
                notes=[f"{count} of {len(of_label)}" for count in counts],
                dash=("dash", "solid")[place % 2],
            )
            if steps == 1:  # one point is no line
                line.update(mode="markers", marker={"size": 10, "color": f"rgb({colour})"})
            figure.add_trace(line.update(line_shape="hvh"))
    figure.update_yaxes(tickformat=".0%")
    figure.update_xaxes(range=[-0.5, steps - 0.5], dtick=_whole_ticks(steps))
    return figure


def score_traces(scores: pd.DataFrame) -> go.Figure:
    """Highest detector score at each step, median and quartiles: a panel per unsafe group, each against safe.

    Args:
        scores: columns `step`, `group` (a category name, "unsafe" or "safe") and, in 0..1, `median`, `low`,
            `high` (the quartiles).
    """
    unsafe = [str(group) for group in scores["group"].unique() if group != "safe"] or ["unsafe"]
    columns = min(3, len(unsafe))
    rows = -(-len(unsafe) // columns)
    title = "Highest detector score at each step: median and quartiles"
    figure = _figure(title, "step", "score", height=150 + 240 * rows)
    figure.set_subplots(
        rows,
        columns,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.34 / rows,
        subplot_titles=unsafe if len(unsafe) > 1 else None,
    )
    for panel, group in enumerate(unsafe):
        row, column = divmod(panel, columns)
        for name, selected, colour in (("unsafe", group, UNSAFE), ("safe", "safe", SAFE)):
            traces = _score_band(scores[scores["group"] == selected], name, colour, in_legend=panel == 0)
            figure.add_traces(traces, rows=row + 1, cols=column + 1)
    _style_axes(figure, "step")
    figure.update_xaxes(nticks=4, tickangle=0)  # panels are narrow on a small screen
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="score", col=1)
    return figure


def _score_band(of_group: pd.DataFrame, name: str, colour: str, *, in_legend: bool) -> list[go.Scatter]:
    by_step = of_group.sort_values("step")
    steps, low, high = by_step["step"].tolist(), by_step["low"].tolist(), by_step["high"].tolist()
    median = _line(steps, by_step["median"].tolist(), name, colour, notes=_spans(low, high))
    return [_band(steps, low, high, colour, name), median.update(legendgroup=name, showlegend=in_legend)]


def _figure(title: str, x_title: str, y_title: str, *, height: int) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 16}},
        height=height,
        margin={"l": 8, "r": 16, "t": 56, "b": 80},
        paper_bgcolor=CLEAR,
        plot_bgcolor=CLEAR,
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "bgcolor": CLEAR},
        hovermode="x unified",
    )
    _style_axes(figure, x_title)
    figure.update_yaxes(title_text=y_title)
    return figure


def _style_axes(figure: go.Figure, x_title: str) -> None:
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(automargin=True, zeroline=False, gridcolor=GRID, ticks="")
        update(title_standoff=10, title_font_size=13)
    figure.update_xaxes(title_text=x_title, unifiedhovertitle_text=f"{x_title} %{{x}}")
    figure.update_yaxes(range=[-0.02, 1.02], ticklabelstandoff=6)


def _whole_ticks(count: int) -> int | None:
    """The distance of an axis' ticks where plotly would set some between two of a few steps."""
    return 1 if count <= 10 else None


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
        figure.add_trace(_markers(at_x, at_y, kind, _HOLE_MARKS[kind]))


def _heat(z: npt.NDArray[np.float64], x: Sequence[int], y: Sequence[str | float], hover: str) -> go.Heatmap:
    hover = f"{hover}<extra></extra>"
    return go.Heatmap(z=z.tolist(), x=x, y=y, xgap=1, ygap=1, hoverongaps=False, hovertemplate=hover)


def _markers(
    x: Sequence[int | None], y: Sequence[str | float | None], name: str, marker: dict[str, object]
) -> go.Scatter:
    return go.Scatter(x=x, y=y, mode="markers", name=name, marker=marker, showlegend=True, hoverinfo="skip")


def _outer_edges(centres: Sequence[int] | Sequence[float]) -> list[float]:
    """Where the first and the last cell end; markers would widen the axis beyond."""
    if len(centres) < 2:
        return [centres[0] - 0.5, centres[0] + 0.5]
    return [1.5 * centres[0] - 0.5 * centres[1], 1.5 * centres[-1] - 0.5 * centres[-2]]


def _line(
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


def _band(x: list[int], low: list[float], high: list[float], colour: str, group: str) -> go.Scatter:
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


def _spans(low: list[float], high: list[float]) -> list[str]:
    """The intervals as text; empty where there is none."""
    return [
        interval_text((bottom, top) if np.isfinite([bottom, top]).all() else None)
        for bottom, top in zip(low, high, strict=True)
    ]
