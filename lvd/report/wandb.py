"""Log a job to wandb. wandb mirrors what stands on disk and is never read back."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvd.errors import require, require_one_of

if TYPE_CHECKING:  # --help reads the settings, and does not wait for Lightning
    from lightning.pytorch.loggers import Logger


@dataclass(kw_only=True)
class LoggerConfig:
    """conf/logger/: what a job's curves are written with. result.json is written whatever this says."""

    kind: str = "none"  # wandb, tensorboard, csv or none
    project: str | None = None  # of wandb
    entity: str | None = None  # of wandb: a team; null: the user's own

    def __post_init__(self) -> None:
        require_one_of("logger.kind", self.kind, ("wandb", "tensorboard", "csv", "none"))
        require(
            (self.project is not None) == (self.kind == "wandb"),
            f"logger.project={self.project} is of logger=wandb, and it needs one",
        )


@contextmanager
def wandb_run(
    logger: LoggerConfig,
    directory: Path,
    *,
    group: str,
    name: str,
    job_type: str,
    tags: list[str],
    config: Mapping[str, Any],
) -> Iterator[Any]:
    """One wandb run, or None when logging is off: online for a user who is logged in, offline otherwise.

    It is finished whatever happens: in one process, a second `wandb.init` would return the first run.
    """
    if logger.kind != "wandb":
        yield None
        return
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    directory.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=logger.project,
        entity=logger.entity,
        dir=directory.resolve(),  # wandb's service keeps the directory that it was started in
        group=group,
        name=name,
        job_type=job_type,
        tags=tags,
        config=dict(config),
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


def lightning_logger(run: Any) -> "Logger | None":
    """The run as Lightning's logger."""
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(experiment=run, save_dir=run.dir) if run is not None else None


def _mode() -> Any:
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb

    return "online" if wandb.login(prompt=False) else "offline"
