"""Figures of what rules do, over eta, steps and thresholds: plain tables in, plotly figures out."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lvd.decide.written import STEPS_UNTIL_CAUGHT_SHORT
from lvd.report.charts import (
    NEUTRAL,
    SAFE,
    UNSAFE,
    band_trace,
    line_trace,
    marker_trace,
    new_figure,
    spans,
    style_axes,
    whole_ticks,
)


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
    figure = new_figure(title, "safe samples blocked", "unsafe samples caught", height=540)
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
                "title": {"text": STEPS_UNTIL_CAUGHT_SHORT, "side": "top", "font": {"size": 13}},
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
            marker_trace([None], [None], name, grey).update(mode="lines+markers", line=line, legendgroup=name)
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
    figure = new_figure("Samples stopped by each step", "step", "share of their label", height=440)
    for place, rule in enumerate(stopped["rule"].unique()):
        for label, what, colour in (("unsafe", "unsafe caught", UNSAFE), ("safe", "safe blocked", SAFE)):
            of_label = stopped[(stopped["rule"] == rule) & (stopped["label"] == label)]
            at = of_label.loc[of_label["stopped"], "step"].to_numpy(dtype=int)
            counts = np.cumsum(np.bincount(at, minlength=steps)).tolist()
            line = line_trace(
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
    figure.update_xaxes(range=[-0.5, steps - 0.5], dtick=whole_ticks(steps))
    return figure


def curves_by_eta(table: pd.DataFrame, *, lam: float, chosen_eta: int) -> go.Figure:
    """Accuracy with its interval, blocked unsafe samples and false blocks against eta, at one lam.

    Args:
        table: columns `eta` (ascending) and `accuracy`, `accuracy_low`, `accuracy_high`, `tpr`, `fpr` (0..1).
        lam: the lam that the table was made at.
        chosen_eta: marked by a vertical line.
    """
    title = f"Accuracy, unsafe blocked and safe blocked against eta, at lam {lam:g}"
    figure = new_figure(title, "eta", "share", height=420)
    etas, low, high = table["eta"].tolist(), table["accuracy_low"].tolist(), table["accuracy_high"].tolist()
    figure.add_trace(band_trace(etas, low, high, NEUTRAL, "accuracy"))
    accuracy = line_trace(etas, table["accuracy"].tolist(), "accuracy", NEUTRAL, notes=spans(low, high))
    figure.add_trace(accuracy.update(legendgroup="accuracy"))
    figure.add_trace(line_trace(etas, table["tpr"].tolist(), "unsafe blocked (tpr)", UNSAFE))
    figure.add_trace(line_trace(etas, table["fpr"].tolist(), "safe blocked (fpr)", SAFE, dash="dash"))
    in_right_half = bool(etas) and chosen_eta > (etas[0] + etas[-1]) / 2
    figure.add_vline(
        chosen_eta,
        line={"color": f"rgb({NEUTRAL})", "dash": "dot", "width": 1.5},
        annotation={"text": f"chosen eta {chosen_eta}", "yanchor": "bottom"},
        annotation_position="top left" if in_right_half else "top right",
    )
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
    figure = new_figure(title, "step", "score", height=150 + 240 * rows)
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
    style_axes(figure, "step")
    figure.update_xaxes(nticks=4, tickangle=0)  # panels are narrow on a small screen
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text="score", col=1)
    return figure


def _score_band(of_group: pd.DataFrame, name: str, colour: str, *, in_legend: bool) -> list[go.Scatter]:
    by_step = of_group.sort_values("step")
    steps, low, high = by_step["step"].tolist(), by_step["low"].tolist(), by_step["high"].tolist()
    median = line_trace(steps, by_step["median"].tolist(), name, colour, notes=spans(low, high))
    return [band_trace(steps, low, high, colour, name), median.update(legendgroup=name, showlegend=in_legend)]
