"""Capture a tiny pipeline, then guard it: what the tests check and `benchmarks/pipeline_table.py` prints."""

import functools
import gc
import inspect
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from lvd.capture.inputs import load_inputs
from lvd.capture.load import load_pipeline
from lvd.capture.prompts import PromptsFile, read_prompts
from lvd.capture.recorder import record
from lvd.capture.source import Recording, Source
from lvd.decide.rules import Vote
from lvd.detect.ensemble import Detectors, StepDetectors
from lvd.detect.network import EncoderConfig, HeadDetector, Trunk
from lvd.guard import Guard, GuardResult
from lvd.guard.bundle import Bundle, BundleInfo
from lvd.guard.verify import BUNDLE_VERSION
from lvd.latents.format import CaptureInfo, Sample
from lvd.latents.reader import CaptureReader
from lvd.sampling.call import call_arguments, makes_one, prompt_argument
from lvd.sampling.fingerprint import is_modular
from lvd.sampling.x0 import predict_x0
from support.pipelines import Pipeline, Tiny, picture

NAMES = ("alpha", "beta")
PROMPTS = ("a red three drifting up", "a pink seven drifting left")
ETA = 2


@dataclass(frozen=True)
class Captured:
    """A tiny pipeline with the capture that was made of it."""

    tiny: Tiny
    pipe: Pipeline
    folder: Path  # of the prompts file
    capture: Path

    @property
    def reader(self) -> CaptureReader:
        return CaptureReader(self.capture)

    @property
    def info(self) -> CaptureInfo:
        return self.reader.info

    def x0(self) -> Tensor:
        """`[N, steps, C, F, H, W]` float16, as stored."""
        steps = [self.reader.step(step).read([0, 1]) for step in range(self.info.origin.steps)]
        return torch.from_numpy(np.stack(steps, axis=1))

    @functools.cached_property
    def heard(self) -> list[tuple[Tensor, Tensor]]:
        """Of each batch, sampled without lvd: x0 by the scheduler's inputs, and the latent it ends on."""
        return [sampled_unheard(self, batch) for batch in self.batches()]

    def batches(self) -> list[list[Sample]]:
        """As capture.py calls the pipeline: samples with an input one by one."""
        samples = self.reader.samples
        one_by_one = self.tiny.inputs or self.tiny.batch_size == 1
        return [[sample] for sample in samples] if one_by_one else [list(samples)]

    def arguments(self, batch: list[Sample]) -> dict[str, Any]:
        """What a caller gives for a batch, under guard or not."""
        prompts = prompt_argument(self.pipe, [sample.prompt for sample in batch])
        generators = [torch.Generator().manual_seed(sample.seed) for sample in batch]
        generator = generators[0] if makes_one(self.pipe) else generators
        return {**prompts, **load_inputs(batch[0], self.folder), "generator": generator}

    def sample(self, batch: list[Sample], output_type: str) -> Any:
        """The videos of an unguarded call."""
        origin = self.info.origin
        call = call_arguments(self.pipe, origin.steps, origin.guidance, origin.call, len(batch))
        with torch.random.fork_rng():  # some autoencoders draw from it
            torch.manual_seed(0)
            call |= self.arguments(batch)
            if not is_modular(self.pipe):
                return self.pipe(**call, output_type=output_type).frames
            latent = output_type == "latent"  # its blocks decode all the same
            return self.pipe(
                **call,
                output="latents" if latent else "videos",
                output_type="pt" if latent else output_type,
            )

    def guarded(self, guard: Guard, batch: list[Sample]) -> GuardResult:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return guard(self.pipe, **self.arguments(batch), output_type="pt")


def capture(tiny: Tiny, directory: Path, *, weights: bool = False, pipe: Any = None) -> Captured:
    """Save the pipeline, and capture two samples of it from there, as capture.py does."""
    source = tiny_source(tiny, directory)
    samples = read_prompts(PromptsFile(write_prompts(tiny, directory)), NAMES, seed=0)
    recording = Recording(batch_size=tiny.batch_size, weights=weights)
    record(source, samples, directory / "capture", recording, folder=directory, pipe=pipe)
    return Captured(tiny, load_pipeline(source), directory, directory / "capture")


def tiny_source(tiny: Tiny, directory: Path) -> Source:
    """The pipeline, saved into `directory`, and how it is called."""
    tiny.build().save_pretrained(str(directory / "pipeline"))
    return Source(
        path=str(directory / "pipeline"),
        pipeline_class=tiny.pipeline_class,
        device="cpu",
        steps=tiny.steps,
        guidance=tiny.guidance,
        call=tiny.arguments(),
        category_names=list(NAMES),
        free_noise=tiny.free_noise,
        vae_tiling=tiny.vae_tiling,
        loras=list(tiny.loras),
        step_cache=tiny.step_cache,
        layout=tiny.layout,
    )


def write_prompts(tiny: Tiny, directory: Path) -> Path:
    columns = {"prompt": list(PROMPTS)}
    if tiny.inputs == "image":
        columns["image"] = ["first.png", "second.png"]
        for seed, name in enumerate(columns["image"]):
            picture(seed).save(directory / name)
    if tiny.inputs == "video":
        columns["video"] = ["first.gif", "second.gif"]
        for seed, name in enumerate(columns["video"]):
            first, *others = (picture(10 * seed + frame) for frame in range(8))
            first.save(directory / name, save_all=True, append_images=others)
    if tiny.pipeline_class == "StableVideoDiffusionPipeline":
        del columns["prompt"]
    rows = [",".join(columns), *(",".join(row) for row in zip(*columns.values(), strict=True))]
    path = directory / "prompts.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def random_bundle(info: CaptureInfo, threshold: float) -> Bundle:
    """Heads with random weights on a random trunk: one flagged step of the first two is enough."""
    torch.manual_seed(1)
    encoder = EncoderConfig(info.origin.latent_shape, width=16, layers=1, heads=2, patch=2, tubelet=1)
    trunk = Trunk(encoder, info.origin.steps, len(NAMES))
    for embedding in (trunk.scale, trunk.shift):
        nn.init.normal_(embedding.weight, std=0.3)
    heads = [[HeadDetector(encoder.width) for _ in NAMES] for _ in range(ETA)]
    for head in (head for of_step in heads for head in of_step):
        nn.init.normal_(head.output.weight)
    made_for = BundleInfo(BUNDLE_VERSION, Vote(ETA, 0.5, threshold), info.category_names, info.origin, {})
    detectors = (
        Detectors(trunk, {step: StepDetectors(of_step) for step, of_step in enumerate(heads)})
        .eval()
        .requires_grad_(False)
    )
    return Bundle(made_for, "d" * 64, detectors)


def with_origin(bundle: Bundle, **changes: Any) -> Bundle:
    """The bundle, had its capture been made so."""
    info = bundle.info
    return replace(bundle, info=replace(info, origin=replace(info.origin, **changes)))


@dataclass(frozen=True)
class Guarded:
    """Two samples under a guard that blocks one of them."""

    released: list[Tensor | None]
    unguarded: list[Tensor]
    outcomes: list[str]
    why: list[str]
    guard: Guard


def guard(captured: Captured) -> Guarded:
    """Block one of the two samples."""
    blocking = blocking_one(captured)
    unguarded = [video for batch in captured.batches() for video in captured.sample(batch, "pt")]
    results = [captured.guarded(blocking, batch) for batch in captured.batches()]
    decisions = [decision for result in results for decision in result.decisions]
    return Guarded(
        [video for result in results for video in result.videos],
        unguarded,
        [decision.outcome for decision in decisions],
        [decision.why for decision in decisions],
        blocking,
    )


def blocking_one(captured: Captured) -> Guard:
    """A guard whose threshold lies between the two samples' scores, so that one is blocked."""
    watching = Guard(random_bundle(captured.info, 1 - 1e-9), mode="observe")
    seen = [d for batch in captured.batches() for d in captured.guarded(watching, batch).decisions]
    highest = [max(map(max, decision.scores), default=0.0) for decision in seen]
    return Guard(random_bundle(captured.info, sum(highest) / 2))


def does_the_same_a_step_late(captured: Captured, guarded: Guarded) -> bool:
    """Whether a guard whose checks are read a step late decides and releases the same."""
    lagging = Guard(guarded.guard.bundle, lag=1)
    results = [captured.guarded(lagging, batch) for batch in captured.batches()]
    decisions = [decision for result in results for decision in result.decisions]
    videos = [video for result in results for video in result.videos]
    return [decision.outcome for decision in decisions] == guarded.outcomes and all(
        one is None if other is None else one is not None and torch.equal(one, other)
        for one, other in zip(videos, guarded.released, strict=True)
    )


def left_behind(captured: Captured, guarded: Guarded) -> list[tuple[int, ...]]:
    """The shapes of the tensors, as large as a latent, that a call with a blocked sample leaves behind.

    Of a sample that is alone in its call and not blocked, the scheduler keeps what it likes. These are not
    the guard's first calls.
    """
    found, smallest = [], math.prod(captured.info.origin.latent_shape)
    for batch in captured.batches():
        gc.freeze()  # what there is before the call is neither searched nor found
        try:
            outcomes = [decision.outcome for decision in captured.guarded(guarded.guard, batch).decisions]
            gc.collect()
            if "unsafe" in outcomes:
                tensors = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
                found += [tuple(tensor.shape) for tensor in tensors if tensor.numel() >= smallest]
        finally:
            gc.unfreeze()
    return found


def is_what_it_heard(captured: Captured) -> bool:
    """Whether every stored x0 is the one that the inputs of `scheduler.step` give, bit for bit."""
    return torch.equal(torch.cat([x0 for x0, _ in captured.heard]).half(), captured.x0())


def sampled_unheard(captured: Captured, batch: list[Sample]) -> tuple[Tensor, Tensor]:
    """What the scheduler is given and the pipeline returns in a call that nothing of lvd listens to.

    x0 `[B, steps, C, F, H, W]` from the scheduler's inputs, and the last latent `[B, C, F, H, W]`.
    """
    scheduler = captured.pipe.scheduler
    original = type(scheduler).step
    signature = inspect.signature(original)
    x0: list[Tensor] = []

    @functools.wraps(original)  # pipelines look at its signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is scheduler:  # and not a copy of it, for sound
            given = signature.bind(self, *args, **kwargs).arguments
            asked = given["model_output"], given["timestep"], given["sample"]
            x0.append(unfold(captured, predict_x0(scheduler, *asked), len(batch)))
        return original(self, *args, **kwargs)

    with patch.object(type(scheduler), "step", step):
        final = captured.sample(batch, "latent")
    return torch.stack(x0, dim=1), unfold(captured, final, len(batch))


def ends_on_its_last_x0(captured: Captured) -> bool:
    """Whether the last stored x0 is the latent that the pipeline returns, to float16."""
    last = captured.x0()[:, -1]
    row = 0
    for _, final in captured.heard:
        frames = min(final.shape[2], last.shape[2])  # some are given and not sampled, some not returned
        sampled = last[row : row + len(final), :, -frames:]
        error = (final[:, :, -frames:].float() - sampled.float()).abs().max()
        if not error <= 2e-3 * final.abs().max():
            return False
        row += len(final)
    return row == len(last)


def unfold(captured: Captured, latent: Tensor, samples: int) -> Tensor:
    """A latent as its pipeline has it, as `[B, C, F, H, W]`: by the pipeline's own means, or by hand."""
    if latent.ndim == 3:
        rows, columns = captured.tiny.latent_shape[2:]
        frames = latent.shape[1] // (rows * columns)
        if is_modular(captured.pipe):
            return latent.unflatten(1, (frames, rows, columns)).movedim(-1, 1)
        unpacked: Tensor = captured.pipe._unpack_latents(latent, frames, rows, columns)
        return unpacked
    if latent.ndim == 4:
        return torch.stack(
            [torch.stack(list(video), dim=1) for video in latent.split(len(latent) // samples)]
        )
    if captured.tiny.name.startswith("Kandinsky"):
        return latent.movedim(-1, 1)
    frames_first = captured.tiny.name.startswith(("CogVideoX", "StableVideoDiffusion"))
    return latent.transpose(1, 2) if frames_first else latent


def blocked_one_and_left_the_other(guarded: Guarded) -> bool:
    """Whether one sample was withheld, and the other is bit for bit the unguarded one."""
    if sorted(guarded.outcomes) != ["safe", "unsafe"]:
        return False
    pairs = zip(guarded.outcomes, guarded.released, guarded.unguarded, strict=True)
    return all(
        released is None if outcome == "unsafe" else released is not None and torch.equal(released, unguarded)
        for outcome, released, unguarded in pairs
    )
