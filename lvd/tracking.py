"""Where a job's and an evaluation's numbers go besides their files: wandb, TensorBoard, CSV, or nowhere.

All of these mirror what stands on disk and are never read back.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvd.errors import LvdError, require, require_one_of

if TYPE_CHECKING:  # --help reads the settings, and does not wait for Lightning
    from lightning.pytorch.loggers import Logger


@dataclass(kw_only=True)
class LoggerConfig:
    """conf/logger/: what numbers are logged with. Results are written to their files whatever this says."""

    kind: str = "none"  # wandb, tensorboard, csv or none
    project: str | None = None  # of wandb
    entity: str | None = None  # of wandb: a team; null: the user's own

    def __post_init__(self) -> None:
        require_one_of("logger.kind", self.kind, ("wandb", "tensorboard", "csv", "none"))
        require(
            (self.project is not None) == (self.kind == "wandb"),
            f"logger.project={self.project} is of logger=wandb, and it needs one",
        )


@dataclass(frozen=True)
class Tracker:
    """What is logged to while it is open."""

    logger: "Logger | None"
    wandb: Any = None  # the wandb run that `logger` writes to

    @property
    def url(self) -> str | None:
        return self.wandb.url if self.wandb is not None else None


@contextmanager
def tracker(
    chosen: LoggerConfig,
    directory: Path,
    *,
    group: str,
    name: str,
    job_type: str,
    tags: list[str],
    config: Mapping[str, Any],
) -> Iterator[Tracker]:
    """Log one job or evaluation in its `directory`; group, name, type and tags are those of its wandb run.

    Raises:
        LvdError: the package that the logger writes with is not installed.
    """
    if chosen.kind == "wandb":
        with _wandb_run(
            chosen, directory, group=group, name=name, job_type=job_type, tags=tags, config=dict(config)
        ) as run:
            from lightning.pytorch.loggers import WandbLogger

            yield Tracker(WandbLogger(experiment=run, save_dir=run.dir), run)
        return
    if chosen.kind == "none":
        yield Tracker(None)
        return
    logger = _file_logger(chosen.kind, directory)
    logger.log_hyperparams(dict(config))
    try:
        yield Tracker(logger)
    finally:
        logger.finalize("finished")


def _file_logger(kind: str, directory: Path) -> "Logger":
    """A logger that writes below `directory`, over what an earlier run has left there."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    shutil.rmtree(directory / kind, ignore_errors=True)
    if kind == "csv":
        return CSVLogger(directory, name="", version=kind)
    try:
        return TensorBoardLogger(directory, name="", version=kind)
    except ModuleNotFoundError:
        raise LvdError("logger=tensorboard needs pip install 'lvd[tensorboard]'") from None


@contextmanager
def _wandb_run(chosen: LoggerConfig, directory: Path, **described: Any) -> Iterator[Any]:
    """One wandb run: online for a user who is logged in, offline otherwise.

    It is finished whatever happens: in one process, a second `wandb.init` would return the first run.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=chosen.project,
        entity=chosen.entity,
        dir=directory.resolve(),  # wandb's service keeps the directory that it was started in
        **described,
        mode=_mode(),
        settings=wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,  # listing the installed packages costs more than training a head
        ),
    )
    exit_code = 1
    try:
        yield run
        exit_code = 0
    finally:
        run.finish(exit_code)


def _mode() -> Any:
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"
