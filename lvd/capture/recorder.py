"""Run a video pipeline over prompts and record the x0 of every step."""

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvd.capture.inputs import load_inputs
from lvd.errors import LvdError
from lvd.latents import disk, journal, lock, writer
from lvd.latents.format import FORMAT_VERSION, CaptureInfo, Sample
from lvd.progress import progress
from lvd.sampling.call import call_arguments, makes_one, prompt_argument
from lvd.sampling.fingerprint import Pipeline, fingerprint, plain_config
from lvd.sampling.pipelines import check_class, check_supported, grid_of, layout_of
from lvd.sampling.tap import tap_x0


@dataclass(frozen=True)
class Source:
    """Where a pipeline comes from and how it is called: the part of a capture's provenance one chooses."""

    path: str
    revision: str | None
    pipeline_class: str
    motion_adapter: str | None
    scheduler: str | None
    scheduler_config: dict[str, Any] = field(hash=False)
    dtype: str
    device: str
    offload: bool
    layout: str | None  # None: by the pipeline's class
    steps: int
    guidance: float | None
    call: dict[str, Any] = field(hash=False)
    category_names: tuple[str, ...]
    dtypes: dict[str, str] = field(default_factory=dict, hash=False)
    loras: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    free_noise: dict[str, Any] | None = field(default=None, hash=False)
    vae_tiling: bool = False

    def settings(self) -> dict[str, Any]:
        """The fields of capture.json that are known before the pipeline is loaded."""
        return {
            "pipeline": self.path,
            **({"scheduler": self.scheduler} if self.scheduler is not None else {}),
            "revision": self.revision,
            **({"layout": self.layout} if self.layout is not None else {}),
            "steps": self.steps,
            "guidance": self.guidance,
            "call": self.call,
            "category_names": self.category_names,
            "parts": self.parts(),
        }

    def parts(self) -> dict[str, Any]:
        """What goes into the pipeline besides its repository."""
        parts = {
            "motion_adapter": self.motion_adapter,
            "loras": list(self.loras),
            "free_noise": self.free_noise,
        }
        return {name: part for name, part in parts.items() if part}


def load_pipeline(source: Source) -> Pipeline:
    """Load through `from_pretrained`: safetensors only, no remote code.

    Raises:
        LvdError: the class or the weights cannot be had, or the pipeline is of a kind that is not supported.
    """
    check_class(source.pipeline_class)
    import transformers

    transformers.utils.logging.set_verbosity_error()  # before diffusers: its imports give advice
    import diffusers

    dtypes = {"default": getattr(torch, source.dtype)}
    dtypes |= {name: getattr(torch, dtype) for name, dtype in source.dtypes.items()}
    device = _device(source.device)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        parts: dict[str, Any] = {}
        if source.motion_adapter is not None:
            parts["motion_adapter"] = diffusers.MotionAdapter.from_pretrained(
                source.motion_adapter, dtype=dtypes["default"], use_safetensors=True
            )
        pipe = getattr(diffusers, source.pipeline_class).from_pretrained(
            source.path, revision=source.revision, dtype=dtypes, use_safetensors=True, **parts
        )
        check_supported(pipe)
        layout_of(pipe, source.layout)
        if source.scheduler is not None:
            scheduler_class = getattr(diffusers, source.scheduler)
            pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **source.scheduler_config)
        _plug_in(pipe, source)
    except (OSError, ValueError, AttributeError) as error:
        raise LvdError(f"pipeline {source.path} cannot be loaded: {' '.join(str(error).split())}") from None
    if source.offload and device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _plug_in(pipe: Pipeline, source: Source) -> None:
    for number, lora in enumerate(source.loras):
        options = {name: value for name, value in lora.items() if name not in ("path", "scale")}
        pipe.load_lora_weights(lora["path"], adapter_name=f"lora_{number}", use_safetensors=True, **options)
    if source.loras:
        names = [f"lora_{number}" for number in range(len(source.loras))]
        pipe.set_adapters(names, [lora.get("scale", 1.0) for lora in source.loras])
    if source.free_noise is not None:
        pipe.enable_free_noise(**source.free_noise)
    if source.vae_tiling:
        pipe.vae.enable_tiling()


def record(
    source: Source,
    samples: Sequence[Sample],
    labelled: bool,
    directory: Path,
    *,
    batch_size: int,
    preview: bool,
    recorded_steps: int | None = None,
    worker: int | None = None,
    workers: int = 1,
    folder: Path = Path(),
) -> None:
    """Capture `samples` into `directory`, going on where an interrupted capture stopped.

    With `preview`, the final videos are written to `preview/<sample_id>.gif` beside the latents. With
    `recorded_steps`, only the first so many steps are stored. With `worker`, this process makes every
    `workers`-th batch, beside others that make the rest; the one that ends last closes the capture.
    Samples that are made from images or videos, files in `folder`, are made one at a time: most pipelines
    take one a call, and FreeNoise takes one prompt.

    Raises:
        LvdError: the directory holds a capture with other settings, another process writes it, the disk is
            full, the pipeline cannot be tapped, or a latent is NaN, Inf, too large for float16 or of another
            shape than the first.
    """
    if recorded_steps is not None and recorded_steps > source.steps:
        raise LvdError(f"steps=0..{recorded_steps - 1} is more than the {source.steps} steps of the pipeline")
    job = _Job(
        source,
        samples,
        labelled,
        directory,
        batch_size,
        preview,
        None if recorded_steps == source.steps else recorded_steps,
        folder,
    )
    own = samples
    if worker is not None:
        own = [sample for place, sample in enumerate(samples) if place // batch_size % workers == worker]
    with disk.full_disk_is_a_sentence(directory):
        if _is_complete(job):
            return
        with lock.alone(directory) if worker is None else lock.beside_others(directory, worker):
            if not writer.is_complete(directory):
                _record_batches(job, own, worker)
            if worker is None:
                writer.finish(directory)
        if worker is not None:
            _finish_if_last(job)


@dataclass(frozen=True)
class _Job:
    """What is captured, how and where."""

    source: Source
    samples: Sequence[Sample]
    labelled: bool
    directory: Path
    batch_size: int
    preview: bool
    recorded_steps: int | None
    folder: Path


def _is_complete(job: _Job) -> bool:
    """Whether there is nothing to do; a capture that was begun was begun as this job asks.

    Raises:
        LvdError: it was begun with other settings or samples.
    """
    if (job.directory / "capture.json").is_file():
        settings = {**job.source.settings(), "recorded_steps": job.recorded_steps}
        writer.check_same(job.directory, settings, job.samples)
    if not writer.is_complete(job.directory) or (job.directory / "journal").exists():  # left by a kill
        return False
    print(f"capture {job.directory} is complete: {len(job.samples)} samples, nothing to do")
    return True


def _record_batches(job: _Job, samples: Sequence[Sample], worker: int | None) -> None:
    """Make what is not there yet of `samples`."""
    done = writer.journalled(job.directory)
    left = [sample for sample in samples if sample.sample_id not in done]
    there = len(samples) - len(left)
    if there:
        print(f"going on with capture {job.directory}: {there} of {len(samples)} samples are there")
    if not left:
        return
    pipe = load_pipeline(job.source)
    alone = makes_one(pipe) or any(sample.image or sample.video for sample in left)
    batch_size = 1 if alone else job.batch_size
    what = "capturing" if worker is None else f"capturing, worker {worker}"
    shape: tuple[int, ...] = ()
    with progress(what, len(samples), "videos") as advance:
        advance(there)
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            shape = _record_batch(pipe, job, batch, worker, shape)
            advance(len(batch))


def _finish_if_last(job: _Job) -> None:
    """Close a capture that has all its samples, unless other workers still write."""
    with lock.if_last(job.directory) as last:
        if not last:
            return
        missing = 0
        if not writer.is_complete(job.directory):
            missing = len(job.samples) - len(writer.journalled(job.directory))
        if missing:
            print(f"{missing} of {len(job.samples)} samples are left: the last worker closes the capture")
        else:
            writer.finish(job.directory)


def _record_batch(
    pipe: Pipeline, job: _Job, batch: Sequence[Sample], worker: int | None, shape: tuple[int, ...]
) -> tuple[int, ...]:
    """Make one batch and return its latents' shape; another than `shape` is checked against the capture."""
    steps = job.source.steps if job.recorded_steps is None else job.recorded_steps
    ids = [sample.sample_id for sample in batch]
    inputs = load_inputs(batch[0], job.folder)
    with journal.Entry(job.directory, ids, steps, worker) as entry:
        videos = _sample_batch(pipe, job.source, batch, inputs, entry, decode=job.preview)
        if entry.latent_shape != shape:
            writer.begin(job.directory, _describe(pipe, job, entry.latent_shape), job.samples)
        if job.preview:
            _write_previews(job.directory / "preview", batch, videos)
        entry.commit()
    return entry.latent_shape


def _sample_batch(
    pipe: Pipeline,
    source: Source,
    batch: Sequence[Sample],
    inputs: dict[str, Any],
    entry: journal.Entry,
    *,
    decode: bool,
) -> Any:
    """Sample a batch and add its x0 to `entry`; returns the videos `[B, F, H, W, 3]` or latents."""
    made = 0
    layout = layout_of(pipe, source.layout)

    def on_x0(step: int, _timestep: Tensor | float, x0_BCFHW: Tensor) -> None:
        nonlocal made
        where = f"step {step} of samples {batch[0].sample_id} to {batch[-1].sample_id}"
        if x0_BCFHW.shape[0] != len(batch):
            raise LvdError(f"x0 of {where} has {x0_BCFHW.shape[0]} samples: is layout={layout} right?")
        stored = writer.to_float16(x0_BCFHW, where)
        if step < entry.steps:
            entry.add(step, stored)
        made += 1

    call = call_arguments(pipe, source.steps, source.guidance, source.call, len(batch), inputs)
    call |= prompt_argument(pipe, [sample.prompt for sample in batch])
    generators = [torch.Generator("cpu").manual_seed(sample.seed) for sample in batch]
    try:
        with tap_x0(pipe.scheduler, on_x0, layout, grid_of(pipe, layout, source.call)):
            output = pipe(
                generator=generators[0] if makes_one(pipe) else generators,
                output_type="np" if decode else "latent",
                **call,
            )
    except (TypeError, ValueError) as error:  # how diffusers refuses its arguments
        raise LvdError(f"the pipeline refused the call: {' '.join(str(error).split())}") from error
    if made != source.steps:
        raise LvdError(
            f"the sampler made {made} steps, not {source.steps}: "
            "set pipeline.steps to what this pipeline runs"
        )
    return output[0]


def _describe(pipe: Pipeline, job: _Job, latent_shape: tuple[int, ...]) -> CaptureInfo:
    source = job.source
    channels, frames, height, width = latent_shape
    return CaptureInfo(
        format_version=FORMAT_VERSION,
        pipeline=source.path,
        revision=source.revision,
        pipeline_class=type(pipe).__name__,
        call=source.call,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=plain_config(pipe.scheduler.config),
        fingerprint=fingerprint(pipe),
        layout=layout_of(pipe, source.layout),
        steps=source.steps,
        guidance=source.guidance,
        latent_shape=(channels, frames, height, width),
        dtype="float16",
        category_names=source.category_names,
        labelled=job.labelled,
        versions={
            name: importlib.metadata.version(name) for name in ("lvd", "torch", "diffusers", "transformers")
        },
        recorded_steps=job.recorded_steps,
        parts=source.parts(),
    )


def _write_previews(directory: Path, batch: Sequence[Sample], videos: Any) -> None:
    from diffusers.utils import export_to_gif, numpy_to_pil

    directory.mkdir(parents=True, exist_ok=True)
    for sample, frames in zip(batch, videos, strict=True):
        export_to_gif(numpy_to_pil(frames), str(directory / f"{sample.sample_id}.gif"))


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise LvdError(f"pipeline.device={name} is not on this machine: {reason}") from None
    return device
