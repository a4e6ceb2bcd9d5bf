"""The sweep's page: every job of the grid, rewritten while they finish."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lvd.report import figures
from lvd.report.page import AsOf, Cell, Grid, Section, SummaryRow, write_page

METRICS = {"AUROC": "auroc", "accuracy": "accuracy", "F1": "f1", "loss": "loss", "seconds": "seconds"}
_IN_UNIT = ("auroc", "accuracy", "f1")
RELOAD_SECONDS = 10.0
_LINES = {"auroc": figures.SAFE, "loss": figures.UNSAFE}


@dataclass(frozen=True)
class JobRow:
    """One job of the grid as the page shows it."""

    category: str
    step: int
    status: str  # done, failed or to do
    directory: str  # relative to the page
    metrics: Mapping[str, float]  # loss, auroc, accuracy, f1, seconds, ...; empty unless done
    curves: Mapping[str, Sequence[float]]  # epoch, loss, auroc
    wandb_url: str | None
    error: str | None


def write_dashboard(path: Path, *, title: str, jobs: Sequence[JobRow], running: bool) -> None:
    """Write the self-contained page of a grid, holes and failures included.

    While the sweep is `running` and not all its jobs are done, the page loads itself anew.
    """
    done = [job for job in jobs if job.status == "done"]
    failed = [job for job in jobs if job.status == "failed"]
    grid = Grid(
        "Every cell is a detector, measured on val",
        {
            **{name: _heatmap(jobs, key, name) for name, key in METRICS.items()},
            "status": _status(jobs),
        },
        {(job.category, job.step): _cell(job) for job in jobs},
    )
    sections = [Section("Detectors", "", [grid]), Section("Progress", "", [_progress(jobs, done, failed)])]
    if failed:
        table = pd.DataFrame([{"job": _name(job), "reason": job.error} for job in failed])
        sections.append(Section("Failed jobs", "The same command runs them again.", [table]))
    lead = f"{len(done)} of {len(jobs)} detectors are done, {len(failed)} failed."
    write_page(
        path, title=title, lead=lead, sections=sections, as_of=_as_of(running and len(done) < len(jobs))
    )


def _as_of(more_to_come: bool) -> AsOf:
    now = datetime.now().astimezone()
    if not more_to_come:
        return AsOf(now, ", when the sweep had ended.")
    return AsOf(now, ". The page loads itself anew while jobs run.", RELOAD_SECONDS)


def _progress(jobs: Sequence[JobRow], done: Sequence[JobRow], failed: Sequence[JobRow]) -> list[SummaryRow]:
    rows = [
        ("done", str(len(done)), ""),
        ("failed", str(len(failed)), ""),
        ("to do", str(len(jobs) - len(done) - len(failed)), ""),
    ]
    if done:
        seconds = sum(job.metrics["seconds"] for job in done)
        rows.append(("training", f"{seconds:.0f} s", f"{seconds / len(done):.2f} s a job"))
        for category in dict.fromkeys(job.category for job in jobs):
            aurocs = [job.metrics["auroc"] for job in done if job.category == category]
            aurocs = [value for value in aurocs if np.isfinite(value)]
            if aurocs:
                rows.append((f"mean AUROC, {category}", f"{np.mean(aurocs):.3f}", f"{len(aurocs)} detectors"))
    return rows


def _table(jobs: Sequence[JobRow], values: Sequence[float | str]) -> pd.DataFrame:
    """`[categories, steps]`, in the order of the jobs."""
    long = pd.DataFrame(
        {"category": [job.category for job in jobs], "step": [job.step for job in jobs], "value": values}
    )
    categories = list(dict.fromkeys(job.category for job in jobs))
    return long.pivot(index="category", columns="step", values="value").loc[categories]


def _holes(jobs: Sequence[JobRow]) -> pd.DataFrame:
    why = {"done": figures.NOT_MEASURED, "failed": figures.FAILED}
    table = _table(jobs, [why.get(job.status, figures.TO_DO) for job in jobs])
    return table.fillna(figures.NO_DETECTOR)  # no job at all


def _heatmap(jobs: Sequence[JobRow], key: str, name: str) -> go.Figure:
    values = _table(jobs, [job.metrics.get(key, np.nan) for job in jobs])
    known = values.to_numpy()[np.isfinite(values.to_numpy())]
    if key in _IN_UNIT:
        colour_range = (0.5, 1.0)
    else:
        colour_range = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return figures.cell_heatmap(values, title=name, colour_range=colour_range, holes=_holes(jobs))


def _status(jobs: Sequence[JobRow]) -> go.Figure:
    values = _table(jobs, [1.0 if job.status == "done" else np.nan for job in jobs])
    figure = figures.cell_heatmap(values, title="status", colour_range=(0.0, 1.5), holes=_holes(jobs))
    return figure.update_traces(
        showscale=False, hovertemplate="%{y}, step %{x}: done<extra></extra>", selector=0
    )


def _cell(job: JobRow) -> Cell:
    rows = [("status", job.status)]
    rows += [
        (name, f"{value:.4g}" if np.isfinite(value) else "not measured")
        for name, value in sorted(job.metrics.items())
    ]
    if job.error:
        rows.append(("error", job.error))
    links = []
    if job.status != "to do":
        links = [
            ("result.json", f"{job.directory}/result.json"),
            ("configuration", f"{job.directory}/.hydra/config.yaml"),
            ("folder", f"{job.directory}/"),
        ]
    if job.wandb_url:
        links.append(("wandb", job.wandb_url))
    curves = [
        go.Scatter(
            x=list(job.curves["epoch"]),
            y=list(job.curves[name]),
            name=f"val {name}",
            mode="lines+markers",
            line={"color": f"rgb({colour})"},
        )
        for name, colour in _LINES.items()
        if job.curves.get(name)
    ]
    return Cell(_name(job), rows, links, curves)


def _name(job: JobRow) -> str:
    return f"{job.category}, step {job.step}"
