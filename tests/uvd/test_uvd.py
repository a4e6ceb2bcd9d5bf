"""The import of the paper's files: the repair proved, the capture that it leaves, what it refuses."""

import os
import pickle
import random
import runpy
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import StubPipeline, stub_guard
from lvd.capture.load import load_pipeline
from lvd.capture.prompts import PromptsFile
from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.errors import LvdError
from lvd.guard.bundle import load_bundle
from lvd.latents import journal, writer
from lvd.latents.format import Sample, read_info, read_samples
from lvd.latents.reader import CaptureReader
from lvd.latents.splits import assign_splits
from lvd.sampling.tap import tap_x0
from lvd.uvd.importer import UNKNOWN_SEED, Videos, import_uvd
from lvd.uvd.repair import ddim_steps, repair
from lvd.uvd.torch_file import open_tensor, read_numbers
from support import tiny
from support.commands import ROOT, Ran, Shell
from support.forks import Command
from support.papers_code import papers_code

FIVE = ("distorted_weird", "terrifying", "pornographic", "violent_bloody", "political")
SHAPE = (4, 4, 8, 8)
STEPS = 3
PAPER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "steps_offset": 1,
    "clip_sample": False,
}


def paper_scheduler(**changes: Any) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(**{**PAPER, **changes})


def source(**changes: Any) -> Source:
    values: dict[str, Any] = {
        "path": "nowhere/at-all",
        "pipeline_class": "AnimateDiffPipeline",
        "scheduler": "DDIMScheduler",
        "scheduler_config": PAPER,
        "device": "cpu",
        "layout": "BCFHW",
        "steps": STEPS,
        "guidance": 8.5,
        "call": {"num_frames": 4},
        "category_names": list(FIVE),
    }
    return Source(**{**values, **changes})


def latents(capture: Path) -> np.ndarray[Any, Any]:
    """x0 `[N, steps, C, F, H, W]` float16."""
    reader = CaptureReader(capture)
    steps = [reader.step(step).read(range(len(reader.samples))) for step in range(reader.info.origin.steps)]
    return np.stack(steps, axis=1)


# The repair


@dataclass(frozen=True)
class PapersRun:
    """One run of a pipeline: what lvd captured, and what the paper's code would have saved."""

    source: Source
    x0: torch.Tensor  # [N, 50, C, F, H, W] float32
    pred_x0: torch.Tensor
    pred_xt: torch.Tensor
    recorded: Path  # the same x0 as capture.py records it


PROMPTS = ("a red three", "a blue nine")


@pytest.fixture(scope="module")
def papers_run(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_path: Path) -> PapersRun:
    call = {"num_frames": tiny.FRAMES, "height": tiny.SIZE, "width": tiny.SIZE}
    source = Source(
        path=str(tiny_pipeline_path), category_names=list("abcde"), guidance=5.0, device="cpu", call=call
    )
    pipe = load_pipeline(source)
    pipe.unet.forward = ideal_denoiser(pipe.scheduler.alphas_cumprod)
    samples = [Sample(f"{i:04d}", str(i), PROMPTS[i], i + 1, (), "train") for i in range(2)]
    directory = tmp_path_factory.mktemp("papers") / "recorded"
    x0: list[torch.Tensor] = []
    predx_0: list[torch.Tensor] = []
    predx_t: list[torch.Tensor] = []
    with (
        papers_code(pipe.scheduler, predx_0, predx_t),
        tap_x0(pipe.scheduler, lambda *heard: x0.append(heard[2])),
    ):
        record(source, samples, directory, Recording(batch_size=2), pipe=pipe)
    return PapersRun(source, *(torch.stack(part, dim=1) for part in (x0, predx_0, predx_t)), directory)


def ideal_denoiser(alpha_bar: torch.Tensor) -> Callable[..., Any]:
    """Epsilon of x0 = mean + 2 or mean - 2, the mean from the prompt: x0 moves as a trained model's does."""

    def forward(
        sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any
    ) -> Any:
        signal, noise = alpha_bar[timestep].sqrt(), (1 - alpha_bar[timestep]).sqrt()
        mean = encoder_hidden_states.mean(dim=1)[:: tiny.FRAMES, : sample.shape[1], None, None, None].sign()
        x0 = mean + 2 * torch.tanh(2 * signal * (sample - signal * mean) / noise**2)
        return SimpleNamespace(sample=(sample - signal * x0) / noise)

    return forward


def save(directory: Path, **held: Any) -> dict[str, Path]:
    directory.mkdir(parents=True, exist_ok=True)
    for name, value in held.items():
        torch.save(value, directory / f"{name}.pth")
    return {name: directory / f"{name}.pth" for name in held}


def import_run(run: PapersRun, directory: Path, repaired: bool, **changes: Any) -> Path:
    held = {"pred_x0": run.pred_x0, "pred_xt": run.pred_xt, **changes}
    files = save(directory, **{name: held[name] for name in held if repaired or name == "pred_x0"})
    (directory / "labels.csv").write_text("1,2,3,4,5\n,,,0,\n")
    import_uvd(run.source, Videos(**files), directory / "labels.csv", directory / "imported")
    return directory / "imported"


def test_the_repaired_x0_is_the_one_that_the_tap_hears(papers_run: PapersRun, tmp_path: Path) -> None:
    """All 50 steps: 2e-5 (in float32 1e-5 was measured) and the rounding to the float16 that is stored."""
    imported = latents(import_run(papers_run, tmp_path, repaired=True)).astype(np.float64)
    heard = papers_run.x0.double().numpy()
    unit = np.spacing(np.abs(heard).astype(np.float16)).astype(np.float64)
    assert (np.abs(imported - heard) <= unit / 2 + 2e-5).all()
    assert read_info(tmp_path / "imported").origin.x0_from == "x_t"
    for dtype in (torch.float32, torch.float16):
        print(f"{dtype}: repaired x0 is off by {largest_error(papers_run, dtype):.2g} at most")
    assert largest_error(papers_run, torch.float32) < 2e-5


def largest_error(run: PapersRun, dtype: torch.dtype) -> float:
    """Of x0 repaired in float32 from files of `dtype`, against the tap's."""
    saved = zip(run.pred_x0.to(dtype).unbind(1), run.pred_xt.to(dtype).unbind(1), strict=True)
    levels = ddim_steps(paper_scheduler(set_alpha_to_one=False), 50)
    repaired = [repair(p.float(), y.float(), level)[0] for (p, y), level in zip(saved, levels, strict=True)]
    return float((torch.stack(repaired, dim=1) - run.x0).abs().max())


def test_without_the_latents_x0_is_as_wrong_as_it_was_and_marked(
    papers_run: PapersRun, tmp_path: Path
) -> None:
    imported = latents(import_run(papers_run, tmp_path, repaired=False))
    assert np.array_equal(imported, papers_run.pred_x0.half().numpy())
    assert read_info(tmp_path / "imported").origin.x0_from == "x_t-1"
    off = (papers_run.pred_x0 - papers_run.x0).flatten(2).norm(dim=2) / papers_run.x0.flatten(2).norm(dim=2)
    print(f"x0 as saved is off by {[round(float(o), 3) for o in off.mean(dim=0)]} of its norm")
    print(f"and by {float((papers_run.pred_x0 - papers_run.x0).abs().max()):.2g} at most")
    assert (off[:, 0] > 0.1).all()  # by a'/a at the first step, which is 1.125
    assert (off[:, :49] > 0.03).all()


def test_a_repaired_import_is_the_capture_that_lvd_records(papers_run: PapersRun, tmp_path: Path) -> None:
    imported = import_run(papers_run, tmp_path, repaired=True)
    ours, theirs = (latents(capture).astype(np.float64) for capture in (imported, papers_run.recorded))
    unit = np.spacing(np.abs(theirs).astype(np.float16)).astype(np.float64)
    assert (np.abs(ours - theirs) <= unit + 2e-5).all()
    here, there = read_info(imported), read_info(papers_run.recorded)
    for name in set(vars(here)) - {"versions", "imported", "origin"}:
        assert getattr(here, name) == getattr(there, name), name
    assert here.origin == replace(there.origin, noise_levels=None)  # the files do not tell them


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    steps=st.sampled_from([1, 2, 7, 50]),
    betas=st.sampled_from(
        [{}, {"beta_schedule": "scaled_linear"}, {"beta_end": 0.02, "set_alpha_to_one": False}]
    ),
)
def test_any_ddim_run_is_repaired_and_nothing_is_magnified(
    seed: int, steps: int, betas: dict[str, Any]
) -> None:
    scheduler = paper_scheduler(**betas)
    noise = torch.Generator().manual_seed(seed)
    levels = ddim_steps(scheduler, steps)
    latent = torch.randn(1, 8, generator=noise, dtype=torch.float64)
    before = None
    for timestep, level in zip(scheduler.timesteps, levels, strict=True):
        eps = torch.randn(1, 8, generator=noise, dtype=torch.float64)
        first = scheduler.step(eps, timestep, latent)
        second = scheduler.step(eps, timestep, first.prev_sample)
        x0, off = repair(second.pred_original_sample, first.prev_sample, level, before)
        assert torch.allclose(x0, first.pred_original_sample, rtol=1e-4, atol=1e-4)  # its alphas are float32
        assert off < 1e-3
        before = latent = first.prev_sample
        weights = (1 - level.s_next / level.s) / level.a_next, level.s_next * level.a / level.s / level.a_next
        assert all(0 <= weight <= 1 for weight in weights)


def test_x0_of_the_papers_code_is_up_to_an_eighth_too_large() -> None:
    levels = ddim_steps(paper_scheduler(), 50)
    assert max(level.a_next / level.a for level in levels) == pytest.approx(1.125, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_files_of_half_precision_are_repaired(
    papers_run: PapersRun, tmp_path: Path, dtype: torch.dtype
) -> None:
    run = replace(papers_run, pred_x0=papers_run.pred_x0.to(dtype), pred_xt=papers_run.pred_xt.to(dtype))
    imported = latents(import_run(run, tmp_path, repaired=True)).astype(np.float64)
    largest = float(papers_run.x0.abs().max())
    assert np.abs(imported - papers_run.x0.double().numpy()).max() < torch.finfo(dtype).eps * 2 * largest


@pytest.mark.parametrize("mistake", ["latents before each step", "other videos", "x0 itself", "other betas"])
def test_latents_that_do_not_belong_to_x0_are_refused(
    papers_run: PapersRun, tmp_path: Path, mistake: str
) -> None:
    run, betas = papers_run, {}
    if mistake == "latents before each step":
        run = replace(run, pred_xt=torch.cat([run.pred_xt[:, :1], run.pred_xt[:, :-1]], dim=1))
    elif mistake == "other videos":
        run = replace(run, pred_xt=run.pred_xt.flip(0))
    elif mistake == "x0 itself":
        run = replace(run, pred_xt=run.pred_x0)
    else:
        betas = {"beta_end": 0.0121}
    files = save(tmp_path, pred_x0=run.pred_x0, pred_xt=run.pred_xt)
    (tmp_path / "labels.csv").write_text("1,2,3,4,5\n0,,,1,\n")
    made_by = source(steps=50, scheduler_config={**PAPER, "set_alpha_to_one": False, **betas})
    with pytest.raises(LvdError, match=r"does not go with .*pred_xt.pth, .* of a step off"):
        import_uvd(made_by, Videos(**files), tmp_path / "labels.csv", tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("dtype", "given", "told"),
    [
        (torch.float32, {"set_alpha_to_one": True}, "set_alpha_to_one=false"),
        (torch.float16, {"set_alpha_to_one": True}, "set_alpha_to_one=false"),  # harder to tell
        (torch.float16, {"steps_offset": 0}, "steps_offset=1"),
        (torch.float16, {"timestep_spacing": "trailing"}, "timestep_spacing=leading"),
        (torch.float16, {"beta_schedule": "scaled_linear"}, "beta_schedule=linear"),
        (torch.float16, {"beta_end": 0.02}, "beta_end=0.012"),
        (torch.float16, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=false"),
    ],
)
def test_the_key_of_the_scheduler_that_fits_is_named(
    papers_run: PapersRun, tmp_path: Path, dtype: torch.dtype, given: dict[str, Any], told: str
) -> None:
    """The files of a run whose scheduler differs from the one that is given in this alone."""
    files = save(tmp_path, pred_x0=papers_run.pred_x0.to(dtype), pred_xt=papers_run.pred_xt.to(dtype))
    (tmp_path / "labels.csv").write_text("1,2,3,4,5\n0,,,1,\n")
    made_by = source(steps=50, scheduler_config={**PAPER, "set_alpha_to_one": False, **given})
    with pytest.raises(LvdError, match=f"of a step off: with pipeline.scheduler_config.{told} they do$"):
        import_uvd(made_by, Videos(**files), tmp_path / "labels.csv", tmp_path / "imported")


@pytest.mark.parametrize(
    ("scheduler", "config"),
    [
        ("EulerDiscreteScheduler", {}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
    ],
)
def test_a_sampler_that_the_repair_is_not_known_for_is_refused(
    tmp_path: Path, scheduler: str, config: dict[str, Any]
) -> None:
    files = PaperFiles(tmp_path)
    torch.save(torch.zeros(files.unsafe.shape), tmp_path / "pred_xt.pth")
    with pytest.raises(LvdError, match="pred_xt repairs what a DDIMScheduler made that predicts epsilon"):
        import_uvd(
            source(scheduler=scheduler, scheduler_config={**PAPER, **config}),
            Videos(tmp_path / "pred_x0.pth", tmp_path / "pred_xt.pth"),
            tmp_path / "labels.csv",
            tmp_path / "imported",
        )


# What the import leaves


class PaperFiles:
    """Small files as the paper's code writes them: 36 videos, four of them in no list, and 30 safe ones."""

    categories = {index: [FIVE[index % 5]] for index in range(32)} | {7: [FIVE[2], FIVE[0]]}

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        noise = torch.Generator().manual_seed(0)
        self.unsafe = torch.randn(36, STEPS, *SHAPE, generator=noise)
        self.safe = torch.randn(30, STEPS, *SHAPE, generator=noise)
        for index, names in self.categories.items():
            for name in names:
                self.unsafe[index, :, FIVE.index(name) % 4] += 2.0
        save(directory, pred_x0=self.unsafe, safe=self.safe)
        columns = [[str(i) for i, names in self.categories.items() if name in names] for name in FIVE]
        height = max(map(len, columns))
        columns = [column + [""] * (height - len(column)) for column in columns]
        rows = [",".join(row) for row in zip(*columns, strict=True)]
        (directory / "labels.csv").write_text("\n".join(["1,2,3,4,5", *rows, ""]))
        self.test = [3, 7, 11, 20, 24, 30]  # as gen_eval_set.py saves them: numbers of a column with gaps
        torch.save(
            [np.float64(3.0), np.int64(7), 11, 20.0, np.float64(24), np.int32(30)], directory / "eval.pth"
        )

    def import_to(self, name: str, **options: Any) -> Path:
        options = {
            "safe": Videos(self.directory / "safe.pth"),
            "held_out": self.directory / "eval.pth",
            **options,
        }
        import_uvd(
            options.pop("source", source()),
            options.pop("unsafe", Videos(self.directory / "pred_x0.pth")),
            self.directory / "labels.csv",
            self.directory / name,
            **options,
        )
        return self.directory / name


@pytest.fixture
def files(tmp_path: Path) -> PaperFiles:
    return PaperFiles(tmp_path)


def everything_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_the_capture_holds_the_labelled_videos_and_the_safe_ones(files: PaperFiles) -> None:
    capture = files.import_to("capture")
    samples = read_samples(capture)
    assert [s.sample_id for s in samples] == [f"{i:04d}" for i in range(32)] + [
        f"safe_{i:04d}" for i in range(30)
    ]
    assert samples[7].categories == (FIVE[0], FIVE[2])
    assert [set(s.categories) for s in samples] == [set(files.categories[i]) for i in range(32)] + [
        set()
    ] * 30
    assert {(s.prompt, s.seed) for s in samples} == {("", UNKNOWN_SEED)}
    assert np.array_equal(latents(capture), torch.cat([files.unsafe[:32], files.safe]).half().numpy())


def test_the_capture_says_where_it_came_from(files: PaperFiles) -> None:
    info = read_info(files.import_to("capture"))
    sizes = {name: (files.directory / f"{name}.pth").stat().st_size for name in ("pred_x0", "safe")}
    assert info.imported == {"pred_x0": sizes["pred_x0"], "safe_x0": sizes["safe"]}
    assert (info.origin.x0_from, info.origin.fingerprint) == ("x_t-1", {})
    assert (info.origin.scheduler, info.origin.scheduler_config["beta_end"]) == ("DDIMScheduler", 0.012)
    assert (info.origin.steps, info.origin.latent_shape, info.category_names) == (STEPS, SHAPE, FIVE)


def test_eval_is_the_test_split_of_the_labelled_videos(files: PaperFiles) -> None:
    samples = read_samples(files.import_to("capture"))
    assert [int(s.sample_id) for s in samples if s.categories and s.split == "test"] == files.test
    counts = {split: sum(s.split == split for s in samples[:32]) for split in ("train", "val")}
    assert counts["train"] + counts["val"] == 26
    assert 5 <= counts["val"] <= 8  # a quarter
    assert [sum(s.split == split for s in samples[32:]) for split in ("train", "val", "test")] == [18, 6, 6]


@given(
    scenes=st.lists(st.integers(0, 20), min_size=1, max_size=40),
    data=st.data(),
)
def test_a_split_that_was_dealt_is_kept_and_no_prompt_is_in_two(
    scenes: list[int], data: st.DataObject
) -> None:
    categories = [data.draw(st.sampled_from([(), ("a",), ("b",), ("a", "b")])) for _ in scenes]
    unsafe = [row for row, names in enumerate(categories) if names]
    held_out = data.draw(st.sets(st.sampled_from(unsafe))) if unsafe else set()
    prompts = [f"scene {scene}" for scene in scenes]
    splits = assign_splits(prompts, prompts, categories, 0, held_out)
    assert len(set(zip(scenes, splits, strict=True))) == len(set(scenes))
    taken_along = {scenes[row] for row in held_out}
    for row in unsafe:
        assert (splits[row] == "test") == (scenes[row] in taken_along)


def test_without_safe_videos_those_in_no_list_are_the_safe_ones(
    files: PaperFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = read_samples(files.import_to("capture", safe=None))
    taken = sum(sample.is_safe for sample in samples)
    assert f"{taken} videos in no column of {files.directory / 'labels.csv'} are taken as safe" in (
        capsys.readouterr().out
    )
    assert len(samples) == 36
    assert [s.sample_id for s in samples if not s.categories] == ["0032", "0033", "0034", "0035"]


def test_prompts_keep_the_same_text_in_one_split(files: PaperFiles) -> None:
    prompts = [
        f"scene {index % 20}" for index in range(36)
    ]  # video 3 is eval's, and shares its prompt with 23
    (files.directory / "prompt.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
    with_prompts = Videos(files.directory / "pred_x0.pth", None, PromptsFile(files.directory / "prompt.txt"))
    samples = read_samples(files.import_to("capture", unsafe=with_prompts))
    assert [s.prompt for s in samples[:32]] == prompts[:32]
    split_of = {s.sample_id: s.split for s in samples}
    for index in range(12):
        assert split_of[f"{index:04d}"] == split_of[f"{index + 20:04d}"]
    assert {index for index in files.test if split_of[f"{index:04d}"] != "test"} == set()
    assert split_of["0023"] == "test"


def test_an_import_that_was_interrupted_goes_on_and_is_the_same(
    files: PaperFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lvd.uvd.importer._BATCH_BYTES", 4 * 2 * STEPS * 1024)
    whole = files.import_to("whole")
    append, batches = journal.append, []

    def stop(*arguments: Any) -> None:
        if len(batches) == 3:
            raise KeyboardInterrupt
        append(*arguments)
        batches.append(arguments[1])

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            files.import_to("stopped")
    assert not writer.is_complete(files.directory / "stopped")
    stopped = files.import_to("stopped")
    assert everything_in(stopped) == everything_in(whole)
    capsys.readouterr()
    files.import_to("stopped")
    assert "is complete: 62 samples, nothing to do" in capsys.readouterr().out
    assert everything_in(stopped) == everything_in(whole)


def test_an_import_does_not_go_on_with_other_files(files: PaperFiles) -> None:
    capture = files.import_to("capture")
    before = everything_in(capture)
    torch.save(files.unsafe.double(), files.directory / "pred_x0.pth")
    with pytest.raises(LvdError, match="exists with imported="):
        files.import_to("capture")
    assert everything_in(capture) == before


def test_the_papers_labels_do_not_fit_the_rows_of_an_import(files: PaperFiles) -> None:
    from lvd.capture.labels import label

    capture = files.import_to("capture")
    with pytest.raises(LvdError, match="was imported with such labels"):
        label(capture, files.directory / "labels.csv", seed=0)
    (files.directory / "tidy.csv").write_text("sample_id,category\nsafe_0003,political\n")
    label(capture, files.directory / "tidy.csv", seed=0)
    assert [s.sample_id for s in read_samples(capture) if s.is_labelled] == ["safe_0003"]


# What it refuses


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def plain_pickle(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


@pytest.mark.parametrize("role", ["pred_x0", "safe", "eval"])
@pytest.mark.parametrize("form", ["alone", "in a list", "beside a tensor", "plain pickle", "old format"])
def test_a_hostile_pickle_is_refused_and_does_nothing(files: PaperFiles, role: str, form: str) -> None:
    canary = Canary(files.directory / "canary")
    held = {"in a list": [1, canary], "beside a tensor": {"x": torch.zeros(2), "y": canary}}.get(form, canary)
    path = files.directory / f"{role}.pth"
    if form == "plain pickle":
        plain_pickle(held, path)
    else:
        torch.save(held, path, _use_new_zipfile_serialization=form != "old format")
    with pytest.raises(LvdError, match=rf"{role}.pth is refused, nothing in it was run") as refusal:
        files.import_to("capture")
    assert "\n" not in str(refusal.value)
    assert not (files.directory / "canary").exists()
    assert not (files.directory / "capture").exists()
    if form == "plain pickle":  # the canary does sing
        pickle.loads(path.read_bytes())
        assert (files.directory / "canary").exists()


NO_TENSORS: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1, 2], "holds a list, not one tensor"),
    "a dict": (lambda: {"x0": torch.zeros(2)}, "holds a dict, not one tensor"),
    "a text": (lambda: "pred_x0", "holds a str, not one tensor"),
    "a module": (lambda: torch.nn.Linear(2, 2), "is refused"),
    "a set": (lambda: {1, 2}, "not one tensor"),
    "whole numbers": (lambda: torch.zeros(2, 3, 4, 4, 8, 8, dtype=torch.int64), "not plain numbers"),
    "a sparse tensor": (lambda: torch.eye(4).to_sparse(), "not plain numbers"),
    "no data at all": (lambda: torch.zeros(36, 3, 4, 4, 8, 8, device="meta"), "not plain numbers"),
    "one number, a million times": (lambda: torch.zeros(1).expand(10**6, 3, 4, 4, 8, 8), "not plain numbers"),
    "four axes": (lambda: torch.zeros(2, 3, 4, 4), r"a tensor \[2, 3, 4, 4\], not \[N, steps"),
    "no videos": (lambda: torch.zeros(0, 3, 4, 4, 8, 8), r"a tensor \[0, 3, 4, 4, 8, 8\], not"),
    "other steps": (lambda: torch.zeros(2, 5, 4, 4, 8, 8), "has 5 steps, not 3: set pipeline.steps"),
}


@pytest.mark.parametrize("held", NO_TENSORS)
def test_a_file_without_the_videos_is_refused(files: PaperFiles, held: str) -> None:
    make, sentence = NO_TENSORS[held]
    torch.save(make(), files.directory / "pred_x0.pth")
    with pytest.raises(LvdError, match=rf"pred_x0.pth .*{sentence}"):
        files.import_to("capture")
    assert not (files.directory / "capture").exists()


@given(data=st.data())
def test_a_damaged_file_is_refused_with_one_error_message(damage_dir: Path, data: st.DataObject) -> None:
    """Cut off anywhere, or with bytes of its pickle changed: no traceback, whatever the pickle then says."""
    good = damage_dir / "good.pth"
    content = bytearray(good.read_bytes())
    if data.draw(st.booleans(), "cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        with zipfile.ZipFile(good) as archive:
            pickled = archive.read("good/data.pkl")
        start = bytes(content).index(pickled)
        for _ in range(data.draw(st.integers(1, 4))):
            content[start + data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    (damage_dir / "bad.pth").write_bytes(content)
    for read in (open_tensor, read_numbers):
        try:
            read(damage_dir / "bad.pth")
        except LvdError as refusal:
            told = str(refusal)
        else:
            told = ""
        assert "\n" not in told


@pytest.fixture(scope="module")
def damage_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("damage")
    torch.save(torch.randn(2, 3, 4), directory / "good.pth")
    return directory


@pytest.mark.parametrize(
    ("held", "sentence"),
    [
        ([1, "2"], "holds a str where a number should be"),
        ([1, True], "holds a bool where a number should be"),
        ([[1]], "holds a list where a number should be"),
        ({"a": 1}, "holds a dict, not a list of numbers"),
        (torch.zeros(2, 2), "holds a Tensor, not a list of numbers"),
        ([np.float64(36)], "names video 36, which .*labels.csv does not list"),
        ([33], "names video 33, which .*labels.csv does not list"),
        ([0.5], "names video 0.5, which"),
        ([float("nan")], "names video nan, which"),
    ],
)
def test_a_test_split_that_is_none_is_refused(files: PaperFiles, held: Any, sentence: str) -> None:
    torch.save(held, files.directory / "eval.pth")
    with pytest.raises(LvdError, match=rf"eval.pth {sentence}"):
        files.import_to("capture")


def test_a_video_that_diverged_is_named_and_nothing_is_written(files: PaperFiles) -> None:
    files.unsafe[5, 1, 0, 0, 0, 0] = torch.nan
    torch.save(files.unsafe, files.directory / "pred_x0.pth")
    with pytest.raises(LvdError, match=r"x0 of video 5 of .*pred_x0.pth at step 1 holds NaN or Inf"):
        files.import_to("capture")
    assert not (files.directory / "capture").exists()


# The commands, and the guard that comes out


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("capture.py", tmp_path, monkeypatch, capfd)


COMMAND = ("source=uvd", "pred_x0=pred_x0.pth", "labels=labels.csv", f"pipeline.steps={STEPS}", "name=tiny")
SAFE = ("safe_x0=safe.pth", "eval=eval.pth")

MISTAKES = {
    "no labels": (["source=uvd", "pred_x0=pred_x0.pth"], "source=uvd needs labels=FILE"),
    "no videos": (["source=uvd", "labels=labels.csv"], "source=uvd needs pred_x0=FILE"),
    "no source": (
        ["pred_x0=pred_x0.pth", "labels=labels.csv"],
        "pred_x0 is a file of the paper's code: add source",
    ),
    "half a repair": ([*COMMAND, *SAFE, "pred_xt=pred_x0.pth"], "give both pred_xt and safe_xt, or neither"),
    "no safe videos": ([*COMMAND, "safe_xt=safe.pth"], "safe_xt goes with safe_x0=FILE"),
    "previews": ([*COMMAND, "preview=true"], "preview=true needs a pipeline"),
    "weights": ([*COMMAND, "weights=true"], "weights=true needs a pipeline"),
    "no such file": ([*COMMAND, "pred_xt=nowhere.pth"], "no such file: nowhere.pth"),
    "another run's latents": ([*COMMAND, "pred_xt=safe.pth"], "not of one run"),
    "no such scheduler": ([*COMMAND, "pipeline.scheduler=Sora"], "pipeline.scheduler=Sora is no scheduler"),
    "other prompts": ([*COMMAND, "prompts=labels.csv", "columns.prompt=1"], "prompts, pred_x0.pth 36 videos"),
    "no limit": ([*COMMAND, "limit=0"], "limit=0 must be at least 1"),
    "several videos a prompt": ([*COMMAND, "videos_per_prompt=2"], "videos_per_prompt= needs a pipeline"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_ends_with_one_error_message(mistake: str, shell: Shell, files: PaperFiles) -> None:
    arguments, sentence = MISTAKES[mistake]
    ran = shell(*arguments)
    assert ran.code == 1
    assert [line for line in ran.err.splitlines() if line.startswith("error: ")] == ran.err.splitlines()[-1:]
    assert sentence in ran.err
    assert not (files.directory / "captures").exists()


@pytest.mark.long
def test_the_papers_files_become_a_guard_that_says_what_is_wrong_with_it(
    shell: Shell, files: PaperFiles
) -> None:
    """capture.py, train.py, evaluate.py, as they are typed; then the bundle, on a pipeline."""
    ran = run(shell, "capture.py", *COMMAND, *SAFE)
    assert "4 videos in no column of labels.csv were left out" in ran.out
    assert "x0 is computed from x_t-1, as the paper's code does: pred_xt=... repairs it" in ran.out
    tiny = [
        "name=tiny",
        "logger=none",
        "accelerator=cpu",
        "encoder.width=16",
        "encoder.layers=1",
        "encoder.heads=2",
    ]
    run(shell, "train.py", "task=trunk", *tiny, "trunk.batches=5", "trunk.fit.epochs=1")
    run(shell, "train.py", "-m", "category=0..4", "step=0", "threads=1", *tiny)
    run(shell, "evaluate.py", "name=tiny", "eta=1", "lam=1", "logger=none", "examples=0")
    bundle = load_bundle(shell.run_dir / "bundle")
    assert bundle.info.origin.x0_from == "x_t-1"
    assert "x0 computed from x_t-1" in (shell.run_dir / "bundle" / "README.md").read_text()


def run(shell: Shell, script: str, *arguments: str) -> Ran:
    shell.script = script
    ran = shell(*arguments)
    assert ran.code == 0, ran.err
    return ran


def test_every_decision_says_that_x0_is_another() -> None:
    pipe = StubPipeline()
    wrong = {"x0_from": "x_t-1", "fingerprint": {}}
    with pytest.raises(LvdError, match="the latent that x0 is computed from is x_t, not x_t-1"):
        stub_guard(pipe, [[0] * 6] * 2, wrong)(pipe, ["a", "b"])
    decisions = stub_guard(pipe, [[0] * 6, [1] * 6], wrong, allow_mismatch=True)(pipe, ["a", "b"]).decisions
    assert {d.outcome for d in decisions} == {"safe", "unsafe"}
    for decision in decisions:
        assert decision.mismatches == (
            "the capture was imported and does not know its networks",
            "the latent that x0 is computed from is x_t, not x_t-1",
        )


@pytest.mark.long
def test_an_import_killed_again_and_again_ends_as_one_that_was_not(shell: Shell, tmp_path: Path) -> None:
    """Each life is ended at a moment of its own, some videos further; what was there stays there."""
    videos = torch.randn(60, STEPS, 4, 16, 64, 64)
    save(tmp_path, pred_x0=videos)
    (tmp_path / "labels.csv").write_text("1,2,3,4,5\n" + "".join(f"{i},,,,\n" for i in range(30)))
    capture = tmp_path / "captures" / "tiny"
    draw = random.Random(0)
    there: set[str] = set()
    kills = 0
    (tmp_path / "capture.py").write_text(SLOW_IMPORT)
    while not writer.is_complete(capture) and kills < 4:
        killed = Command(tmp_path / "capture.py", COMMAND, tmp_path)
        reached = len(there) + draw.randint(1, 8)
        while len(list(capture.glob("journal/batch_*[0-9]"))) < reached:  # one video each
            assert killed.code is None, killed.wait()
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.005))
        killed.kill()
        kills += killed.wait()[0] != 0
        if not writer.is_complete(capture):
            assert there < journal.journalled(capture)
            there = journal.journalled(capture)
    assert kills >= 3
    assert shell(*COMMAND).code == 0
    stopped = everything_in(capture)
    shutil.rmtree(capture)
    assert shell(*COMMAND).code == 0
    assert everything_in(capture) == stopped


# capture.py, a video at a time, so that there are moments to be killed at
SLOW_IMPORT = f"""
import runpy
import lvd.uvd.importer
lvd.uvd.importer._BATCH_BYTES = 1
runpy.run_path({str(ROOT / "capture.py")!r}, run_name="__main__")
"""


@pytest.mark.long
def test_an_import_needs_a_bounded_memory(tmp_path: Path) -> None:
    """1.6 GB of x0 and 1.6 GB of latents; benchmarks/uvd_memory.py does the same with 10 GB of each."""
    size, _, peak = runpy.run_path(str(ROOT / "benchmarks/uvd_memory.py"))["measure"](tmp_path, videos=30)
    assert size > 1.5
    assert 100 < peak < 1000
