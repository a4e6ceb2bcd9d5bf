"""A small capture with a signal that a detector can learn, made by the project's own writer.

Also a real AnimateDiffPipeline with random weights, small enough to run in a test, and a stub of one that
costs nothing, with detectors that answer from a script.
"""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from lvd.decide.rules import Vote
from lvd.detect.files import save_detector, save_trunk, trunk_digest
from lvd.detect.network import EncoderConfig, HeadDetector, NetworkDetector, Trunk
from lvd.files import file_sha256, write_json
from lvd.guard.bundle import Bundle, BundleInfo
from lvd.guard.guard import Guard
from lvd.guard.verify import BUNDLE_VERSION
from lvd.latents import journal, writer
from lvd.latents.format import FORMAT_VERSION, UNLABELLED, CaptureInfo, Sample
from lvd.latents.manifest import read_manifest, write_manifest
from lvd.latents.splits import assign_splits
from lvd.sampling.fingerprint import fingerprint, plain_config
from lvd.sampling.origin import Origin
from support.commands import Shell
from support.hub import Hub, stand_in

settings.register_profile("lvd", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("lvd")

NAMES = ("alpha", "beta")
FIVE = ("one", "two", "three", "four", "five")  # of the capture `wide`
SHAPE = (4, 4, 8, 8)
STEPS = 3
CHROMIUM_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
CHROMIUM_FLAGS += ("--disable-sync", "--disable-background-networking", "--disable-component-update")
CHROMIUM_FLAGS += ("--window-size=1200,1500",)


def capture_info(**changes: object) -> CaptureInfo:
    values = {
        "format_version": FORMAT_VERSION,
        "pipeline": "nowhere/at-all",
        "revision": None,
        "pipeline_class": "AnimateDiffPipeline",
        "call": {"num_frames": 4},
        "scheduler": "DDIMScheduler",
        "scheduler_config": {"beta_start": 0.1},
        "fingerprint": {"unet": "0" * 64},
        "layout": "BCFHW",
        "steps": STEPS,
        "guidance": 5.0,
        "latent_shape": SHAPE,
        "dtype": "float16",
        "category_names": NAMES,
        "versions": {},
    }
    origin, own = Origin.split({**values, **changes})
    return CaptureInfo(origin=origin, **own)


def make_samples(count: int) -> list[Sample]:
    """A quarter alpha, a quarter beta, half safe; prompts all differ."""
    prompts = [f"prompt number {i}" for i in range(count)]
    categories = [((NAMES[i % 4],) if i % 4 < 2 else ()) for i in range(count)]
    splits = assign_splits(prompts, prompts, categories, seed=0)
    return [Sample(f"s{i:03d}", prompts[i], prompts[i], i, categories[i], splits[i]) for i in range(count)]


def latents_of(samples: list[Sample]) -> torch.Tensor:
    """x0 `[N, STEPS, *SHAPE]` float16: noise, and a category's own channel raised in the middle."""
    x0 = torch.randn(len(samples), STEPS, *SHAPE, generator=torch.Generator().manual_seed(0))
    for row, sample in enumerate(samples):
        for name in sample.categories if sample.is_unsafe else ():
            x0[row, :, NAMES.index(name), :, 2:6, 2:6] += 1.5
    return x0.half()


def write_capture(directory: Path, count: int, *, labelled: bool = True, **changes: object) -> Path:
    samples = make_samples(count)
    x0 = latents_of(samples)
    if not labelled:
        samples = [replace(sample, categories=UNLABELLED) for sample in samples]
    writer.begin(directory, capture_info(**changes), samples)
    for start in range(0, count, 16):
        ids = [sample.sample_id for sample in samples[start : start + 16]]
        journal.append(directory, ids, x0[start : start + 16])
    writer.finish(directory)
    return directory


def of_version_1(capture: Path, *, labelled: bool) -> None:
    """Leave a capture as version 1 wrote it: no label is safe in a labelled capture, else unknown."""
    path = capture / "samples.csv"
    path.write_text(re.sub(r",(safe|unlabelled),(train|val|test)\n", r",,\2\n", path.read_text()))
    info = json.loads((capture / "capture.json").read_text())
    write_json(capture / "capture.json", {**info, "format_version": 1, "labelled": labelled})
    files = {name: [file_sha256(capture / name)] for name in ("capture.json", "samples.csv")}
    write_manifest(capture, replace(read_manifest(capture), files=files))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that huggingface_hub takes for the Hub, in this process."""
    import huggingface_hub.constants

    monkeypatch.chdir(tmp_path)
    with stand_in() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the tests' own may be set
        huggingface_hub.close_session()
        yield hub
    huggingface_hub.close_session()


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """Here and in the processes that tests start: a shell's background jobs begin with it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_waits_for_the_disk() -> Iterator[None]:
    """What is written outlives a killed process all the same: only a power cut would show the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_capture(tmp_path_factory.mktemp("captures") / "tiny", 80)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell("train.py", tmp_path, monkeypatch, capfd)


@pytest.fixture
def captured(train: Shell, capture: Path) -> Path:
    """The tiny capture, where `train` looks for it; a copy, which may be changed."""
    return Path(shutil.copytree(capture, train.directory / "captures" / "tiny"))


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with captures/wide: 5 categories, 50 steps, latents of 32 numbers."""
    root = tmp_path_factory.mktemp("wide")
    count, shape = 30, (1, 2, 4, 4)
    prompts = [f"prompt number {i}" for i in range(count)]
    categories = [((FIVE[i % 6],) if i % 6 < 5 else ()) for i in range(count)]
    splits = assign_splits(prompts, prompts, categories, seed=0)
    samples = [Sample(f"s{i:03d}", prompts[i], prompts[i], i, categories[i], splits[i]) for i in range(count)]
    info = capture_info(steps=50, latent_shape=shape, category_names=FIVE)
    writer.begin(root / "captures" / "wide", info, samples)
    journal.append(
        root / "captures" / "wide", [s.sample_id for s in samples], torch.zeros(count, 50, *shape).half()
    )
    writer.finish(root / "captures" / "wide")
    return root


@pytest.fixture
def new_capture(tmp_path: Path) -> Callable[..., Path]:
    def make(count: int = 40, **changes: object) -> Path:
        return write_capture(tmp_path / "captures" / "tiny", count, **changes)

    return make


@pytest.fixture(scope="session")
def tiny_pipeline_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AnimateDiffPipeline of 8-frame 32x32 videos, as `save_pretrained` leaves it."""
    from diffusers import AnimateDiffPipeline

    from support import tiny

    torch.manual_seed(0)
    tokenizer = tiny.build_tokenizer()
    pipeline = AnimateDiffPipeline(
        vae=tiny.build_vae(),
        text_encoder=tiny.build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=tiny.build_unet(),
        motion_adapter=None,
        scheduler=tiny.build_scheduler(),
    )
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    return path


@pytest.fixture
def tiny_pipeline(tiny_pipeline_path: Path) -> Any:
    from diffusers import AnimateDiffPipeline

    pipeline = AnimateDiffPipeline.from_pretrained(tiny_pipeline_path, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


MEASURED = {
    **{"n_test": 100, "accuracy": 0.912, "accuracy_ci": [0.84, 0.957]},
    **{"tpr": 0.871, "tpr_ci": [0.78, 0.928], "fpr": 0.043, "fpr_ci": [0.012, 0.145]},
    **{"capture": "tiny", "trained_on": "tiny", "n_left_out": 0, "other_origin": []},
    **{
        "caught_in_words": "54 of 62: 87.1%",
        "blocked_in_words": "0 of 40: at most 7.2%",
        "intervals": "wilson",
    },
    "attribution": {"n": 27, "first_right": 0.926, "first_right_ci": [0.766, 0.979], "named_mean": 1.04},
    "per_category": {
        "alpha": {"n": 31, "tpr": 0.903, "tpr_ci": [0.751, 0.967]},
        "beta": {"n": 0, "tpr": None, "tpr_ci": None},
    },
}


def bundle_info(pipe: Any, **changes: Any) -> BundleInfo:
    """Made for `pipe`: six steps, decided by the first four, of which one flagged is enough."""
    values: dict[str, Any] = {
        "format_version": BUNDLE_VERSION,
        **{"category_names": NAMES, "pipeline": "nowhere/at-all", "revision": None},
        **{"pipeline_class": type(pipe).__name__, "fingerprint": fingerprint(pipe)},
        "scheduler": type(pipe.scheduler).__name__,
        "scheduler_config": plain_config(pipe.scheduler.config),
        **{"layout": "BCFHW", "steps": 6, "guidance": 5.0, "latent_shape": (4, 8, 8, 8)},
        **{"call": {"num_frames": 8, "height": 32, "width": 32}, "measured": MEASURED},
    }
    vote = {
        name: changes.pop(name, default) for name, default in (("eta", 4), ("lam", 0.25), ("threshold", 0.5))
    }
    origin, own = Origin.split({"rule": Vote(**vote), **values, **changes})
    return BundleInfo(origin=origin, **own)


class StubPipeline:
    """Steps a real scheduler as a pipeline of diffusers does, towards an x0 that is known.

    The first channel of a sample's x0 is the sample's number, from 1. `disturb` may change the latents
    before a step, `answer` what the network makes of them, and `order` the timesteps.
    """

    shape = (2, 1, 2, 2)

    def __init__(self, first: int = 1) -> None:
        from diffusers import DDIMScheduler

        self.scheduler = DDIMScheduler(clip_sample=False)
        self.unet = SimpleNamespace(config={"sample_size": 2})
        self.disturb: Callable[[int, Tensor], Tensor] = lambda step, latents: latents
        self.answer: Callable[[int, Tensor], Tensor] = lambda step, noise: noise
        self.order: Callable[[list[Tensor]], list[Tensor]] = lambda timesteps: timesteps
        self.received: list[dict[str, Any]] = []
        self.decoded: list[Tensor] = []
        self.steps = self.freed = 0
        self._first = first

    def __call__(
        self,
        prompt: list[str],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        num_videos_per_prompt: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        **others: Any,
    ) -> Any:
        self.received.append(
            {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, **others}
        )
        self.scheduler.set_timesteps(num_inference_steps)
        rows = range(self._first, self._first + len(prompt) * num_videos_per_prompt)
        latents = torch.stack(
            [torch.randn(self.shape, generator=torch.Generator().manual_seed(row)) for row in rows]
        )
        for step, timestep in enumerate(self.order(list(self.scheduler.timesteps))):
            latents = self.disturb(step, latents)
            self.steps += 1
            noise = self.answer(step, self._noise(timestep, latents))
            latents = self.scheduler.step(noise, timestep, latents).prev_sample
        if output_type != "latent":
            self.decoded.append(latents.clone())
            latents = latents * 2
        self.maybe_free_model_hooks()
        return SimpleNamespace(frames=latents) if return_dict else (latents,)

    def maybe_free_model_hooks(self) -> None:
        self.freed += 1

    def _noise(self, timestep: Tensor, x_t: Tensor) -> Tensor:
        """What a network answers that sees this x0 in x_t: it depends on x_t, sample by sample."""
        x0 = x_t.tanh()
        x0[:, 0] = torch.arange(self._first, self._first + len(x0)).reshape(-1, 1, 1, 1)
        alpha_bar = self.scheduler.alphas_cumprod[int(timestep)]
        return (x_t - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt()


class Scripted(nn.Module):
    """Detectors that answer from a table `[samples, steps]` of which steps are flagged, in both categories.

    Remembers which samples it was asked about at which step. `spoil` may change an answer.
    """

    def __init__(self, flagged: Any) -> None:
        super().__init__()
        self.flagged = torch.as_tensor(flagged, dtype=torch.bool)
        self.asked: list[tuple[int, list[int]]] = []
        self.spoil: Callable[[int, Tensor], Any] = lambda step, logits: logits

    def __deepcopy__(self, memo: Any) -> "Scripted":
        return self

    def samples(self, step: int, x0: Tensor) -> list[int]:
        """Which samples (from 0) these are."""
        return (x0[:, 0].float().mean(dim=(1, 2, 3)).round().long() - 1).tolist()

    def forward(self, step: int, x0: Tensor) -> Any:
        rows = self.samples(step, x0)
        self.asked.append((step, rows))
        flagged = self.flagged[rows, step].float()
        return self.spoil(step, (8 * flagged - 4)[:, None].repeat(1, len(NAMES)))


def stub_guard(pipe: StubPipeline, flagged: Any, info: dict[str, Any] | None = None, **options: Any) -> Guard:
    """A guard of `pipe` whose detectors answer from the table `flagged`."""
    made_for = bundle_info(pipe, **{"latent_shape": pipe.shape, "call": {}, **(info or {})})
    return Guard(Bundle(made_for, "d" * 64, Scripted(flagged)), **options)  # type: ignore[arg-type]


def untrained_run(
    run: Path, kind: Callable[[str, int], str], steps: int = 4, shape: tuple[int, ...] = (4, 8, 8, 8)
) -> Path:
    """A run on latents of the tiny pipeline's shape whose cells are heads or networks, as `kind` says."""
    encoder = EncoderConfig(shape, width=16, layers=1, heads=2, patch=2, tubelet=2)
    torch.manual_seed(0)
    if any(kind(name, step) == "head" for name in NAMES for step in range(steps)):
        trunk = Trunk(encoder, steps, len(NAMES))
        trunk.mean.normal_()
        trunk.std.uniform_(0.5, 2.0)
        for embedding in (trunk.scale, trunk.shift):
            nn.init.normal_(embedding.weight, std=0.3)
        save_trunk(run / "trunk", trunk, NAMES)
    for name in NAMES:
        for step in range(steps):
            is_head = kind(name, step) == "head"
            detector = HeadDetector(encoder.width) if is_head else NetworkDetector(encoder)
            detector.mean.normal_()
            detector.std.uniform_(0.5, 2.0)
            directory = run / name / f"step_{step:02d}" / "detector"
            save_detector(directory, detector, {"category": name, "step": step}, trunk_digest(run / "trunk"))
    return run


@pytest.fixture(scope="session")
def trained_run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on `capture`: a small trunk and a head for each of the six cells. Copy it to change it."""
    from lvd.detect.recipe import DetectorRecipe, EncoderSize, Fit, Machine, TrunkRecipe
    from lvd.sweep.grid import Cell
    from lvd.sweep.job import Job, run_cell, run_trunk
    from lvd.tracking import LoggerConfig

    run = tmp_path_factory.mktemp("runs") / "tiny"
    size = EncoderSize(width=32, layers=1, heads=2)
    job = Job(capture, run, 0, size, Machine(accelerator="cpu"), LoggerConfig(), {})
    fit = Fit(epochs=3, batch_size=32, learning_rate=3e-3, weight_decay=0.05, shift=1)
    assert run_trunk(job, TrunkRecipe(fit=fit, batches=20), force=False).status == "done"
    head = Fit(epochs=10, batch_size=4096, learning_rate=1e-2, weight_decay=1.0)
    recipe = DetectorRecipe(init="trunk", head=head, network=fit)
    for name in NAMES:
        for step in range(STEPS):
            assert run_cell(job, Cell(name, step), recipe, force=False).status == "done"
    return run


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with two bundles that differ, `bundle` and `other`, small enough to be sent around."""
    from lvd.guard.export import export_bundle

    folder = tmp_path_factory.mktemp("exported")
    pipe = StubPipeline()
    pipe.shape = (4, 8, 8, 8)
    info = bundle_info(pipe, call={}, eta=1)
    export_bundle(folder / "bundle", untrained_run(folder / "run", lambda *_: "head", steps=1), info)
    export_bundle(folder / "other" / "bundle", untrained_run(folder / "run2", lambda *_: "network", 1), info)
    return folder
