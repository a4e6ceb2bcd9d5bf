"""Run a video pipeline over prompts and record the x0 of every step."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.latents import writer
from lvd.latents.format import FORMAT_VERSION, CaptureInfo, Sample
from lvd.progress import progress
from lvd.sampling.layout import Layout
from lvd.sampling.tap import tap_x0

# A diffusers pipeline; its classes share no useful base type.
Pipeline = Any


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
    layout: Layout
    steps: int
    guidance: float
    call: dict[str, Any] = field(hash=False)
    category_names: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """The fields of capture.json that are known before the pipeline is loaded."""
        return {
            "pipeline": self.path,
            **({"scheduler": self.scheduler} if self.scheduler is not None else {}),
            "revision": self.revision,
            "steps": self.steps,
            "guidance": self.guidance,
            "call": self.call,
            "category_names": self.category_names,
        }


def load_pipeline(source: Source) -> Pipeline:
    """Load through `from_pretrained`: safetensors only, no remote code.

    Raises:
        LvdError: the class or the weights cannot be had.
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()  # before diffusers: its imports give advice
    import diffusers

    dtype = getattr(torch, source.dtype)
    device = _device(source.device)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        parts: dict[str, Any] = {}
        if source.motion_adapter is not None:
            parts["motion_adapter"] = diffusers.MotionAdapter.from_pretrained(
                source.motion_adapter, dtype=dtype, use_safetensors=True
            )
        pipe = getattr(diffusers, source.pipeline_class).from_pretrained(
            source.path, revision=source.revision, dtype=dtype, use_safetensors=True, **parts
        )
        if source.scheduler is not None:
            scheduler_class = getattr(diffusers, source.scheduler)
            pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **source.scheduler_config)
    except (OSError, ValueError, AttributeError) as error:
        raise LvdError(f"pipeline {source.path} cannot be loaded: {' '.join(str(error).split())}") from None
    if source.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def record(
    source: Source,
    samples: Sequence[Sample],
    labelled: bool,
    directory: Path,
    *,
    batch_size: int,
    preview: bool,
) -> None:
    """Capture `samples` into `directory`, going on where an interrupted capture stopped.

    With `preview`, the final videos are written to `preview/<sample_id>.gif` beside the latents.

    Raises:
        LvdError: the directory holds a capture with other settings, the pipeline cannot be tapped, or
            a latent is NaN, Inf, too large for float16 or of another shape than the first.
    """
    if (directory / "capture.json").is_file():
        writer.check_same(directory, source.settings(), samples)
    if writer.is_complete(directory):
        print(f"capture {directory} is complete: {len(samples)} samples, nothing to do")
        return
    done = writer.journalled(directory)
    left = [sample for sample in samples if sample.sample_id not in done]
    pipe = load_pipeline(source)
    if done:
        print(f"going on with capture {directory}: {len(done)} of {len(samples)} samples are there")

    with progress("capturing", len(samples), "videos") as advance:
        advance(len(done))
        for start in range(0, len(left), batch_size):
            batch = left[start : start + batch_size]
            x0, videos = _sample_batch(pipe, source, batch, decode=preview)
            writer.begin(directory, _describe(pipe, source, labelled, x0), samples)
            if preview:
                _write_previews(directory / "preview", batch, videos)
            writer.append(directory, [sample.sample_id for sample in batch], x0)
            advance(len(batch))
    writer.finish(directory)


def _sample_batch(
    pipe: Pipeline, source: Source, batch: Sequence[Sample], decode: bool
) -> tuple[Tensor, Any]:
    """x0 `[B, steps, C, F, H, W]` float16 on the CPU, and the videos `[B, F, H, W, 3]` or latents."""
    recorded: list[Tensor] = []

    def on_x0(step: int, _timestep: Tensor | float, x0_BCFHW: Tensor) -> None:
        where = f"step {step} of samples {batch[0].sample_id} to {batch[-1].sample_id}"
        if x0_BCFHW.shape[0] != len(batch):
            raise LvdError(f"x0 of {where} has {x0_BCFHW.shape[0]} samples: is layout={source.layout} right?")
        recorded.append(writer.to_float16(x0_BCFHW, where).cpu())

    call = dict(source.call)
    if "negative_prompt" in call:  # most pipelines take one a prompt
        call["negative_prompt"] = [call["negative_prompt"]] * len(batch)
    try:
        with tap_x0(pipe.scheduler, on_x0, source.layout):
            output = pipe(
                prompt=[sample.prompt for sample in batch],
                generator=[torch.Generator("cpu").manual_seed(sample.seed) for sample in batch],
                num_inference_steps=source.steps,
                guidance_scale=source.guidance,
                output_type="np" if decode else "latent",
                **call,
            )
    except (TypeError, ValueError) as error:  # how diffusers refuses its arguments
        raise LvdError(f"the pipeline refused the call: {' '.join(str(error).split())}") from error
    if len(recorded) != source.steps:
        raise LvdError(
            f"the sampler made {len(recorded)} steps, not {source.steps}: "
            "set pipeline.steps to what this pipeline runs"
        )
    return torch.stack(recorded, dim=1), output[0]


def _describe(pipe: Pipeline, source: Source, labelled: bool, x0: Tensor) -> CaptureInfo:
    channels, frames, height, width = x0.shape[2:]
    return CaptureInfo(
        format_version=FORMAT_VERSION,
        pipeline=source.path,
        revision=source.revision,
        pipeline_class=type(pipe).__name__,
        call=source.call,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=_plain(pipe.scheduler.config),
        steps=source.steps,
        guidance=source.guidance,
        latent_shape=(channels, frames, height, width),
        dtype="float16",
        category_names=source.category_names,
        labelled=labelled,
        versions={
            name: importlib.metadata.version(name) for name in ("lvd", "torch", "diffusers", "transformers")
        },
    )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration as JSON gives it back."""
    public = {key: value for key, value in config.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=lambda array: array.tolist()))
    return plain


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
