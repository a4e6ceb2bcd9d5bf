"""Run one job of a run, whatever launched it: its training, its log, its curves and its result.json."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lvd.config import TrainConfig
from lvd.detect.detector_training import train_detector
from lvd.detect.fit import Setup, TrainingResult
from lvd.detect.pretrained import Pretrained
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Machine, TrunkRecipe
from lvd.detect.trunk_training import train_trunk
from lvd.errors import LvdError
from lvd.files import file_sha256
from lvd.latents.reader import CaptureReader
from lvd.sweep.grid import Cell
from lvd.sweep.log import job_log
from lvd.sweep.results import Result, config_digest, read_result, write_result
from lvd.sweep.state import (
    WEIGHTS,
    cell_job_digest,
    check_trunk,
    data_digests,
    job_state,
    network_directory,
    trunk_job_digest,
)
from lvd.sweep.trained_on import write_trained_on
from lvd.tracking import LoggerConfig, tracker


@dataclass(frozen=True)
class Job:
    """What all jobs of a run share."""

    capture: Path
    run: Path
    seed: int
    encoder: EncoderSize
    machine: Machine
    logger: LoggerConfig
    settings: Mapping[str, Any]  # the whole configuration, as wandb shows it

    @classmethod
    def of(cls, config: TrainConfig) -> "Job":
        return cls(
            capture=config.capture_dir,
            run=config.run_dir,
            seed=config.seed,
            encoder=config.encoder,
            machine=config,
            logger=config.logger,
            settings=asdict(config),
        )


@dataclass(frozen=True)
class Identity:
    """What a result.json says of its job before the job has run."""

    cell: Cell | None  # None: the trunk
    seed: int
    settings: dict[str, Any]
    config_digest: str
    data: str  # stands for the capture's latents and labels
    blocked: str | None = None  # why it cannot run now: the trunk that it starts from is stale or damaged

    @property
    def path(self) -> Path:
        """The job's directory below the run's."""
        return self.cell.path if self.cell else Path("trunk")

    def fields(self) -> dict[str, Any]:
        category, step = (self.cell.category, self.cell.step) if self.cell else (None, None)
        return {
            "category": category,
            "step": step,
            "seed": self.seed,
            "settings": self.settings,
            "config_digest": self.config_digest,
            "data": self.data,
        }


def run_trunk(job: Job, recipe: TrunkRecipe, *, force: bool) -> Result:
    """Train the run's trunk, unless it is done under the same configuration."""
    identity = trunk_identity(job, recipe)
    directory = job.run / identity.path
    checkpoint = directory / f"unfinished_{identity.config_digest}.ckpt"  # of this very job
    if force:
        checkpoint.unlink(missing_ok=True)

    def train(logger: Logger | None) -> TrainingResult:
        setup = Setup(job.encoder, job.machine, job.seed, logger, checkpoint)
        outcome = train_trunk(CaptureReader(job.capture), directory, recipe, setup)
        for unfinished in directory.glob("unfinished_*"):
            unfinished.unlink()
        return outcome

    return _run(job, identity, train, force=force)


def run_cell(job: Job, cell: Cell, recipe: DetectorRecipe, *, force: bool) -> Result:
    """Train one detector, unless it is done under the same configuration.

    Raises:
        LvdError: the trunk that it starts from is stale or damaged; nothing of the job is touched.
    """
    identity = identities(job, [cell], recipe)[cell]
    if identity.blocked is not None:
        raise LvdError(identity.blocked)

    def train(logger: Logger | None) -> TrainingResult:
        return train_detector(
            CaptureReader(job.capture),
            job.run,
            job.run / cell.path,
            cell.category,
            cell.step,
            recipe,
            Setup(job.encoder, job.machine, identity.seed, logger),
        )

    return _run(job, identity, train, force=force)


def identity_of(config: TrainConfig, cell: Cell | None) -> Identity:
    """Which job a cell's is under a configuration; None: the trunk's."""
    if cell is None:
        return trunk_identity(Job.of(config), config.trunk)
    return identities(Job.of(config), [cell], config.detector)[cell]


def trunk_identity(job: Job, recipe: TrunkRecipe) -> Identity:
    settings = {
        **_shared(job),
        **_flat("encoder", asdict(job.encoder)),
        **_flat("trunk.fit", asdict(recipe.fit)),
        "trunk.batches": recipe.batches,
    }
    data = data_digests(job.capture)
    return Identity(None, job.seed, settings, trunk_job_digest(data, settings), config_digest(data))


def identities(job: Job, cells: Iterable[Cell], recipe: DetectorRecipe) -> dict[Cell, Identity]:
    """What each cell's job is; the files that all of them depend on are read once.

    Raises:
        LvdError: what the recipe starts from is not there, or a file of the capture is missing.
    """
    data = data_digests(job.capture)
    trunk, blocked = None, None
    if recipe.init in ("auto", "trunk"):
        trunk, blocked = check_trunk(job.run, job.capture, data)
    if trunk is None and blocked is None and recipe.init == "trunk":
        raise LvdError(f"{job.run} has no trunk: run train.py task=trunk name={job.run.name} first")
    from_trunk = trunk is not None or blocked is not None
    settings = _cell_settings(job, recipe, from_trunk=from_trunk)
    start = trunk if blocked is None else "a trunk that cannot be used"  # nothing was trained on that
    return {
        cell: Identity(
            cell,
            cell_seed(job.seed, cell),
            settings,
            cell_job_digest(data, start, settings, cell),
            config_digest(data),
            blocked,
        )
        for cell in cells
    }


def is_done(job: Job, identity: Identity) -> bool:
    """Whether a job would be skipped: done, on what it would be trained on now, and its files are whole."""
    directory = job.run / identity.path
    return job_state(directory, read_result(directory), identity.config_digest) == "done"


def cell_seed(seed: int, cell: Cell) -> int:
    digest = hashlib.sha256(f"{seed} {cell.category} {cell.step}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def record_death(job: Job, identity: Identity, reason: str) -> None:
    """The result of a job whose process ended before it could write one; what it wrote itself stays."""
    directory = job.run / identity.path
    if read_result(directory) is None:
        write_result(directory, Result(status="failed", seconds=0.0, error=reason, **identity.fields()))


def _run(
    job: Job, identity: Identity, train: Callable[[Logger | None], TrainingResult], *, force: bool
) -> Result:
    """Train and write result.json. A failure is a result too: it must not take other jobs with it."""
    directory = job.run / identity.path
    before = read_result(directory)
    if before is not None and not force and is_done(job, identity):
        (directory / "result.json").touch()  # a sweep's progress counts it
        return before
    (directory / "result.json").unlink(missing_ok=True)

    started = time.monotonic()
    fields = identity.fields()
    cell = identity.cell
    try:
        with (
            job_log(directory),
            tracker(
                job.logger,
                directory,
                group=job.run.name,
                name=f"{job.run.name}/{identity.path}",
                job_type="detector" if cell else "trunk",
                tags=[cell.category, f"step {cell.step}"] if cell else ["trunk"],
                config={**job.settings, **fields},
            ) as tracked,
        ):
            fields["wandb_url"] = tracked.url
            write_trained_on(job.run, job.capture, identity.data)
            outcome = train(tracked.logger)
        result = Result(
            status="done",
            seconds=time.monotonic() - started,
            files=_written(directory, cell),
            **asdict(outcome),
            **fields,
        )
    except (Exception, SystemExit) as error:
        sentence = str(error) if isinstance(error, LvdError) else f"{type(error).__name__}: {error}"
        result = Result(status="failed", seconds=time.monotonic() - started, error=sentence, **fields)
    write_result(directory, result)
    return result


def _written(job: Path, cell: Cell | None) -> dict[str, str]:
    """The digests of a network's files, by their path below the job's directory."""
    network = network_directory(job, cell)
    paths = [network / name for name in ("config.json", WEIGHTS)]
    return {path.relative_to(job).as_posix(): file_sha256(path) for path in paths}


def _cell_settings(job: Job, recipe: DetectorRecipe, *, from_trunk: bool) -> dict[str, Any]:
    """What a person chose and a detector's outcome depends on; what its kind does not read is left out."""
    head = from_trunk and recipe.tuning == "head"
    kind = "head" if head else "network"
    if (pretrained := Pretrained.of(recipe)) is not None:
        start: dict[str, Any] = {"detector.pretrained": pretrained.identity}
    elif from_trunk:
        start = {"detector.tuning": recipe.tuning}
    else:
        start = _flat("encoder", asdict(job.encoder))
    return {
        **_shared(job),
        "detector.init": "trunk" if recipe.init == "auto" else recipe.init,
        "detector.negatives": recipe.negatives,
        **start,
        **_flat(f"detector.{kind}", asdict(recipe.head if head else recipe.network)),
    }


def _shared(job: Job) -> dict[str, Any]:
    return {"capture": job.capture.name, "seed": job.seed, "precision": job.machine.precision}


def _flat(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{key}": value for key, value in values.items()}
