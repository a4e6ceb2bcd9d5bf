"""Run one job of a run, whatever launched it: its training, its wandb run and its result.json."""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lvd.detect.training import (
    DetectorRecipe,
    Machine,
    Outcome,
    TrunkRecipe,
    starting_trunk,
    train_detector,
    train_trunk,
)
from lvd.errors import LvdError
from lvd.latents.integrity import file_sha256
from lvd.latents.reader import CaptureReader
from lvd.report.wandb import WandbTarget, lightning_logger, wandb_run
from lvd.sweep.grid import Cell
from lvd.sweep.results import Result, config_digest, read_result, state, write_result


@dataclass(frozen=True)
class Job:
    """What all jobs of a run share."""

    capture: Path
    run: Path
    seed: int
    machine: Machine
    wandb: WandbTarget
    settings: Mapping[str, Any]  # the whole configuration, as wandb shows it


def run_trunk(job: Job, recipe: TrunkRecipe, *, force: bool) -> Result:
    """Train the run's trunk, unless it is done under the same configuration."""
    digest = config_digest(_inputs(job.capture), asdict(recipe), asdict(job.machine), job.seed)

    def train(logger: Logger | None) -> Outcome:
        capture = CaptureReader(job.capture)
        return train_trunk(capture, job.run / "trunk", recipe, job.machine, seed=job.seed, logger=logger)

    return _run(job, None, job.seed, digest, train, force=force)


def run_cell(job: Job, cell: Cell, recipe: DetectorRecipe, *, force: bool) -> Result:
    """Train one detector, unless it is done under the same configuration."""
    seed = cell_seed(job.seed, cell)

    def train(logger: Logger | None) -> Outcome:
        return train_detector(
            CaptureReader(job.capture),
            job.run,
            job.run / cell.path,
            cell.category,
            cell.step,
            recipe,
            job.machine,
            seed=seed,
            logger=logger,
        )

    return _run(job, cell, seed, cell_digest(job, cell, recipe), train, force=force)


def is_done(job: Job, cell: Cell, recipe: DetectorRecipe) -> bool:
    """Whether a cell's job would be skipped."""
    directory = job.run / cell.path
    return _is_done(directory, cell, read_result(directory), cell_digest(job, cell, recipe))


def cell_digest(job: Job, cell: Cell, recipe: DetectorRecipe) -> str:
    """The digest of everything that the outcome of a cell's job depends on."""
    trunk = starting_trunk(job.run, recipe.init)
    return config_digest(
        _inputs(job.capture), trunk, asdict(recipe), asdict(job.machine), asdict(cell), job.seed
    )


def cell_seed(seed: int, cell: Cell) -> int:
    digest = hashlib.sha256(f"{seed} {cell.category} {cell.step}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _run(
    job: Job,
    cell: Cell | None,
    seed: int,
    digest: str,
    train: Callable[[Logger | None], Outcome],
    *,
    force: bool,
) -> Result:
    """Train and write result.json. A failure is a result too: it must not take other jobs with it."""
    directory = job.run / (cell.path if cell else "trunk")
    before = read_result(directory)
    if before is not None and not force and _is_done(directory, cell, before, digest):
        (directory / "result.json").touch()  # a sweep's progress counts it
        return before
    (directory / "result.json").unlink(missing_ok=True)

    started = time.monotonic()
    identity: dict[str, Any] = {
        "category": cell.category if cell else None,
        "step": cell.step if cell else None,
        "seed": seed,
        "config_digest": digest,
    }
    name = str(cell.path) if cell else "trunk"
    tags = [cell.category, f"step {cell.step}"] if cell else ["trunk"]
    try:
        with wandb_run(
            job.wandb,
            directory,
            group=job.run.name,
            name=f"{job.run.name}/{name}",
            job_type="detector" if cell else "trunk",
            tags=tags,
            config={**job.settings, **identity},
        ) as wandb:
            outcome = train(lightning_logger(wandb))
            if wandb is not None:
                wandb.summary.update({f"best/{key}": value for key, value in outcome.metrics.items()})
        result = Result(status="done", seconds=time.monotonic() - started, **asdict(outcome), **identity)
    except (Exception, SystemExit) as error:
        sentence = str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {error}"
        result = Result(status="failed", seconds=time.monotonic() - started, error=sentence, **identity)
    write_result(directory, result)
    return result


def _is_done(directory: Path, cell: Cell | None, result: Result | None, digest: str) -> bool:
    weights = directory / ("detector" if cell else "") / "model.safetensors"
    return state(result, digest) == "done" and weights.is_file()


def _inputs(capture: Path) -> list[str]:
    """Digests of the latents and of the labels."""
    return [file_sha256(capture / name) for name in ("manifest.json", "samples.csv")]
