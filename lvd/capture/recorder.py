"""Run a video pipeline over prompts and record the x0 of every step."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvd.capture.clips import ClipReading, ClipSource, check_clip
from lvd.capture.inputs import load_inputs
from lvd.capture.load import capture_info, load_pipeline, origin_of
from lvd.capture.preview import frames_a_second, write_preview
from lvd.capture.source import Recording, Source
from lvd.errors import LvdError
from lvd.latents import disk, journal, lock, writer
from lvd.latents.format import CaptureInfo, Sample
from lvd.progress import progress
from lvd.sampling.caches import step_caches
from lvd.sampling.call import call_arguments, call_for_videos, makes_one, prompt_argument
from lvd.sampling.fingerprint import Pipeline, fingerprint, is_modular
from lvd.sampling.noise import noise_level
from lvd.sampling.origin import NOISED_CLIP, X_T
from lvd.sampling.pipelines import is_given, latent_size, layout_of, refuse_unreadable_caches
from lvd.sampling.tap import tap_x0
from lvd.sampling.weights import weights_digests


def record(
    source: Source,
    samples: Sequence[Sample],
    directory: Path,
    recording: Recording,
    *,
    folder: Path = Path(),
    clips: ClipReading | None = None,
    pipe: Pipeline | None = None,
) -> None:
    """Capture `samples` into `directory`, going on where an interrupted capture stopped.

    With `recording.preview`, the final videos are written to `preview/<sample_id>.mp4` beside the latents.
    With `recording.worker`, this process makes its share of the batches, beside others that make the rest;
    the one that ends last closes the capture.
    Samples that are made from images or videos, files in `folder`, are made one at a time: most pipelines
    take one a call, and FreeNoise takes one prompt. With `clips`, a sample's video is a real clip, which is
    encoded and noised in place of sampling; samples without a video are sampled beside them. `pipe` is the
    source's pipeline where it is loaded already; else it is loaded when there is something to make.

    Raises:
        LvdError: the directory holds a capture with other settings, another process writes it, the disk is
            full, the pipeline cannot be tapped, a clip cannot be read or encoded, or a latent is NaN, Inf,
            too large for float16 or of another shape than the first.
    """
    stored = recording.recorded_steps
    if stored is not None and stored > source.steps:
        raise LvdError(f"steps=0..{stored - 1} is more than the {source.steps} steps of the pipeline")
    if clips is not None and not any(sample.video for sample in samples):
        raise LvdError("source=clips, and no row of the prompts file names a video: give it a column video")
    wanted = _Wanted(
        source, samples, directory, recording, None if stored == source.steps else stored, folder, clips
    )
    own, worker = samples, recording.worker
    if worker is not None:
        size, workers = recording.batch_size, recording.workers
        own = [sample for place, sample in enumerate(samples) if place // size % workers == worker]
    with disk.translate_errors(directory):
        if _is_complete(wanted):
            return
        with lock.exclusive(directory) if worker is None else lock.shared_by_worker(directory, worker):
            if not writer.is_complete(directory):
                _record_batches(wanted, own, worker, pipe)
            if worker is None:
                writer.finish(directory)
        if worker is not None:
            _finish_if_last(wanted)


@dataclass(frozen=True)
class _Wanted:
    """What is captured, how and where."""

    source: Source
    samples: Sequence[Sample]
    directory: Path
    recording: Recording
    recorded_steps: int | None  # None: all that the sampler makes
    folder: Path
    clips: ClipReading | None  # samples' videos are real clips, read so; None: they are a pipeline's input

    def is_clip(self, sample: Sample) -> bool:
        return self.clips is not None and bool(sample.video)

    def settings(self) -> dict[str, Any]:
        """The fields of capture.json beside those of the source."""
        all_clips = all(self.is_clip(sample) for sample in self.samples)
        return {
            "recorded_steps": self.recorded_steps,
            "x0_from": NOISED_CLIP if all_clips else X_T,
            "clips": {} if self.clips is None else self.clips.settings(),
        }


def _is_complete(wanted: _Wanted) -> bool:
    """Whether there is nothing to do; a capture that was begun was begun as this one is asked for.

    Raises:
        LvdError: it was begun with other settings or samples, or shards of it are gone.
    """
    if (wanted.directory / "capture.json").is_file():
        settings = {**wanted.source.settings(), **wanted.settings()}
        writer.check_same(wanted.directory, settings, wanted.samples)
    if not writer.is_complete(wanted.directory) or (wanted.directory / "journal").exists():  # left by a kill
        return False
    writer.refuse_missing_shards(wanted.directory)
    print(f"capture {wanted.directory} is complete: {len(wanted.samples)} samples, nothing to do")
    return True


def _record_batches(
    wanted: _Wanted, samples: Sequence[Sample], worker: int | None, pipe: Pipeline | None
) -> None:
    """Make what is not there yet of `samples`."""
    done = journal.journalled(wanted.directory)
    left = [sample for sample in samples if sample.sample_id not in done]
    there = len(samples) - len(left)
    if there:
        print(f"going on with capture {wanted.directory}: {there} of {len(samples)} samples are there")
    if not left:
        return
    for sample in filter(wanted.is_clip, left):  # before a pipeline is loaded for them
        check_clip(wanted.folder / sample.video)
    if pipe is None:
        pipe = load_pipeline(wanted.source)
    refuse_unreadable_caches(pipe)
    clips = None if wanted.clips is None else ClipSource(pipe, wanted.clips, wanted.folder, wanted.source)
    alone = makes_one(pipe) or any(s.image or (s.video and not wanted.is_clip(s)) for s in left)
    batch_size = 1 if alone else wanted.recording.batch_size
    what = "capturing" if worker is None else f"capturing, worker {worker}"
    shape: tuple[int, ...] = ()
    with progress(what, len(samples), "videos") as advance:
        advance(there)
        for is_clip, batch in _batches(wanted, left, batch_size):
            shape = _record_batch(pipe, wanted, batch, clips if is_clip else None, worker, shape)
            advance(len(batch))


def _batches(wanted: _Wanted, samples: Sequence[Sample], size: int) -> Iterator[tuple[bool, list[Sample]]]:
    """The batches, in order, and whether they are of clips; clips and what is sampled are not in one."""
    for is_clip, alike in groupby(samples, wanted.is_clip):
        run = list(alike)
        for start in range(0, len(run), size):
            yield is_clip, run[start : start + size]


def _finish_if_last(wanted: _Wanted) -> None:
    """Close a capture that has all its samples, unless other workers still write."""
    with lock.exclusive_if_last(wanted.directory) as last:
        if not last:
            return
        missing = 0
        if not writer.is_complete(wanted.directory):
            missing = len(wanted.samples) - len(journal.journalled(wanted.directory))
        if missing:
            print(f"{missing} of {len(wanted.samples)} samples are left: the last worker closes the capture")
        else:
            writer.finish(wanted.directory)


def _record_batch(
    pipe: Pipeline,
    wanted: _Wanted,
    batch: Sequence[Sample],
    clips: ClipSource | None,
    worker: int | None,
    shape: tuple[int, ...],
) -> tuple[int, ...]:
    """Make one batch and return its latents' shape; another than `shape` is checked against the capture."""
    steps = wanted.source.steps if wanted.recorded_steps is None else wanted.recorded_steps
    ids = [sample.sample_id for sample in batch]
    with journal.Entry(wanted.directory, ids, steps, worker) as entry:
        videos, levels = _sample_batch(pipe, wanted, batch, clips, entry)
        if entry.latent_shape != shape:
            writer.begin(
                wanted.directory, _describe(pipe, wanted, entry.latent_shape, levels), wanted.samples
            )
        if wanted.recording.preview:
            rate = frames_a_second(wanted.source.call)
            for sample, frames in zip(batch, videos, strict=True):
                write_preview(wanted.directory, sample.sample_id, frames, rate)
        entry.commit()
    return entry.latent_shape


def _sample_batch(
    pipe: Pipeline,
    wanted: _Wanted,
    batch: Sequence[Sample],
    clips: ClipSource | None,
    entry: journal.Entry,
) -> tuple[Any, tuple[float, ...]]:
    """Sample a batch, or ask about its clips, and add its x0 to `entry`.

    Returns the videos `[B, F, H, W, 3]` or latents, and the noise levels of the stored steps.
    """
    levels: list[float] = []
    source = wanted.source
    layout = layout_of(type(pipe).__name__, source.layout)

    def on_x0(step: int, timestep: Tensor | float, x0_BCFHW: Tensor) -> None:
        where = f"step {step} of samples {batch[0].sample_id} to {batch[-1].sample_id}"
        if x0_BCFHW.shape[0] != len(batch):
            raise LvdError(f"x0 of {where} has {x0_BCFHW.shape[0]} samples: is layout={layout} right?")
        stored = writer.to_float16(x0_BCFHW, where)
        if step < entry.steps:
            entry.add(step, stored)
        levels.append(noise_level(pipe.scheduler, timestep))

    inputs = {} if clips is not None else load_inputs(batch[0], wanted.folder)
    decode = is_modular(pipe) or (wanted.recording.preview and clips is None)  # its blocks always decode
    call = {
        "output_type": "np" if decode else "latent",
        **call_arguments(pipe, source.steps, source.guidance, source.call, len(batch), inputs),
        **prompt_argument(pipe, [sample.prompt for sample in batch]),
    }
    try:
        noised = None if clips is None else clips.noised(batch, partial(_call, pipe, call, batch))
        with (
            tap_x0(pipe.scheduler, on_x0, layout, latent_size(pipe, layout, source.call)),
            nullcontext() if noised is None else noised.steps,
        ):
            videos = _call(pipe, call, batch, **({} if noised is None else {"latents": noised.latents}))
    except (TypeError, ValueError) as error:  # how diffusers refuses its arguments
        raise LvdError(f"the pipeline refused the call: {' '.join(str(error).split())}") from error
    if len(levels) != source.steps:
        raise LvdError(
            f"the sampler made {len(levels)} steps, not {source.steps}: "
            "set pipeline.steps to what this pipeline runs"
        )
    return videos if noised is None else noised.frames_BFHWC, tuple(levels[: entry.steps])


def _call(pipe: Pipeline, call: dict[str, Any], batch: Sequence[Sample], **further: Any) -> Any:
    """Call the pipeline with the samples' seeds."""
    generators = [torch.Generator("cpu").manual_seed(sample.seed) for sample in batch]
    generator = generators[0] if makes_one(pipe) else generators
    return call_for_videos(pipe, {"generator": generator, **call, **further})


def _describe(
    pipe: Pipeline, wanted: _Wanted, latent_shape: tuple[int, ...], noise_levels: tuple[float, ...]
) -> CaptureInfo:
    source, settings = wanted.source, wanted.settings()
    pipeline_class = type(pipe).__name__
    origin = origin_of(
        source,
        pipeline_class,
        pipe.scheduler,
        latent_shape,
        fingerprint=fingerprint(pipe),
        layout=layout_of(pipeline_class, source.layout),
        layout_given=is_given(pipeline_class, source.layout),
        step_caches=step_caches(pipe),
        weights=weights_digests(pipe) if wanted.recording.weights else {},
        noise_levels=noise_levels,
        x0_from=settings.pop("x0_from"),
    )
    return capture_info(source, origin, parts=source.parts(), **settings)
