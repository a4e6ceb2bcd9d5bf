"""Fit a trunk or a detector with Lightning: the weights of the last epoch count, val only watches.

Rules are calibrated on val, and a guarantee holds where nothing was selected on it. The learning rate ends at
0, so that the last epoch is about the best: docs/architecture.md.
"""

import math
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from lvd.detect.ranks import Rank, options_of
from lvd.detect.recipe import EncoderSize, Fit, Machine
from lvd.errors import LvdError

_VALIDATIONS = 5  # of a fit; one of a head costs more than its epoch


@dataclass(frozen=True)
class Setup:
    """What a job trains with, whatever it trains."""

    encoder: EncoderSize  # of a trunk, and of a detector from scratch
    machine: Machine
    seed: int
    logger: Logger | None = None
    resume: Path | None = (
        None  # a checkpoint, written at each validation; a fit goes on from one that is there
    )
    rank: Rank | None = None  # which process this is of those that fit together; None: it fits alone


@dataclass(frozen=True)
class TrainingResult:
    """What a training job measured; `metrics` are of the weights it leaves, on val."""

    metrics: dict[str, float]
    curves: dict[str, list[float]]  # of every validation: epoch (from 1), loss, auroc
    sizes: dict[str, int]
    started_from: str  # trunk, scratch or pretrained


class Validations(Callback):
    """What each validation measured: `metrics` of the last one, `curves` of all."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, list[float]] = {"epoch": [], "loss": [], "auroc": []}

    def on_validation_end(self, trainer: Trainer, _module: LightningModule) -> None:
        self.metrics = {
            name.removeprefix("val/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        for name, curve in self.curves.items():
            curve.append(trainer.current_epoch + 1 if name == "epoch" else self.metrics[name])

    def state_dict(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "curves": self.curves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics, self.curves = state["metrics"], state["curves"]


class _Resumable(Callback):
    """Writes a checkpoint after each validation, whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer: Trainer, _module: LightningModule) -> None:
        interval = trainer.check_val_every_n_epoch
        if interval is None or (trainer.current_epoch + 1) % interval:
            return
        partial = self._path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(self._path)


def fit_module(
    module: LightningModule,
    data: LightningDataModule,
    fit: Fit,
    setup: Setup,
    callbacks: Sequence[Callback] = (),
) -> Validations:
    """Train for all epochs, and return what val said of them.

    Raises:
        LvdError: the training diverged.
    """
    validations = Validations()
    resume = setup.resume if setup.resume is not None and setup.resume.is_file() else None
    resumable = [_Resumable(setup.resume)] if setup.resume is not None else []
    trainer = _trainer(
        setup.machine,
        setup.rank,
        max_epochs=fit.epochs,
        check_val_every_n_epoch=_validation_interval(fit.epochs),
        logger=setup.logger if setup.logger is not None else False,
        callbacks=[validations, *callbacks, *resumable],
        num_sanity_val_steps=0,
        log_every_n_steps=50,
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)  # no pickled objects
    except SystemExit as exit:  # Lightning's answer to Ctrl-C, which it then ignores: a sweep would go on
        if not isinstance(exit.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise exit.__context__ from None
    if not math.isfinite(validations.metrics["loss"]):
        raise LvdError("the val loss is no number: the training diverged, lower the learning rate")
    return validations


def _trainer(machine: Machine, rank: Rank | None, **options: Any) -> Trainer:
    return Trainer(
        accelerator=machine.accelerator,
        precision=machine.precision,  # type: ignore[arg-type]
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options_of(rank),
        **options,
    )


def check_machine(machine: Machine, *, elsewhere: bool) -> None:
    """Ask Lightning whether it takes a machine's words, and whether this machine has what they name.

    `elsewhere`: jobs run on other machines, and what is not plugged in or installed here may be there.

    Raises:
        LvdError: says which words, and why not.
    """
    try:
        _trainer(machine, Rank(0, machine.devices, 0) if machine.devices > 1 else None, logger=False)
    except (MisconfigurationException, ImportError, RuntimeError, ValueError) as error:
        if elsewhere and not isinstance(error, ValueError):
            return
        reason = " ".join(str(error).split())
        raise LvdError(
            f"accelerator={machine.accelerator} precision={machine.precision}: Lightning says, {reason}"
        ) from None


def _validation_interval(epochs: int) -> int:
    """The epochs from one validation to the next: about `_VALIDATIONS` in all, and one after the last."""
    interval = max(1, epochs // _VALIDATIONS)
    while epochs % interval:
        interval -= 1
    return interval


def count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
