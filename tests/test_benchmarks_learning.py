"""The learning curves: what is drawn, what is measured of it, and that a stopped one goes on."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from conftest import NAMES
from lvd.decide.intervals import auroc_interval
from lvd.decide.metrics import auroc as plain_auroc
from lvd.decide.rules import Vote
from lvd.errors import LvdError
from lvd.latents.format import UNLABELLED
from lvd.latents.reader import CaptureReader
from support.commands import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import learning_curves
import learning_table
from learning_draws import Part, drawn, on_val
from learning_figure import Line, Panel, figure
from learning_numbers import Estimate, accuracy, auroc, auroc_within

SMALL = ["encoder.width=16", "encoder.layers=1", "encoder.heads=2", "trunk.batches=4", "trunk.fit.epochs=1"]
SMALL += ["detector.head.epochs=2", "detector.network.epochs=1"]


# ---- what is drawn


def test_a_draw_has_so_many_videos_of_each_category_the_whole_test_split_and_safe_ones_in_proportion(
    capture: Path,
) -> None:
    reader = CaptureReader(capture)
    found = Part(reader, drawn(reader, 6, seed=0))
    of = {split: [s for s in found.samples if s.split == split] for split in ("train", "val", "test")}
    assert [sum(s.has(name) for s in of["train"]) for name in NAMES] == [6, 6]
    assert [sum(s.has(name) for s in of["val"]) for name in NAMES] == [2, 2]
    assert sum(s.is_safe for s in of["train"]) == 12  # half of the capture are safe
    assert of["test"] == [s for s in reader.samples if s.split == "test"]
    assert drawn(reader, 6, seed=0).keys() < drawn(reader, 9, seed=0).keys()
    assert drawn(reader, 6, seed=0).keys() != drawn(reader, 6, seed=1).keys()
    assert len(drawn(reader, None, seed=0)) == len(reader.samples)
    with pytest.raises(LvdError, match=r"--videos 600: the train split has 12 videos of alpha"):
        drawn(reader, 600, seed=0)


def test_prompts_are_drawn_before_further_videos_of_them_and_unlabelled_videos_are_not(capture: Path) -> None:
    reader = CaptureReader(capture)
    train = [row for row, s in enumerate(reader.samples) if s.split == "train" and s.has("alpha")]
    for place, row in enumerate(train):
        prompt_id = "one" if place < 8 else str(row)
        reader.samples[row] = replace(reader.samples[row], prompt_id=prompt_id)
    reader.samples[train[-1]] = replace(reader.samples[train[-1]], categories=UNLABELLED)
    for seed in range(5):
        samples = drawn(reader, 4, seed)
        alpha = [s for s in samples.values() if s.split == "train" and s.has("alpha")]
        assert len({s.prompt_id for s in alpha}) == 4
        assert train[-1] not in samples


def test_a_part_reads_the_rows_of_its_capture_and_has_a_digest_of_its_own(capture: Path) -> None:
    reader = CaptureReader(capture)
    rows = [5, 2, 40]
    part = Part(reader, {row: reader.samples[row] for row in rows})
    assert np.array_equal(part.step(1).read([0, 2]), reader.step(1).read([5, 40]))
    assert len(part.step(1)) == 3
    assert part.latents_digest != reader.latents_digest


def test_on_val_no_test_sample_is_read(capture: Path) -> None:
    reader = CaptureReader(capture)
    halved = on_val(reader)
    split = {s.sample_id: s.split for s in reader.samples}
    assert {split[s.sample_id] for s in halved.samples if s.split == "test"} == {"val"}
    assert {split[s.sample_id] for s in halved.samples if s.split == "val"} == {"val"}
    assert len(halved.samples) == sum(s.split != "test" for s in reader.samples)


# ---- what is measured


def test_auroc_and_its_interval_are_the_evaluations_where_there_is_one_draw() -> None:
    rng = np.random.default_rng(0)
    label, prompts = rng.random(200) < 0.4, np.arange(200) // 2
    score = rng.normal(size=200) + label
    found = auroc(score[None], label, prompts)
    assert found.mean == pytest.approx(plain_auroc(label, score))
    low, high = auroc_interval(label, score, prompts)
    assert found.half == pytest.approx((high - low) / 2, rel=0.05)  # theirs is on another scale


def test_within_a_prompt_what_only_the_prompt_tells_is_worth_nothing() -> None:
    prompts = np.repeat(np.arange(50), 4)
    label = np.tile([True, False, False, False], 50)
    label[:100] = np.tile([True, True, True, False], 25)
    of_prompt = np.where(prompts < 25, 1.0, 0.0)
    assert auroc(of_prompt[None], label, prompts).mean > 0.7
    nothing = auroc_within(of_prompt[None], label, prompts)
    perfect = auroc_within(label[None].astype(float), label, prompts)
    assert nothing is not None
    assert perfect is not None
    assert (nothing.mean, perfect.mean) == (0.5, 1.0)
    assert auroc_within(of_prompt[None], prompts < 25, prompts) is None


def test_an_interval_widens_with_what_draws_differ_by_and_a_difference_of_the_same_is_none() -> None:
    label = np.tile([True, False], 100)
    scores = np.where(label, 0.9, 0.1)[None, :, None, None].repeat(3, axis=0)
    scores[:, :20] = 0.9  # 10 safe ones are blocked
    alike = accuracy(Vote(1, 1.0, 0.5), scores, label, np.arange(200))
    assert alike.mean == pytest.approx(0.95)
    assert alike.half == pytest.approx(1.972 * np.sqrt(0.95 * 0.05 / 199), rel=1e-3)
    scores[0, :60] = 0.9
    apart = accuracy(Vote(1, 1.0, 0.5), scores, label, np.arange(200))
    assert apart.half > 2 * alike.half
    same = apart.minus(apart)
    assert (same.mean, same.half) == (0, 0)


# ---- the command


@pytest.fixture
def curves(capture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    for module in (learning_curves, learning_table):
        monkeypatch.setattr(module, "VOTE", Vote(2, 0.6, 0.5))
        monkeypatch.setattr(module, "SHOWN", (0, 2))
    monkeypatch.setattr(learning_curves, "NETWORK_STEPS", (0, 2, 7))

    def run(*arguments: str) -> None:
        given = [str(capture), *SMALL, *arguments, "--output", str(tmp_path / "out"), "--videos", "3", "all"]
        monkeypatch.setattr(sys, "argv", ["learning_curves.py", *given])
        learning_curves.main()

    return run


def test_the_command_measures_all_kinds_of_detectors_goes_on_and_compares(
    curves: Callable[..., None],
    tmp_path: Path,
    trained_run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    curves("--draws", "2")
    printed = capsys.readouterr().out
    for line in ("| heads | 3 | 2 |", "| heads | all | 2 |", "| unified | 3 | 2 |"):
        assert line in printed, printed
    assert "test_samples: 16" in printed
    rows = json.loads((out / "table.json").read_text())["rows"]
    measured = {(row["detectors"], row["measure"]) for row in rows}
    of_trunk = {"accuracy", "AUROC 0", "AUROC 1", "AUROC 2"}
    of_networks = {"AUROC 0", "AUROC 2"}  # there is no step 7
    assert measured == {
        *product(("unified", "heads"), of_trunk),
        *product(("fine-tuned", "scratch"), of_networks),
    }
    assert all(0 <= row["low"] <= row["mean"] <= row["high"] <= 1 for row in rows)
    assert (out / "figure.svg").is_file()
    assert (out / "table.csv").read_text().count("\n") == 1 + len(rows)

    (out / "heads_all_1.safetensors").unlink()
    monkeypatch.setattr(learning_curves, "train_trunk", None)  # those that are there are not trained again
    curves("--draws", "2", "--against", str(out))
    printed = capsys.readouterr().out
    assert printed.count(" of 16: ") == 1
    assert f"less those of {out}, of the same draws" in printed
    assert "0.000 ±0.000" in printed.rsplit("less", 1)[1]
    assert set(re.findall(r"\d\.\d{3}", printed.rsplit("less", 1)[1])) == {"0.000"}
    assert json.loads((out / "table.json").read_text())["rows"] == rows

    shutil.copytree(trained_run, tmp_path / "runs" / "own")
    curves("--draws", "2", "--runs", str(tmp_path / "runs" / "own"))
    assert "| unified, run own | all | 1 |" in capsys.readouterr().out
    curves("--draws", "2", "--kinds", "unified", "--against", str(out), "--against-kind", "heads")
    lines = {(row["detectors"], row["videos"], row["measure"]): row["mean"] for row in rows}
    difference = lines["unified", "all", "AUROC 2"] - lines["heads", "all", "AUROC 2"]
    last = capsys.readouterr().out.rsplit("less heads", 1)[1]
    assert f"{difference:.3f} ±" in next(x for x in last.splitlines() if x.startswith("| unified | all |"))
    with pytest.raises(LvdError, match="--against-kind says what of --against"):
        curves("--against-kind", "heads")
    with pytest.raises(LvdError, match="--runs goes with --on test"):
        curves("--on", "val", "--runs", "runs/own")
    with pytest.raises(LvdError, match=r"Could not override 'trunk.batch'"):
        curves("trunk.batch=5")
    with pytest.raises(LvdError, match=r"settings.json has other settings than these: give another --output"):
        curves("trunk.batches=5", "--draws", "2")


def test_kinds_are_chosen_and_of_each_only_its_own_is_trained(
    curves: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(learning_curves, "train_trunk", None)
    curves("--draws", "1", "--kinds", "scratch")
    assert "| unified |" not in capsys.readouterr().out
    assert {path.stem.split("_")[0] for path in (tmp_path / "out").glob("*.safetensors")} == {"scratch"}


def test_a_fine_tuned_network_has_learned_beyond_its_trunk(
    curves: Callable[..., None], tmp_path: Path
) -> None:
    curves("detector.network.learning_rate=1e-2", "--draws", "1", "--kinds", "unified", "fine-tuned")
    outputs, tuned = (
        load_file(tmp_path / "out" / f"{kind}_all_0.safetensors") for kind in ("unified", "fine-tuned")
    )
    assert (outputs["2"] - tuned["2"]).abs().max() > 1e-3


# ---- the figure


def test_the_figure_reads_on_light_and_on_dark_and_names_its_lines() -> None:
    points = [(5.0, 0.7, 0.6, 0.8), (80.0, 0.9, 0.85, 0.95)]
    svg = figure([Panel("AUROC, step 0", [Line("heads", points), Line("unified", points)])], "videos")
    for text in ("AUROC, step 0", "heads", "unified", ">5<", ">80<", ">0.6<", ">1.0<"):
        assert text in svg
    assert not {"black", "white", "#000", "#fff"} & set(svg.replace('"', " ").split())


def test_scores_that_are_missing_are_no_right_decision() -> None:
    scores = torch.full((1, 2, 1, 1), float("nan")).numpy()
    assert accuracy(Vote(1, 1.0, 0.5), scores, np.array([True, False]), np.arange(2)).mean == 0
    assert isinstance(accuracy(Vote(1, 1.0, 0.5), scores, np.array([True, False]), np.arange(2)), Estimate)
