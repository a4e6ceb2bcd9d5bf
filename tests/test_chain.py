"""The whole chain on the demo generator: what `make demo` leaves, and the negative control."""

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lvd.detect.training import DetectorRecipe, EncoderSize, Fit, Machine, TrunkRecipe
from lvd.evaluation import evaluate
from lvd.latents.format import read_samples, write_samples
from lvd.report.wandb import WandbTarget
from lvd.sweep.grid import Cell
from lvd.sweep.job import Job, run_cell, run_trunk

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def demo() -> Path:
    """The demo run; `make demo` is quick when it is there."""
    if not (ROOT / "runs/demo/evaluation/summary.json").is_file():
        subprocess.run(["make", "demo"], cwd=ROOT, check=True, env={**os.environ, "WANDB_MODE": "offline"})
    return ROOT / "runs/demo"


def test_the_demo_is_measured_on_the_whole_grid(demo: Path) -> None:
    summary = json.loads((demo / "evaluation/summary.json").read_text())
    assert (summary["eta"], summary["lam"], summary["threshold"]) == (20, 0.6, 0.5)
    assert (summary["detectors"], summary["detectors_missing"]) == (250, [])
    assert summary["n_test"] >= 100
    assert summary["n_unchecked"] == 0


def test_all_250_jobs_left_a_result(demo: Path) -> None:
    results = [json.loads(path.read_text()) for path in demo.glob("digit_*/step_*/result.json")]
    assert len(results) == 250
    assert {result["status"] for result in results} == {"done"}
    assert {result["started_from"] for result in results} == {"trunk"}


def test_shuffled_labels_are_at_chance(demo: Path, tmp_path: Path) -> None:
    """The mean balanced accuracy of five seeds, true test labels: its 99.9% t-interval holds 0.5."""
    measured = [_balanced_accuracy_of_shuffled(ROOT / "captures/demo", tmp_path, seed) for seed in range(5)]
    mean, error = np.mean(measured), stats.sem(measured)
    reach = stats.t.ppf(0.9995, df=len(measured) - 1) * error
    print(f"shuffled labels: {mean:.3f} +- {reach:.3f}, seeds {np.round(measured, 3)}")
    assert abs(mean - 0.5) <= reach
    assert mean < 0.65


def _balanced_accuracy_of_shuffled(capture: Path, folder: Path, seed: int) -> float:
    """A short run whose train and val labels were dealt anew; ten steps, eta 10."""
    shuffled = folder / f"shuffled_{seed}"
    shutil.copytree(capture, shuffled)
    samples = read_samples(capture)
    learned = [row for row, sample in enumerate(samples) if sample.split != "test"]
    dealt = [samples[row].categories for row in learned]
    random.Random(seed).shuffle(dealt)
    for row, categories in zip(learned, dealt, strict=True):
        samples[row] = replace(samples[row], categories=categories)
    write_samples(shuffled, samples)

    size = EncoderSize(width=96, layers=4, heads=4, tubelet=2, patch=None)
    fit = Fit(epochs=2, batch_size=32, learning_rate=1e-3, weight_decay=0.05, shift=2)
    head = Fit(epochs=10, batch_size=4096, learning_rate=1e-2, weight_decay=1.0, shift=0)
    recipe = DetectorRecipe(size, "trunk", "head", "balanced", head, head)
    job = Job(shuffled, folder / f"run_{seed}", seed, Machine("cpu", "32-true", 0), WandbTarget(None), {})
    assert run_trunk(job, TrunkRecipe(size, fit, batches=100), force=False).status == "done"
    for step in range(10):
        for number in range(5):
            name = f"digit_{('zero', 'one', 'two', 'three', 'four')[number]}"
            assert run_cell(job, Cell(name, step), recipe, force=False).status == "done"
    found = evaluate(shuffled, job.run, eta=10, lam=0.6, threshold=0.5, examples=0, show_unsafe=False).summary
    assert found.tpr is not None
    assert found.fpr is not None
    return (found.tpr + 1 - found.fpr) / 2
