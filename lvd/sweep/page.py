"""`runs/<name>/index.html`: every job of the grid as a page, rewritten while they finish."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lvd.decide.written import rate_text
from lvd.report import charts, heatmaps
from lvd.report.page import AsOf, Details, Heatmaps, Section, SummaryRow, write_page
from lvd.sweep.grid import Cell
from lvd.sweep.results import Result

RELOAD_SECONDS = 10.0
_METRICS = {"AUROC": "auroc", "accuracy": "accuracy", "F1": "f1", "loss": "loss", "seconds": "seconds"}
_IN_UNIT = ("auroc", "accuracy", "f1")
_LINES = {"auroc": charts.SAFE, "loss": charts.UNSAFE}

Results = Mapping[Cell, Result | None]
"""None: the job is to do."""


def write_index(run: Path, results: Results, *, running: bool) -> Path:
    """Write the self-contained page of a grid, holes and failures included, and return its path.

    While the sweep is `running` and not all its jobs are done, the page loads itself anew.
    """
    done = {cell: result for cell, result in results.items() if result and result.status == "done"}
    failed = {cell: result for cell, result in results.items() if result and result.status == "failed"}
    detectors = Heatmaps(
        "Every cell is a detector, measured on val",
        {
            **{name: _heatmap(results, done, key, name) for name, key in _METRICS.items()},
            "status": _status(results, done),
        },
        {(cell.category, cell.step): _details(cell, result) for cell, result in results.items()},
    )
    to_do = len(results) - len(done) - len(failed)
    sections = [
        Section("Detectors", "", [detectors]),
        Section("Progress", "", [_progress(done, len(failed), to_do)]),
    ]
    if failed:
        table = pd.DataFrame(
            [{"job": _name(cell), "reason": result.error} for cell, result in failed.items()]
        )
        sections.append(Section("Failed jobs", "The same command runs them again.", [table]))
    path = run / "index.html"
    write_page(
        path,
        title=f"{run.name}: {len(results)} detectors",
        lead=f"{len(done)} of {len(results)} detectors are done, {len(failed)} failed.",
        sections=sections,
        as_of=_as_of(running and len(done) < len(results)),
    )
    return path


def _as_of(more_to_come: bool) -> AsOf:
    now = datetime.now().astimezone()
    if not more_to_come:
        return AsOf(now, ", when the sweep had ended.")
    return AsOf(now, ". The page loads itself anew while jobs run.", RELOAD_SECONDS)


def _progress(done: Mapping[Cell, Result], failed: int, to_do: int) -> list[SummaryRow]:
    rows = [("done", str(len(done)), ""), ("failed", str(failed), ""), ("to do", str(to_do), "")]
    if done:
        seconds = sum(result.seconds for result in done.values())
        rows.append(("training", f"{seconds:.0f} s", f"{seconds / len(done):.2f} s a job"))
    aurocs: dict[str, list[float]] = {}
    for cell, result in done.items():
        if np.isfinite(result.metrics["auroc"]):
            aurocs.setdefault(cell.category, []).append(result.metrics["auroc"])
    for category, values in aurocs.items():
        rows.append(
            (f"mean AUROC, {category}", rate_text(float(np.mean(values))), f"{len(values)} detectors")
        )
    return rows


def _table(values: Mapping[Cell, float | str]) -> pd.DataFrame:
    """`[categories, steps]`, in the order of the cells."""
    long = pd.DataFrame(
        [{"category": cell.category, "step": cell.step, "value": value} for cell, value in values.items()]
    )
    categories = list(dict.fromkeys(cell.category for cell in values))
    return long.pivot(index="category", columns="step", values="value").loc[categories]


def _holes(results: Results) -> pd.DataFrame:
    """Why a cell has no value."""
    why = {"done": heatmaps.NOT_MEASURED, "failed": heatmaps.FAILED}
    table = _table(
        {cell: why[result.status] if result else heatmaps.TO_DO for cell, result in results.items()}
    )
    return table.fillna(heatmaps.NO_DETECTOR)  # no job at all


def _heatmap(results: Results, done: Mapping[Cell, Result], key: str, name: str) -> go.Figure:
    values = _table(
        {cell: _metrics(done[cell]).get(key, np.nan) if cell in done else np.nan for cell in results}
    )
    known = values.to_numpy()[np.isfinite(values.to_numpy())]
    if key in _IN_UNIT:
        colour_range = (0.5, 1.0)
    else:
        colour_range = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return heatmaps.cell_heatmap(values, title=name, colour_range=colour_range, holes=_holes(results))


def _metrics(result: Result) -> dict[str, float]:
    return {**result.metrics, "seconds": result.seconds}


def _status(results: Results, done: Mapping[Cell, Result]) -> go.Figure:
    values = _table({cell: 1.0 if cell in done else np.nan for cell in results})
    figure = heatmaps.cell_heatmap(values, title="status", colour_range=(0.0, 1.5), holes=_holes(results))
    return figure.update_traces(
        showscale=False, hovertemplate="%{y}, step %{x}: done<extra></extra>", selector=0
    )


def _details(cell: Cell, result: Result | None) -> Details:
    if result is None:
        return Details(_name(cell), [("status", "to do")], [], [])
    rows = [("status", str(result.status))]
    if result.status == "done":
        rows += [
            (name, f"{value:.4g}" if np.isfinite(value) else "not measured")
            for name, value in sorted(_metrics(result).items())
        ]
    if result.error:
        rows.append(("error", result.error))
    directory = cell.path.as_posix()
    links = [
        ("result.json", f"{directory}/result.json"),
        ("configuration", f"{directory}/.hydra/config.yaml"),
        ("folder", f"{directory}/"),
    ]
    if result.wandb_url:
        links.append(("wandb", result.wandb_url))
    curves = [
        go.Scatter(
            x=list(result.curves["epoch"]),
            y=list(result.curves[name]),
            name=f"val {name}",
            mode="lines+markers",
            line={"color": f"rgb({colour})"},
        )
        for name, colour in _LINES.items()
        if result.curves.get(name)
    ]
    return Details(_name(cell), rows, links, curves)


def _name(cell: Cell) -> str:
    return f"{cell.category}, step {cell.step}"
