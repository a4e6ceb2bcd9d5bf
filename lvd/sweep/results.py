"""result.json: what became of a job. It is the truth; wandb mirrors it."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lvd.errors import LvdError
from lvd.files import has_fields, json_sha256, read_json, write_json
from lvd.sweep.grid import Cell


@dataclass(frozen=True)
class Result:
    """One finished job. A trunk's job has neither category nor step."""

    status: Literal["done", "failed"]
    category: str | None
    step: int | None
    seed: int
    config_digest: str
    settings: dict[str, Any]  # what a person chose and the outcome depends on, by its override's name
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)  # of the last validation
    curves: dict[str, list[float]] = field(default_factory=dict)  # of all: epoch, loss, auroc
    sizes: dict[str, int] = field(default_factory=dict)
    started_from: str | None = None  # trunk, scratch or pretrained
    wandb_url: str | None = None  # None: logged offline, or not at all
    error: str | None = None
    files: dict[str, str] = field(
        default_factory=dict
    )  # SHA-256 of what it wrote; of before they were kept: {}
    data: str | None = None  # trained_on_<data>.json in the run says what it learned from; None: as above


def write_result(directory: Path, result: Result) -> None:
    write_json(directory / "result.json", asdict(result))


def read_result(directory: Path) -> Result | None:
    """The result of a job, or None when it has not finished or its file is damaged: it runs again."""
    try:
        raw = read_json(directory / "result.json", missing="")
        return Result(**raw) if has_fields(raw, Result) else None
    except LvdError:
        return None


def config_digest(*parts: Any) -> str:
    """A digest of everything that a job's outcome depends on."""
    return json_sha256(parts)[:16]


def learned_captures(run: Path) -> list[str]:
    """The names of the captures that a run's trunk and detectors learned from."""
    jobs = [run / "trunk", *(path.parent for path in sorted(run.glob("*/step_*/result.json")))]
    results = [read_result(job) for job in jobs]
    return sorted({str(it.settings["capture"]) for it in results if it and "capture" in it.settings})


def read_results(run: Path, cells: Iterable[Cell]) -> dict[Cell, Result | None]:
    return {cell: read_result(run / cell.path) for cell in cells}
