"""Detectors on other schedules: what is made of each, once and on the run's splits, and what is measured."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch

from conftest import MEASURED, capture_info
from lvd.capture import recorder
from lvd.capture.load import load_pipeline
from lvd.capture.source import Source
from lvd.decide.rules import Vote
from lvd.demo.draw import GENERATOR
from lvd.demo.recogniser import Verdict
from lvd.demo.scenes import CATEGORY_NAMES, all_captions, caption_of
from lvd.detect.levels import TrainedLevels
from lvd.detect.recipe import EncoderSize, Fit, Machine, TrunkRecipe
from lvd.guard.bundle import BundleInfo
from lvd.guard.export import export_bundle
from lvd.guard.verify import BUNDLE_VERSION
from lvd.latents import journal, writer
from lvd.latents.format import SPLITS, Sample, read_samples
from lvd.latents.reader import CaptureReader
from lvd.sweep.job import Job, run_trunk
from lvd.tracking import LoggerConfig
from support.commands import ROOT
from support.samplers import levels_of

sys.path.append(str(ROOT / "benchmarks"))

import schedules
import schedules_plan
import schedules_table
from schedules_table import Scores, markdown, measured

SMALL = ["encoder.width=16", "encoder.layers=1", "encoder.heads=2", "trunk.batches=4", "trunk.fit.epochs=1"]
SHAPE = (16, 8, 8, 8)  # of the demo's latents
STEPS = 3


def run_samples() -> list[Sample]:
    """Of each split a video of each category and three safe ones, each of a prompt that names its subject."""
    subjects = [*CATEGORY_NAMES, "barrel", "lamp", "medkit"]
    named = {subject: [c for c in all_captions() if c.wording == subject] for subject in subjects}
    return [
        Sample(
            f"{split}_{subject.replace(' ', '_')}",
            *(named[subject][place].text,) * 2,
            seed=place,
            categories=(subject,) if subject in CATEGORY_NAMES else (),
            split=split,
        )
        for place, split in enumerate(SPLITS)
        for subject in subjects
    ]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """captures/demo and runs/demo of few DDIM steps, with a trunk and a bundle."""
    folder, samples = tmp_path_factory.mktemp("demo"), run_samples()
    scheduler = diffusers.DDIMScheduler.from_pretrained(GENERATOR / "scheduler")
    info = capture_info(
        latent_shape=SHAPE, category_names=CATEGORY_NAMES, noise_levels=levels_of(scheduler, STEPS)
    )
    capture, run = folder / "captures" / "demo", folder / "runs" / "demo"
    writer.begin(capture, info, samples)
    x0 = torch.randn(len(samples), STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))
    journal.append(capture, [sample.sample_id for sample in samples], x0.half())
    writer.finish(capture)

    size = EncoderSize(width=16, layers=1, heads=2)
    job = Job(capture, run, 0, size, Machine(accelerator="cpu"), LoggerConfig(), {})
    fit = Fit(epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0.05)
    assert run_trunk(job, TrunkRecipe(fit=fit, batches=2), force=False).status == "done"
    rule = Vote(STEPS, 0.5, 0.5)
    made_for = BundleInfo(BUNDLE_VERSION, rule, CATEGORY_NAMES, info.origin, MEASURED, "unified")
    export_bundle(run / "bundle", run, made_for)
    return folder


@pytest.fixture
def command(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(
        schedules,
        "SCHEDULES",
        {
            "ddim50": schedules_plan.Schedule("DDIM, 3 (control)", STEPS),
            "lcm8": schedules_plan.Schedule("LCM, 2", 2, "LCMScheduler"),
            "dpm25": schedules_plan.Schedule("DPM-Solver++, 2", 2, "DPMSolverMultistepScheduler"),
        },
    )
    monkeypatch.setattr(schedules_table, "ALPHA", 0.5)  # three safe val prompts calibrate it

    def as_asked(capture: CaptureReader, vae: Any, recogniser: Any) -> Iterator[Verdict]:
        """Every video shows what its prompt names; one is unclear."""
        for sample in capture.samples:
            (subject,) = caption_of(sample.prompt).subjects
            yield Verdict(subject, "", 0.5 if sample.sample_id == "test_lamp" else 1.0, 1.0)

    monkeypatch.setattr(schedules, "look", as_asked)

    def with_no_network(source: Source) -> Any:
        """Its scheduler steps an answer that costs nothing."""
        pipe: Any = load_pipeline(source)
        pipe.unet.forward = lambda x_t, *_, **__: SimpleNamespace(sample=0.1 * x_t)
        return pipe

    monkeypatch.setattr(recorder, "load_pipeline", with_no_network)

    def run(*arguments: str) -> int:
        places = ["--run", str(demo / "runs" / "demo"), "--capture", str(demo / "captures" / "demo")]
        given = [*SMALL, *places, "--output", str(tmp_path / "out"), *arguments]
        monkeypatch.setattr(sys, "argv", ["schedules.py", *given])
        return schedules.main()

    return run


def test_each_schedule_is_made_once_on_the_splits_of_the_run_and_all_stand_in_one_table(
    command: Callable[..., int],
    demo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("--only", "lcm8") == 0
    assert command("--only", "ddim50", "--batch-size", "12") == 0
    capsys.readouterr()

    samples = {s.sample_id: s for s in read_samples(demo / "captures" / "demo")}
    for name, steps in (("lcm8", 2), ("ddim50", STEPS)):
        capture = CaptureReader(tmp_path / "out" / name / "capture")
        assert capture.info.stored_steps == steps
        assert [s.split for s in capture.samples] == [s.split for s in samples.values()]
        assert [s.sample_id for s in capture.samples if not s.is_labelled] == ["test_lamp"]
        assert all(s.categories == samples[s.sample_id].categories for s in capture.samples if s.is_labelled)

    for made_again in ("train_trunk", "look", "logits_of"):
        monkeypatch.setattr(schedules, made_again, None)
    monkeypatch.setattr(recorder, "load_pipeline", None)
    assert command("--only", "lcm8", "ddim50") == 0
    table = tmp_path / "table.json"
    assert command("--json", str(table)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:2] for line in lines if line.startswith("| D") or line.startswith("| L")] == [
        ["| DDIM, 3 (control): 5 unsafe + 2 safe", "50 steps"],
        ["| LCM, 2: 5 unsafe + 2 safe", "50 steps"],
    ] * 2
    rows = json.loads(table.read_text())["schedules"]
    assert list(rows) == ["ddim50", "lcm8"]
    assert (rows["lcm8"]["scheduler"], rows["lcm8"]["unlabelled"]) == ("LCMScheduler", 1)
    for row in rows.values():
        trained, own, difference, guard = (row["lines"][kind] for kind in schedules_table.LINES)
        assert (trained["rule"], own["rule"], guard["rule"]) == ("sequential", "sequential", "vote")
        for share in ("10%", "20%", "40%", "60%", "80%", "100%"):
            areas = [of["auroc"][share]["value"] for of in (trained, own)]
            assert difference["auroc"][share]["value"] == pytest.approx(areas[0] - areas[1])
            assert guard["auroc"][share] == trained["auroc"][share]  # its bundle is unified
        assert difference["tpr"]["value"] == pytest.approx(trained["tpr"] - own["tpr"])
        assert difference["fpr"]["n"] == 2


def test_a_mistake_is_told_in_a_sentence(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command() == 1
    assert "no schedule is in" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert command("--only", "lcm8", "--device", "cuda") == 1
        assert capsys.readouterr().err == "error: --device cuda: there is no GPU here\n"
    assert command("--run", str(tmp_path)) == 1
    assert str(tmp_path / "bundle") in capsys.readouterr().err


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_the_noise_levels_of_each_schedule_lie_among_those_of_fifty_ddim_steps(name: str) -> None:
    schedule, config = schedules.SCHEDULES[name], str(GENERATOR / "scheduler")
    kind = getattr(diffusers, schedule.scheduler or "DDIMScheduler")
    levels = TrainedLevels(levels_of(diffusers.DDIMScheduler.from_pretrained(config), 50))
    positions = levels.positions(levels_of(kind.from_pretrained(config), schedule.steps))
    assert len(positions) == schedule.steps
    assert positions == sorted(positions)
    assert positions == pytest.approx(range(50)) or name != "ddim50"


def test_a_schedule_that_cannot_be_made_keeps_no_other_from_it(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(made: schedules_plan.Made, *_: Any) -> None:
        if made.directory.name == "dpm25":
            raise schedules.LvdError("too few videos")

    monkeypatch.setattr(schedules, "trained", trained)
    monkeypatch.setattr(schedules, "scored", lambda *_: None)
    monkeypatch.setattr(schedules, "row_of", lambda *_: None)
    assert command("--only", "all") == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "error: dpm25: too few videos"
    assert [line for line in said.out.splitlines() if line.endswith(": 24 videos")] == [
        f"{name}: 24 videos" for name in ("ddim50", "lcm8", "dpm25")
    ]


def test_few_samples_are_of_every_split_and_category() -> None:
    samples = run_samples()
    few = schedules_plan.some_of(samples, 18)
    kinds = {(s.split, s.categories) for s in samples}
    of = {s.sample_id: (s.split, s.categories) for s in samples}
    assert {of[s.sample_id] for s in few} == kinds
    assert len(few) == len(kinds) == 18
    assert not any(s.is_labelled for s in few)
    assert [s.sample_id for s in schedules_plan.some_of(samples, None)] == [s.sample_id for s in samples]


def test_a_guard_decides_by_its_trained_steps_whatever_the_schedule() -> None:
    levels = TrainedLevels((0.9, 0.7, 0.5, 0.3))
    logits = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    same, told_at = schedules.as_guarded(logits, levels.levels, levels)
    assert torch.equal(same, logits)
    assert told_at.tolist() == [0, 1, 2, 3]
    coarse, told_at = schedules.as_guarded(logits[:, :2], (0.7, 0.3), levels)
    assert torch.equal(coarse[:, [0, 1, 3]], logits[:, [0, 0, 1]])  # before its first check, what that tells
    torch.testing.assert_close(coarse[:, 2], (logits[:, 0] + logits[:, 1]) / 2)
    assert told_at.tolist() == [0, 0, 1, 1]
    levels_of_seven = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
    fine, told_at = schedules.as_guarded(torch.zeros(5, 7, 2), levels_of_seven, levels)
    assert fine.shape == logits.shape
    assert told_at.tolist() == [0, 2, 4, 6]


def test_the_same_scores_do_not_differ_and_what_cannot_be_calibrated_is_a_dash(demo: Path) -> None:
    capture = CaptureReader(demo / "captures" / "demo")
    rows = {
        split: [r for r, s in enumerate(capture.samples) if s.split == split] for split in ("val", "test")
    }
    every = [*rows["val"], *rows["test"]]
    right = torch.tensor([[capture.samples[r].has(name) for name in CATEGORY_NAMES] for r in every])
    scores = (0.1 + 0.8 * right.float())[:, None].repeat(1, STEPS, 1)
    test = scores[len(rows["val"]) :]
    row = measured(
        "DDIM", capture, rows, Scores(scores, scores, test, test, torch.arange(STEPS)), Vote(STEPS, 0.5, 0.5)
    )
    assert "needs" in row["lines"]["own"]["not_calibrated"]
    *_, own, difference, guard = markdown([row]).splitlines()
    assert own.startswith("|  | own | 1.000 (")
    assert own.endswith("| – | – | – |")
    assert difference == f"|  | difference |{' +0.000 |' * 6} – | – | – |"
    assert guard.count("1.000 (") == 7
    assert "| 2.0 |" in guard  # two of three flags
    assert "| 0.000 (0.000 to " in guard
    every_safe = [replace(sample, categories=()) for sample in capture.samples]
    capture.samples = every_safe
    with pytest.raises(schedules.LvdError, match="DDIM: its 8 test videos are all of one kind"):
        measured(
            "DDIM",
            capture,
            rows,
            Scores(scores, scores, test, test, torch.arange(STEPS)),
            Vote(STEPS, 0.5, 0.5),
        )
