"""The trunk's training on several devices, and one that goes on where another was killed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load

import lvd.detect.trunk_training
from conftest import capture_info, latents_of, make_samples
from lvd.detect.fit import Setup, TrainingResult
from lvd.detect.recipe import EncoderSize, Fit, Machine, TrunkRecipe
from lvd.detect.trunk_training import train_trunk
from lvd.errors import LvdError
from lvd.latents import journal, writer
from lvd.latents.reader import CaptureReader
from lvd.sweep.job import Job, run_trunk
from lvd.tracking import LoggerConfig

RECIPE = TrunkRecipe(
    fit=Fit(epochs=4, batch_size=16, learning_rate=3e-3, weight_decay=0.05, shift=1), batches=6
)
SETUP = Setup(EncoderSize(width=16, layers=1, heads=2), Machine(accelerator="cpu"), seed=0)


def trained(capture: Path, directory: Path, setup: Setup = SETUP) -> TrainingResult:
    return train_trunk(CaptureReader(capture), directory, RECIPE, setup)


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


class KilledError(Exception):
    """What stands for a kill at the end of an epoch."""


def killed_in(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training dies in this epoch, from 0, before its validation."""

    def end(progress: object, trainer: Trainer, *_: object) -> None:
        if trainer.current_epoch == epoch:
            raise KilledError

    monkeypatch.setattr(lvd.detect.trunk_training._ShowProgress, "on_train_batch_end", end)


@pytest.mark.long
def test_two_processes_train_what_one_does_each_on_its_share(capture: Path, tmp_path: Path) -> None:
    alone = trained(capture, tmp_path / "alone")
    machine = replace(SETUP.machine, devices=2)
    together = trained(capture, tmp_path / "together", replace(SETUP, machine=machine))
    assert together.sizes == alone.sizes
    assert together.curves["epoch"] == alone.curves["epoch"]
    assert together.metrics["auroc"] == pytest.approx(alone.metrics["auroc"], abs=0.25)
    assert weights(tmp_path / "together") != weights(tmp_path / "alone")  # they shift other samples
    assert not torch.distributed.is_initialized()


def test_a_trunk_trains_in_half_precision_to_weights_in_float32(capture: Path, tmp_path: Path) -> None:
    full = trained(capture, tmp_path / "full")
    machine = replace(SETUP.machine, precision="bf16-mixed")
    half = trained(capture, tmp_path / "half", replace(SETUP, machine=machine))
    assert weights(tmp_path / "half") != weights(tmp_path / "full")
    assert half.metrics["auroc"] == pytest.approx(full.metrics["auroc"], abs=0.1)
    assert {value.dtype for value in load(weights(tmp_path / "half")).values()} == {torch.float32}


def test_a_trunk_trains_on_one_category_alone(tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    samples = [replace(each, categories=("alpha",) if each.is_unsafe else ()) for each in make_samples(80)]
    writer.begin(capture, capture_info(category_names=("alpha",)), samples)
    journal.append(capture, [sample.sample_id for sample in samples], latents_of(samples))
    writer.finish(capture)
    result = trained(capture, tmp_path / "trunk")
    assert result.metrics["auroc"] == result.metrics["auroc/alpha"] > 0.5


def test_more_devices_than_a_batch_has_samples_are_refused(capture: Path, tmp_path: Path) -> None:
    with pytest.raises(LvdError, match=r"devices=17 cannot share batches of trunk\.fit\.batch_size=16"):
        trained(capture, tmp_path, replace(SETUP, machine=replace(SETUP.machine, devices=17)))


def test_a_killed_training_goes_on_from_its_last_validation_to_the_same_end(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(capture, tmp_path / "whole")
    setup = replace(SETUP, resume=tmp_path / "unfinished.ckpt")
    with monkeypatch.context() as patch:
        killed_in(2, patch)
        with pytest.raises(KilledError):
            trained(capture, tmp_path / "killed", setup)
    assert not (tmp_path / "killed").exists()
    seen: list[int] = []
    count = lvd.detect.trunk_training._ShowProgress.on_train_batch_end
    monkeypatch.setattr(
        lvd.detect.trunk_training._ShowProgress,
        "on_train_batch_end",
        lambda self, trainer, *rest: (seen.append(trainer.current_epoch), count(self, trainer, *rest)),
    )
    gone_on = trained(capture, tmp_path / "killed", setup)
    assert seen == [2] * 6 + [3] * 6
    assert gone_on.curves == whole.curves
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_a_job_goes_on_only_from_its_own_unfinished_training(
    capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(capture, tmp_path / "run", 0, SETUP.encoder, SETUP.machine, LoggerConfig(kind="none"), {})
    trunk = tmp_path / "run" / "trunk"
    with monkeypatch.context() as patch:
        killed_in(2, patch)
        assert run_trunk(job, RECIPE, force=False).error == "KilledError: "
    (unfinished,) = trunk.glob("unfinished_*")
    other = run_trunk(replace(job, seed=1), RECIPE, force=False)
    assert other.status == "done"
    assert not unfinished.exists()  # what is done needs none
    fresh = run_trunk(replace(job, run=tmp_path / "fresh", seed=1), RECIPE, force=False)
    assert other.metrics == fresh.metrics
