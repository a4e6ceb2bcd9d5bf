"""Train one detector: one category against safe samples, at one step."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning import seed_everything
from safetensors import safe_open
from torch import Tensor

from lvd.capture.frames import inference_device, step_frames
from lvd.detect.bank import step_features
from lvd.detect.data import CellData, channel_statistics
from lvd.detect.files import load_trunk, save_detector, trunk_digest
from lvd.detect.fit import Setup, TrainingResult, count_parameters, fit_module
from lvd.detect.module import DetectorModule
from lvd.detect.network import Detector, EncoderConfig, HeadDetector, NetworkDetector
from lvd.detect.pretrained import Pretrained
from lvd.detect.recipe import DetectorRecipe
from lvd.detect.rows import cell_rows
from lvd.errors import LvdError
from lvd.latents.frames import StepFrames
from lvd.latents.reader import CaptureReader, StepReader


def train_detector(
    capture: CaptureReader,
    run: Path,
    directory: Path,
    category: str,
    step: int,
    recipe: DetectorRecipe,
    setup: Setup,
) -> TrainingResult:
    """Train one cell on the train split, save it to `directory`.

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
    device = inference_device(setup.machine.accelerator)
    if pretrained is not None:
        read = _Stored(step_frames(capture, step, pretrained.frame_shape, device))
    if recipe.cache and (digest is None or recipe.tuning == "full"):
        read = _InMemory(read, sorted({*train[0], *val[0]}))
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
            features = step_features(capture, run / "trunk", digest, step, device)
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
    validations = fit_module(module, data, fit, setup)
    save_detector(directory / "detector", detector, {"category": category, "step": step}, digest)
    return TrainingResult(
        metrics=validations.metrics,
        curves=validations.curves,
        sizes={
            "train": len(train[0]),
            "train_unsafe": positives,
            "val": len(val[0]),
            "val_unsafe": sum(val[1]),
            "parameters": count_parameters(detector),
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


class _InMemory:
    """The same rows out of memory, where they were read into once."""

    def __init__(self, read: Callable[[Sequence[int]], Tensor], rows: Sequence[int]) -> None:
        self._inputs = read(rows)
        self._places = {row: place for place, row in enumerate(rows)}

    def __call__(self, rows: Sequence[int]) -> Tensor:
        return self._inputs[[self._places[row] for row in rows]]


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
