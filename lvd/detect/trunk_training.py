"""Train a run's trunk: on all steps and categories of the train split at once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lvd.detect.data import TrunkData, channel_statistics, label_matrix
from lvd.detect.files import save_trunk
from lvd.detect.fit import Setup, TrainingResult, Validations, count_parameters, fit_module
from lvd.detect.module import TrunkModule
from lvd.detect.network import EncoderConfig, Trunk
from lvd.detect.ranks import Rank, further_ranks
from lvd.detect.recipe import TrunkRecipe
from lvd.detect.rows import cell_rows, labelled_rows
from lvd.errors import LvdError
from lvd.latents.reader import CaptureReader
from lvd.progress import Advance, progress

_VAL_STEPS = 8  # spread over all steps: enough to see how far it is


def train_trunk(
    capture: CaptureReader,
    directory: Path,
    recipe: TrunkRecipe,
    setup: Setup,
) -> TrainingResult:
    """Train the run's trunk on the train split and save it to `directory`.

    Raises:
        LvdError: a category has no positives, or there are no safe samples, in train or val; there are more
            devices than a batch has samples.
    """
    names = capture.info.category_names
    for split in ("train", "val"):
        for name in names:
            cell_rows(capture.samples, name, split, "all", setup.seed)
    batch_size, devices = recipe.fit.batch_size, setup.machine.devices
    if batch_size < devices:
        raise LvdError(f"devices={devices} cannot share batches of trunk.fit.batch_size={batch_size}")
    further = partial(_fit_rank, capture=capture, recipe=recipe, setup=replace(setup, logger=None))
    with further_ranks(devices, further) as rank:
        trunk, validations = _fit(capture, recipe, replace(setup, rank=rank))
    save_trunk(directory, trunk, names)
    return TrainingResult(
        metrics=validations.metrics,
        curves=validations.curves,
        sizes={
            "train": len(labelled_rows(capture.samples, "train")),
            "parameters": count_parameters(trunk),
        },
        started_from="scratch",
    )


def _fit_rank(rank: Rank, capture: CaptureReader, recipe: TrunkRecipe, setup: Setup) -> None:
    """The part of a further process."""
    _fit(capture, recipe, replace(setup, rank=rank))


def _fit(capture: CaptureReader, recipe: TrunkRecipe, setup: Setup) -> tuple[Trunk, Validations]:
    """A trunk that has learned from the train split, and what is known of it."""
    seed_everything(setup.seed, verbose=False)
    names, steps = capture.info.category_names, capture.info.stored_steps
    train_rows = labelled_rows(capture.samples, "train")
    trunk = Trunk(EncoderConfig.fitted(setup.encoder, capture.info.origin.latent_shape), steps, len(names))
    statistics = [channel_statistics(capture.step(step), train_rows) for step in range(steps)]
    trunk.mean.copy_(torch.stack([mean for mean, _ in statistics]))
    trunk.std.copy_(torch.stack([std for _, std in statistics]))

    data = TrunkData(
        capture,
        batches=recipe.batches * recipe.fit.epochs,
        epochs=recipe.fit.epochs,
        batch_size=recipe.fit.batch_size,
        val_steps=np.unique(np.linspace(0, steps - 1, _VAL_STEPS).round().astype(int)).tolist(),
        workers=setup.machine.workers,
        seed=setup.seed,
    )
    module = TrunkModule(
        trunk,
        names,
        recipe.fit,
        positive_weight=_drawn_positive_weight(capture, train_rows),
        seed=setup.seed,
    )
    with progress("training the trunk", recipe.batches * recipe.fit.epochs, "batches") as advance:
        validations = fit_module(module, data, recipe.fit, setup, [_ShowProgress(advance)])
    return trunk, validations


class _ShowProgress(Callback):
    """Lightning's batches, shown by lvd's own progress."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._said: list[str] = []  # by the last validation; a look at each batch would wait for the device

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step:  # it goes on
            self._advance(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.is_global_zero:
            return
        self._advance(1, *self._said)

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self._said = [f"val AUROC {trainer.callback_metrics['val/auroc'].item():.3f}"]


def _drawn_positive_weight(capture: CaptureReader, rows: Sequence[int]) -> Tensor:
    """What makes a category's positives weigh as much as the safe samples, in half-and-half batches."""
    target, _ = label_matrix(capture.samples, rows, capture.info.category_names)
    unsafe = target.any(dim=1).sum()
    return unsafe / target.sum(dim=0)
