"""Load a generator, and say how its latents are made."""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from lvd.capture.source import Source
from lvd.errors import LvdError
from lvd.latents.format import FORMAT_VERSION, CaptureInfo
from lvd.sampling.fingerprint import Pipeline, denoisers, plain_config
from lvd.sampling.noise import Scheduler
from lvd.sampling.origin import Origin
from lvd.sampling.pipelines import check_class, check_supported, layout_of


def origin_of(
    source: Source, pipeline_class: str, scheduler: Scheduler, latent_shape: Sequence[int], **found: Any
) -> Origin:
    """How x0 `[C, F, H, W]` was made; `found` are the fields that the pipeline itself tells."""
    channels, frames, height, width = latent_shape
    return Origin(
        pipeline=source.path,
        revision=source.revision,
        pipeline_class=pipeline_class,
        call=source.call,
        scheduler=type(scheduler).__name__,
        scheduler_config=plain_config(scheduler.config),
        steps=source.steps,
        guidance=source.guidance,
        latent_shape=(channels, frames, height, width),
        **found,
    )


def capture_info(source: Source, origin: Origin, **others: Any) -> CaptureInfo:
    """capture.json of x0 that was made so, as float16; `others` are its further fields."""
    return CaptureInfo(
        format_version=FORMAT_VERSION,
        origin=origin,
        dtype="float16",
        category_names=tuple(source.category_names),
        versions={name: version(name) for name in ("lvd", "torch", "diffusers", "transformers")},
        **others,
    )


def load_pipeline(source: Source) -> Pipeline:
    """Load through `from_pretrained`: safetensors only, no remote code.

    Raises:
        LvdError: the class or the weights cannot be had, or the pipeline is of a kind that is not supported.
    """
    check_class(source.pipeline_class)
    import transformers

    transformers.utils.logging.set_verbosity_error()  # before diffusers: its imports give advice
    import diffusers

    if source.pipeline_class not in ("DiffusionPipeline", "ModularPipeline") and hasattr(
        diffusers, source.pipeline_class
    ):
        layout_of(source.pipeline_class, source.layout)  # before its weights are loaded
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
        kind = getattr(diffusers, source.pipeline_class)
        if issubclass(kind, diffusers.ModularPipeline):
            pipe = _load_modular(kind, source, dtypes)
        else:
            pipe = kind.from_pretrained(
                source.path, revision=source.revision, dtype=dtypes, use_safetensors=True, **parts
            )
        check_supported(pipe)
        layout_of(type(pipe).__name__, source.layout)
        if source.scheduler is not None:
            scheduler_class = getattr(diffusers, source.scheduler)
            pipe.scheduler = scheduler_class.from_config(pipe.scheduler.config, **source.scheduler_config)
        _plug_in(pipe, source)
    except (OSError, ValueError, AttributeError) as error:
        raise LvdError(f"pipeline {source.path} cannot be loaded: {' '.join(str(error).split())}") from None
    if source.offload and not hasattr(pipe, "enable_model_cpu_offload"):
        raise LvdError(f"pipeline.offload=true: {type(pipe).__name__} has no offload of its own")
    if source.offload and device.type != "cpu":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _load_modular(kind: Any, source: Source, dtypes: dict[str, torch.dtype]) -> Pipeline:
    """A modular pipeline with its components, which are loaded after its blocks are known."""
    pipe = kind.from_pretrained(source.path, revision=source.revision)
    specs = [pipe.get_component_spec(name) for name in pipe.pretrained_component_names]
    models = [spec.name for spec in specs if spec.type_hint is None or issubclass(spec.type_hint, nn.Module)]
    pipe.load_components(dtype=dtypes, use_safetensors=dict.fromkeys(models, True))
    for spec in specs:  # it only warns
        if spec.pretrained_model_name_or_path is not None and getattr(pipe, spec.name) is None:
            raise ValueError(f"its {spec.name} cannot be loaded")
    return pipe


def _plug_in(pipe: Pipeline, source: Source) -> None:
    for number, lora in enumerate(source.loras):
        options = {name: value for name, value in lora.given().items() if name not in ("path", "scale")}
        pipe.load_lora_weights(lora.path, adapter_name=f"lora_{number}", use_safetensors=True, **options)
    if source.loras:
        names = [f"lora_{number}" for number in range(len(source.loras))]
        pipe.set_adapters(names, [lora.scale for lora in source.loras])
    if source.free_noise is not None:
        pipe.enable_free_noise(**source.free_noise)
    if source.step_cache is not None:
        _cache_steps(pipe, source.step_cache)
    if source.vae_tiling:
        pipe.vae.enable_tiling()


def _cache_steps(pipe: Pipeline, given: dict[str, Any]) -> None:
    """Switch on a step cache in every part that denoises and has them: `config`, and its options."""
    import diffusers

    options = dict(given)
    kind = getattr(diffusers, str(options.pop("config", None)), None)
    networks = [part for part in denoisers(pipe).values() if hasattr(part, "enable_cache")]
    if not is_dataclass(kind) or not networks:
        raise ValueError(
            f"step_cache={given} names no config of a step cache in diffusers"
            if networks
            else f"no part of {type(pipe).__name__} has step caches"
        )
    if "current_timestep_callback" in {field.name for field in fields(kind)}:
        options["current_timestep_callback"] = lambda: pipe.current_timestep
    try:
        for network in networks:
            network.enable_cache(kind(**options))  # type: ignore[operator]
    except TypeError as error:
        raise ValueError(f"step_cache={given}: {error}") from None


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
