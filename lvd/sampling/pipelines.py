"""What must be known of a diffusers pipeline by its class: how its latents lie, and whether x0 can be had.

Classes go by name, so that a guard needs no diffusers. What a pipeline takes is read from its signature.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from lvd.errors import LvdError
from lvd.sampling.fingerprint import Pipeline
from lvd.sampling.layout import LAYOUTS, Grid, Layout

LAYOUT_OF: dict[str, Layout] = {
    "AllegroPipeline": "BCFHW",
    "AnimateDiffPAGPipeline": "BCFHW",
    "AnimateDiffPipeline": "BCFHW",
    "AnimateDiffSDXLPipeline": "BCFHW",
    "AnimateDiffVideoToVideoPipeline": "BCFHW",
    "CogVideoXImageToVideoPipeline": "BFCHW",
    "CogVideoXPipeline": "BFCHW",
    "CogVideoXVideoToVideoPipeline": "BFCHW",
    "HunyuanVideo15Pipeline": "BCFHW",
    "HunyuanVideoPipeline": "BCFHW",
    "Kandinsky5T2VPipeline": "BFHWC",
    "LTX2ImageToVideoPipeline": "BCFHW",
    "LTX2Pipeline": "B(FHW)C",
    "LTXImageToVideoPipeline": "BCFHW",
    "LTXPipeline": "B(FHW)C",
    "LattePipeline": "BCFHW",
    "MochiPipeline": "BCFHW",
    "SanaImageToVideoPipeline": "BCFHW",
    "SanaVideoPipeline": "BCFHW",
    "SkyReelsV2ImageToVideoPipeline": "BCFHW",
    "SkyReelsV2Pipeline": "BCFHW",
    "StableVideoDiffusionPipeline": "BFCHW",
    "TextToVideoSDPipeline": "(BF)CHW",
    "WanImageToVideoPipeline": "BCFHW",
    "WanPipeline": "BCFHW",
    "WanVideoToVideoPipeline": "BCFHW",
}

REFUSED: dict[str, str] = {
    "AnyFlowFARPipeline": "it samples a video in chunks, each from its first step",
    "AnyFlowPipeline": "it follows a flow map, whose steps hold no x0",
    "CosmosTextToWorldPipeline": "it steps its scheduler back within a step",
    "CosmosVideoToWorldPipeline": "it steps its scheduler back within a step",
    "HeliosPipeline": "it samples a video in chunks, each from its first step",
    "HeliosPyramidPipeline": "it samples a video in chunks, each from its first step",
    "HunyuanVideoFramepackPipeline": "it samples a video in sections, each from its first step",
    "LTXConditionPipeline": "it steps tokens at noise levels of their own",
    "LTXI2VLongMultiPromptPipeline": "it samples a video in windows, each from its first step",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "it has a scheduler for every frame",
    "SkyReelsV2DiffusionForcingPipeline": "it has a scheduler for every frame",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "it has a scheduler for every frame",
    "TextToVideoZeroPipeline": "it steps its first frame alone, back and forth, before the others",
    "TextToVideoZeroSDXLPipeline": "it steps its first frame alone, back and forth, before the others",
    "WanAnimatePipeline": "it samples a video in segments, each from its first step",
}


def check_class(name: str) -> None:
    """Refuse a class by its name, before its weights are loaded.

    Raises:
        LvdError: says why.
    """
    if name in REFUSED:
        raise LvdError(f"{name} is not supported: {REFUSED[name]}")


def check_supported(pipe: Pipeline) -> None:
    """Refuse a pipeline whose denoising is not one run of steps over all frames.

    Raises:
        LvdError: names the pipeline, or what was switched on in it, and says why.
    """
    name = type(pipe).__name__
    check_class(name)
    if not hasattr(pipe, "scheduler"):  # modular pipelines are made of blocks, each with its own loop
        raise LvdError(f"{name} is not supported: it has no scheduler of its own")
    if getattr(pipe, "free_init_enabled", False):
        raise LvdError(
            f"FreeInit of {name} is not supported: it samples a video several times over, "
            "each from its first step (disable_free_init() switches it off)"
        )
    config = getattr(getattr(pipe, "unet", None), "config", None)
    if getattr(config, "encoder_hid_dim_type", None) == "ip_image_proj":  # the attribute; the item stays
        raise LvdError(
            f"IP-Adapter of {name} is not supported: a capture has no images for it "
            "(unload_ip_adapter() takes it out)"
        )


def layout_of(pipe: Pipeline, chosen: str | None = None) -> Layout:
    """How the latents lie that the scheduler of `pipe` steps: as `chosen`, or by its class.

    Raises:
        LvdError: the class is not known.
    """
    name = type(pipe).__name__
    found = chosen or LAYOUT_OF.get(name)
    for layout in LAYOUTS:
        if layout == found:
            return layout
    raise LvdError(
        f"how the latents of {name} lie is not known: set pipeline.layout to one of {', '.join(LAYOUTS)}"
    )


def grid_of(pipe: Pipeline, layout: Layout, call: Mapping[str, Any]) -> Grid | None:
    """Frames, rows and columns of the latents of a call, where `layout` packs them; else None.

    Raises:
        LvdError: they cannot be told from this pipeline and call.
    """
    if layout not in ("(BF)CHW", "B(FHW)C"):
        return None
    given = {name: parameter.default for name, parameter in inspect.signature(pipe).parameters.items()}
    given |= call
    try:
        if layout == "(BF)CHW":
            return (int(given["num_frames"]), 0, 0)  # rows and columns are axes of their own
        patch, patch_t = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
        spatial, temporal = pipe.vae_spatial_compression_ratio, pipe.vae_temporal_compression_ratio
        frames = (int(given["num_frames"]) - 1) // temporal + 1
        return (
            frames // patch_t,
            int(given["height"]) // spatial // patch,
            int(given["width"]) // spatial // patch,
        )
    except (AttributeError, KeyError, TypeError):
        raise LvdError(
            f"layout {layout} of {type(pipe).__name__} cannot be taken apart: "
            "give num_frames, height and width in pipeline.call"
        ) from None
