"""Where a job's curves go besides result.json: wandb, TensorBoard, CSV, or nowhere."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lvd.errors import LvdError
from lvd.report.wandb import LoggerConfig, lightning_logger, wandb_run


@dataclass(frozen=True)
class Curves:
    """What a job logs to while it is open."""

    logger: Logger | None
    wandb: Any = None

    @property
    def url(self) -> str | None:
        return self.wandb.url if self.wandb is not None else None

    def summarise(self, metrics: Mapping[str, float]) -> None:
        """The metrics of the selected epoch, where wandb shows a run's best."""
        if self.wandb is not None:
            self.wandb.summary.update({f"best/{key}": value for key, value in metrics.items()})


@contextmanager
def job_logger(
    chosen: LoggerConfig, directory: Path, *, config: Mapping[str, Any], **run: Any
) -> Iterator[Curves]:
    """A job's curves; `run` is what `wandb_run` takes besides.

    Raises:
        LvdError: the package that the logger writes with is not installed.
    """
    kind = chosen.kind
    if kind == "wandb":
        with wandb_run(chosen, directory, config=config, **run) as wandb:
            yield Curves(lightning_logger(wandb), wandb)
        return
    if kind == "none":
        yield Curves(None)
        return
    shutil.rmtree(directory / kind, ignore_errors=True)  # of an earlier run of this job
    logger: Logger
    try:
        if kind == "csv":
            logger = CSVLogger(directory, name="", version=kind)
        else:
            logger = TensorBoardLogger(directory, name="", version=kind)
    except ModuleNotFoundError:
        raise LvdError("logger=tensorboard needs pip install 'lvd[tensorboard]'") from None
    logger.log_hyperparams(dict(config))
    try:
        yield Curves(logger)
    finally:
        logger.finalize("finished")
