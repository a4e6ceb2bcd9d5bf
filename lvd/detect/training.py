"""Train a trunk or one detector: data, module and Lightning trainer put together."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from safetensors import safe_open
from torch import Tensor

from lvd.capture.frames import decoding_device, step_frames
from lvd.detect.bank import step_features
from lvd.detect.data import CellData, TrunkData, channel_statistics, label_matrix
from lvd.detect.files import load_trunk, save_detector, save_trunk, trunk_digest
from lvd.detect.module import DetectorModule, TrunkModule
from lvd.detect.network import Detector, EncoderConfig, HeadDetector, NetworkDetector, Trunk
from lvd.detect.pretrained import Pretrained
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Fit, Machine, TrunkRecipe
from lvd.detect.rows import cell_rows, labelled_rows
from lvd.errors import LvdError
from lvd.latents.frames import StepFrames
from lvd.latents.reader import CaptureReader, StepReader
from lvd.progress import Advance, progress

_VALIDATIONS = 5  # of a fit; one of a head costs more than its epoch
_VAL_STEPS = 8  # spread over all steps: enough to select a checkpoint by


@dataclass(frozen=True)
class Setup:
    """What a job trains with, whatever it trains."""

    encoder: EncoderSize  # of a trunk, and of a detector from scratch
    machine: Machine
    seed: int
    logger: Logger | None = None


@dataclass(frozen=True)
class Outcome:
    """What a training job measured; `metrics` are of the selected checkpoint, on val."""

    metrics: dict[str, float]
    curves: dict[str, list[float]]  # of every validation: epoch (from 1), loss, auroc
    sizes: dict[str, int]
    started_from: str  # trunk, scratch or pretrained


def train_trunk(
    capture: CaptureReader,
    directory: Path,
    recipe: TrunkRecipe,
    setup: Setup,
) -> Outcome:
    """Train the run's trunk on the train split, keep the best by mean val AUROC, save it to `directory`.

    Raises:
        LvdError: a category has no positives, or there are no safe samples, in train or val.
    """
    names = capture.info.category_names
    for split in ("train", "val"):
        for name in names:
            cell_rows(capture.samples, name, split, "all", setup.seed)
    seed_everything(setup.seed, verbose=False)
    train_rows = labelled_rows(capture.samples, "train")
    steps = capture.info.stored_steps

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
        best = _fit(module, data, recipe.fit, setup, [_Report(advance)])
    save_trunk(directory, trunk, names)
    return Outcome(
        metrics=best.metrics,
        curves=best.curves,
        sizes={"train": len(train_rows), "parameters": _count(trunk)},
        started_from="scratch",
    )


def train_detector(
    capture: CaptureReader,
    run: Path,
    directory: Path,
    category: str,
    step: int,
    recipe: DetectorRecipe,
    setup: Setup,
) -> Outcome:
    """Train one cell on the train split, keep the best of five validations by AUROC, save it to `directory`.

    Raises:
        LvdError: the category has no positives in train or val, what it is to start from is not there, or
            frames cannot be decoded.
    """
    digest = starting_trunk(run, recipe.init)
    pretrained = Pretrained.of(recipe)
    seed_everything(setup.seed, verbose=False)
    train = cell_rows(capture.samples, category, "train", recipe.negatives, setup.seed)
    val = cell_rows(capture.samples, category, "val", recipe.negatives, setup.seed)
    latents = capture.step(step)

    detector: Detector
    read: Callable[[Sequence[int]], Tensor] = _Stored(latents)
    fit = recipe.network
    if pretrained is not None:
        device = decoding_device(setup.machine.accelerator)
        read = _Stored(step_frames(capture, step, pretrained.frame_shape, device))
    if recipe.cache and (digest is None or recipe.tuning == "full"):
        read = _Kept(read, sorted({*train[0], *val[0]}))
    if pretrained is not None:
        detector = pretrained.detector()
    elif digest is None:
        detector = NetworkDetector(EncoderConfig.fitted(setup.encoder, capture.info.origin.latent_shape))
        mean, std = channel_statistics(latents, train[0])
        detector.mean.copy_(mean)
        detector.std.copy_(std)
    else:
        output = capture.info.category_index(category)
        if recipe.tuning == "full":
            detector = NetworkDetector.from_trunk(load_trunk(run / "trunk"), output, step)
        else:
            features = step_features(capture, run / "trunk", digest, step)
            detector = _head(features, run / "trunk", output, train[0])
            read, fit = features.__getitem__, recipe.head

    positives = sum(train[1])
    module = DetectorModule(
        detector,
        fit,
        positive_weight=(len(train[1]) - positives) / positives,
        seed=setup.seed,
    )
    data = CellData(
        read, train, val, batch_size=fit.batch_size, workers=setup.machine.workers, seed=setup.seed
    )
    best = _fit(module, data, fit, setup)
    save_detector(directory / "detector", detector, {"category": category, "step": step}, digest)
    return Outcome(
        metrics=best.metrics,
        curves=best.curves,
        sizes={
            "train": len(train[0]),
            "train_unsafe": positives,
            "val": len(val[0]),
            "val_unsafe": sum(val[1]),
            "parameters": _count(detector),
        },
        started_from="pretrained" if pretrained else "scratch" if digest is None else "trunk",
    )


def starting_trunk(run: Path, init: str) -> str | None:
    """The digest of the trunk that a run's detectors start from, or None: from something else.

    Raises:
        LvdError: `init` asks for a trunk and there is none.
    """
    digest = trunk_digest(run / "trunk") if init in ("auto", "trunk") else None
    if init == "trunk" and digest is None:
        raise LvdError(f"{run} has no trunk: run train.py task=trunk name={run.name} first")
    return digest


class _Stored:
    """Reads x0 of rows, or their frames, as a tensor, from any process."""

    def __init__(self, step: StepReader | StepFrames) -> None:
        self._step = step

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(self._step.read(rows))


class _Kept:
    """The same rows out of memory, where they were read into once."""

    def __init__(self, read: Callable[[Sequence[int]], Tensor], rows: Sequence[int]) -> None:
        self._inputs = read(rows)
        self._places = {row: place for place, row in enumerate(rows)}

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return self._inputs[[self._places[row] for row in rows]]


class _Best(Callback):
    """Keeps the weights of the best validation in memory: by AUROC, then by loss.

    `metrics` are that validation's, `curves` hold every validation's. Stops the fit after `patience`
    validations in a row that were no better.
    """

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._worse = 0
        self._rank = (-1.0, 0.0)
        self._weights: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}
        self.curves: dict[str, list[float]] = {"epoch": [], "loss": [], "auroc": []}

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {
            name.removeprefix("val/"): value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        for name, curve in self.curves.items():
            curve.append(trainer.current_epoch + 1 if name == "epoch" else metrics[name])
        rank = (metrics["auroc"], -metrics["loss"])
        if rank > self._rank:
            self._rank, self.metrics, self._worse = rank, metrics, 0
            self._weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            return
        self._worse += 1
        trainer.should_stop = self._worse == self._patience

    def restore(self, module: LightningModule) -> None:
        if not self._weights:
            raise LvdError("no epoch has a val AUROC: the training diverged, lower the learning rate")
        module.load_state_dict(self._weights)


class _Report(Callback):
    """Lightning's batches, shown by lvd's own progress."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        auroc = trainer.callback_metrics.get("val/auroc")
        self._advance(1, *([] if auroc is None else [f"val AUROC {auroc.item():.3f}"]))


def _head(features: Tensor, trunk: Path, category: int, train_rows: Sequence[int]) -> HeadDetector:
    """A head that begins as the trunk's own output, on features standardised over the train rows.

    Of the trunk only its outputs are read: its features are there.
    """
    with safe_open(trunk / "model.safetensors", framework="pt") as file:
        weight, bias = (file.get_tensor(f"output.{name}")[category] for name in ("weight", "bias"))
    head = HeadDetector(features.shape[1])
    seen = features[list(train_rows)]
    with torch.no_grad():
        head.mean.copy_(seen.mean(dim=0))
        head.std.copy_(seen.std(dim=0).clamp_min(1e-4))
        head.output.weight.copy_((weight * head.std)[None])
        head.output.bias.copy_((bias + weight @ head.mean)[None])
    return head


def _drawn_positive_weight(capture: CaptureReader, rows: Sequence[int]) -> Tensor:
    """What makes a category's positives weigh as much as the safe samples, in half-and-half batches."""
    target, _ = label_matrix(capture.samples, rows, capture.info.category_names)
    unsafe = target.any(dim=1).sum()
    return unsafe / target.sum(dim=0)


def _fit(
    module: LightningModule,
    data: TrunkData | CellData,
    fit: Fit,
    setup: Setup,
    callbacks: Sequence[Callback] = (),
) -> _Best:
    """Train, put the best weights by val AUROC back into `module`, and return what is known of them."""
    best = _Best(fit.patience)
    trainer = _trainer(
        setup.machine,
        max_epochs=fit.epochs,
        check_val_every_n_epoch=_validation_interval(fit.epochs),
        logger=setup.logger if setup.logger is not None else False,
        callbacks=[best, *callbacks],
        num_sanity_val_steps=0,
        log_every_n_steps=50,
    )
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as exit:  # Lightning's answer to Ctrl-C, which it then ignores: a sweep would go on
        if not isinstance(exit.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise exit.__context__ from None
    best.restore(module)
    return best


def _trainer(machine: Machine, **options: Any) -> Trainer:
    return Trainer(
        accelerator=machine.accelerator,
        devices=1,  # Lightning's DDP would replay the command line into a new sweep
        precision=machine.precision,  # type: ignore[arg-type]
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def check_machine(machine: Machine, *, elsewhere: bool) -> None:
    """Ask Lightning whether it takes a machine's words, and whether this machine has what they name.

    `elsewhere`: jobs run on other machines, and what is not plugged in or installed here may be there.

    Raises:
        LvdError: says which words, and why not.
    """
    try:
        _trainer(machine, logger=False)
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


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
