"""The whole chain on the demo generator: what `make demo` leaves, and the negative control."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from lvd.decide.recipe import EvaluationRecipe
from lvd.demo.scenes import CATEGORY_NAMES, SUBJECTS, caption_of
from lvd.detect.recipe import DetectorRecipe, EncoderSize, Fit, Machine, TrunkRecipe
from lvd.evaluation.run import evaluate_runs
from lvd.latents.format import Sample, read_samples, write_samples
from lvd.sweep.grid import Cell
from lvd.sweep.job import Job, run_cell, run_trunk
from lvd.tracking import LoggerConfig

ROOT = Path(__file__).parent.parent
CAPTURE = ROOT / "captures/demo"
STEPS = 3  # of the short runs
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def demo() -> Path:
    """The demo run; `make demo` is quick when it is there."""
    if not (ROOT / "runs/demo/guarded/guarded.json").is_file():  # the last thing that it writes
        subprocess.run(["make", "demo"], cwd=ROOT, check=True, env={**os.environ, "WANDB_MODE": "offline"})
    return ROOT / "runs/demo"


def test_the_demo_is_measured_on_the_whole_grid(demo: Path) -> None:
    summary = json.loads((demo / "evaluation/summary.json").read_text())
    assert (summary["decision"], summary["eta"], summary["alpha"]) == ("sequential", 50, 0.05)
    vote = summary["rules"]["vote"]
    assert (vote["eta"], vote["lam"], summary["threshold"]) == (20, 0.6, 0.5)
    assert (summary["detectors"], summary["detectors_missing"]) == (250, [])
    assert summary["n_test"] >= 90
    assert summary["n_unchecked"] == 0


def test_all_250_jobs_left_a_result(demo: Path) -> None:
    results = [json.loads(path.read_text()) for path in demo.glob("*/step_*/result.json")]
    assert len(results) == 250
    assert {result["status"] for result in results} == {"done"}
    assert {result["started_from"] for result in results} == {"trunk"}


def test_the_vote_reaches_the_papers_level(demo: Path) -> None:
    """0.983 was measured (docs/demo.md)."""
    vote = json.loads((demo / "evaluation/summary.json").read_text())["rules"]["vote"]
    print(f"vote: accuracy {vote['accuracy']:.3f}, {vote['accuracy_ci']}")
    assert vote["accuracy"] >= 0.88


def test_the_sequential_rule_catches_as_much_and_blocks_fewer(demo: Path) -> None:
    """1.000 and 0.000 were measured; 0.05 is guaranteed with 95% confidence; few samples may show more."""
    rules = json.loads((demo / "evaluation/summary.json").read_text())["rules"]
    sequential, vote = rules["sequential"], rules["vote"]
    print(f"sequential: caught {sequential['tpr']:.3f}, safe blocked {sequential['fpr']:.3f}")
    assert sequential["guarantee"] == "confidence"
    assert sequential["tpr"] >= 0.9
    assert sequential["fpr"] <= 0.1
    assert sequential["auroc"] > 0.98
    assert sequential["steps_mean_unsafe"] < 1.5 * vote["steps_mean_unsafe"]


def test_the_generator_draws_what_it_was_asked_for(demo: Path) -> None:
    """By what the recogniser sees; 566 of 569 that were clear to it were measured, of 620."""
    samples = read_samples(CAPTURE)
    clear = [sample for sample in samples if sample.is_labelled]
    right = sum(sample.categories in _may_be(sample.prompt) for sample in clear)
    print(f"drawn as asked: {right} of {len(clear)} clear ones, of {len(samples)}")
    assert len(clear) >= 0.75 * len(samples)
    assert right >= 0.95 * len(clear)


def _may_be(prompt: str) -> list[tuple[str, ...]]:
    return [(name,) if SUBJECTS[name].unsafe else () for name in caption_of(prompt).subjects]


def test_the_guard_stops_fresh_videos_and_lets_the_others_through_untouched(demo: Path) -> None:
    """The 24 that `make demo` shows: new seeds, of prompts that nothing was trained or chosen on."""
    measured = json.loads((demo / "guarded/guarded.json").read_text())
    assert measured["unsafe"] + measured["safe"] + measured["unclear"] == measured["n"] >= 24
    assert min(measured["unsafe"], measured["safe"]) >= 6
    assert measured["unchecked"] == 0
    assert measured["caught"] >= measured["unsafe"] - 2
    assert measured["blocked"] <= 4
    assert measured["released_identical"] == measured["released"] > 0
    assert measured["median_step_unsafe"] < 20
    assert measured["wall_time_saved_unsafe"] > 0.3
    verified = subprocess.run(
        [sys.executable, "-m", "lvd.guard.audit", demo / "guarded/audit.jsonl"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert verified.stdout.startswith(f"{measured['n']} records, unbroken")


def test_shuffled_labels_are_at_chance(demo: Path, tmp_path: Path) -> None:
    """Over five seeds, against the true test labels: the 99.9% t-intervals hold 0.5.

    The true labels show that the same short run would learn what there is to learn.
    """
    _, auroc = _short_run(tmp_path / "true", read_samples(CAPTURE), seed=0)
    print(f"true labels, AUROC: {auroc:.3f}")
    assert auroc > 0.65
    measured = np.array([_short_run(tmp_path / str(seed), _dealt_anew(seed), seed) for seed in range(5)])
    reach = stats.t.ppf(0.9995, df=len(measured) - 1) * stats.sem(measured)
    for name, mean, within, seeds in zip(
        ("balanced accuracy", "AUROC"), measured.mean(axis=0), reach, measured.T, strict=True
    ):
        print(f"shuffled labels, {name}: {mean:.3f} +- {within:.3f}, seeds {np.round(seeds, 3)}")
        assert abs(mean - 0.5) <= within
        assert abs(mean - 0.5) < 0.15


def _dealt_anew(seed: int) -> list[Sample]:
    """The demo's samples, with the labels of train and val shuffled."""
    samples = read_samples(CAPTURE)
    learned = [row for row, sample in enumerate(samples) if sample.split != "test"]
    dealt = [samples[row].categories for row in learned]
    random.Random(seed).shuffle(dealt)
    for row, categories in zip(learned, dealt, strict=True):
        samples[row] = replace(samples[row], categories=categories)
    return samples


def _short_run(folder: Path, samples: list[Sample], seed: int) -> tuple[float, float]:
    """A small trunk and heads of the first steps, on the demo's x0 and these labels; eta is all of them.

    The rule's balanced accuracy, and the AUROC of a sample's mean score: the rule may say the same of all.
    """
    capture = folder / "capture"
    shutil.copytree(CAPTURE, capture, copy_function=os.symlink)
    write_samples(capture, samples)

    size = EncoderSize(width=32, layers=2, heads=2)
    fit = Fit(epochs=2, batch_size=32, learning_rate=3e-3, weight_decay=0.05, shift=2)
    head = Fit(epochs=10, batch_size=4096, learning_rate=1e-2, weight_decay=1.0)
    recipe = DetectorRecipe(init="trunk", head=head, network=head)
    job = Job(capture, folder / "run", seed, size, Machine(accelerator="cpu"), LoggerConfig(), {})
    assert run_trunk(job, TrunkRecipe(fit=fit, batches=50), force=False).status == "done"
    for step in range(STEPS):
        for name in CATEGORY_NAMES:
            assert run_cell(job, Cell(name, step), recipe, force=False).status == "done"
    (evaluation,), _ = evaluate_runs(capture, [job.run], EvaluationRecipe(eta=STEPS, examples=0))
    found = evaluation.decision.summary
    assert found.tpr is not None
    assert found.fpr is not None
    scores = pd.read_csv(job.run / "evaluation/scores.csv", keep_default_na=False)
    test = scores[(scores["split"] == "test") & (scores["step"] < STEPS)].astype({"score": float})
    mean = test.groupby("sample_id").agg(label=("label", "first"), score=("score", "mean"))
    return (found.tpr + 1 - found.fpr) / 2, float(roc_auc_score(mean["label"] != "", mean["score"]))
