"""The trunk's own outputs as the detector of all categories and steps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import NAMES, STEPS
from lvd.config import EvaluateConfig
from lvd.decide.recipe import EvaluationRecipe
from lvd.detect.bank import unified_check, unified_scores
from lvd.errors import LvdError
from lvd.evaluation.run import capture_to_measure, evaluate_runs
from lvd.guard.bundle import load_bundle
from lvd.guard.guard import Guard
from lvd.labelling.suggest import of_run
from lvd.latents.reader import CaptureReader
from lvd.sweep.results import read_result
from lvd.tracking import LoggerConfig

RECIPE = EvaluationRecipe(detector="unified", eta=2, examples=0)


@pytest.fixture
def trunk_alone(trained_run: Path, tmp_path: Path) -> Path:
    """A run with a trunk, and no head."""
    run = Path(shutil.copytree(trained_run, tmp_path / "tiny"))
    for name in NAMES:
        shutil.rmtree(run / name)
    return run


def test_a_trunk_alone_is_measured_exported_and_guards_as_it_was_measured(
    capture: Path, trunk_alone: Path
) -> None:
    (found,), _ = evaluate_runs(capture, [trunk_alone], RECIPE)
    summary = json.loads((trunk_alone / "evaluation" / "summary.json").read_text())
    assert (summary["detector"], summary["detectors"], summary["detectors_missing"]) == ("unified", 1, [])
    assert found.decision.summary.auroc is not None
    assert found.decision.summary.auroc > 0.8

    assert found.bundle is not None
    bundle = load_bundle(trunk_alone / "bundle", found.bundle)
    assert bundle.info.detector == "unified"
    assert {path.name for path in (trunk_alone / "bundle").resolve().iterdir() if path.is_dir()} == {"trunk"}
    assert "one network for all categories and steps" in (trunk_alone / "bundle" / "README.md").read_text()

    reader = CaptureReader(capture)
    scores = pd.read_csv(trunk_alone / "evaluation" / "scores.csv", dtype={"sample_id": str})
    rows = [row for row, sample in enumerate(reader.samples) if sample.split == "test"]
    session = Guard(bundle).session(samples=len(rows), steps=STEPS)
    for step in range(STEPS):
        session.check(step, torch.from_numpy(reader.step(step).read(rows)))
    for row, decision in zip(rows, session.close(), strict=True):
        own = scores[scores["sample_id"] == reader.samples[row].sample_id]
        table = own.pivot_table(index="step", columns="category", values="score")[list(NAMES)].to_numpy()
        np.testing.assert_allclose(decision.scores, table[: len(decision.scores)], atol=1e-4)
        assert decision.outcome in ("safe", "unsafe")


def test_suggestions_are_those_of_the_bundles_detector(capture: Path, trunk_alone: Path) -> None:
    evaluate_runs(capture, [trunk_alone], RECIPE)
    suggested = of_run(CaptureReader(capture), trunk_alone)
    assert len(suggested.scores) == len(suggested.decisions) == len(CaptureReader(capture).samples)


def test_a_trunk_that_is_stale_or_not_there_is_refused(capture: Path, trunk_alone: Path) -> None:
    result = json.loads((trunk_alone / "trunk" / "result.json").read_text())
    (trunk_alone / "trunk" / "result.json").write_text(json.dumps({**result, "config_digest": "0" * 16}))
    with pytest.raises(LvdError, match=r"was trained on other data or labels .* task=trunk"):
        evaluate_runs(capture, [trunk_alone], RECIPE)
    shutil.rmtree(trunk_alone / "trunk")
    with pytest.raises(LvdError, match="has no trunk, which its detectors need"):
        evaluate_runs(capture, [trunk_alone], RECIPE)


def test_trunks_alone_are_laid_side_by_side(capture: Path, trunk_alone: Path) -> None:
    other = Path(shutil.copytree(trunk_alone, trunk_alone.with_name("other")))
    config = EvaluateConfig(
        detector="unified",
        compare=["tiny", "other"],
        captures=str(capture.parent),
        runs=str(trunk_alone.parent),
        logger=LoggerConfig(),
    )
    assert capture_to_measure(config) == capture
    _, compared = evaluate_runs(capture, config.run_dirs, RECIPE)
    assert compared is not None
    first, second = compared.costs
    trunk = read_result(other / "trunk")
    assert trunk is not None
    assert (second.detectors, second.parameters) == (1, trunk.sizes["parameters"])
    assert second.train_seconds == trunk.seconds
    assert second.bytes == sum(
        (other / "trunk" / name).stat().st_size for name in ("config.json", "model.safetensors")
    )
    assert first.check_milliseconds is not None
    assert first.check_milliseconds > 0
    assert all(
        difference is None or difference.value == 0
        for rates in compared.differences.values()
        for differences in rates.values()
        for difference in differences
    )


def test_a_check_by_the_trunks_outputs_gives_its_scores(capture: Path, trunk_alone: Path) -> None:
    reader = CaptureReader(capture)
    rows = [0, 3, 5]
    scores = unified_check(trunk_alone, 1)(torch.from_numpy(reader.step(1).read(rows)))
    torch.testing.assert_close(scores, unified_scores(reader, trunk_alone)[rows, 1])
