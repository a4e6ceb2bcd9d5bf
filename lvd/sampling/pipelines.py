"""What must be known of a diffusers pipeline by its class: how its latents lie, and whether x0 can be had.

Classes go by name, so that a guard needs no diffusers. What a pipeline takes is read from its signature.
"""

from collections.abc import Mapping
from typing import Any

from lvd.errors import LvdError
from lvd.sampling.caches import unreadable_caches
from lvd.sampling.call import inputs_of
from lvd.sampling.fingerprint import Pipeline, is_modular
from lvd.sampling.layout import LAYOUTS, LatentSize, Layout

LAYOUT_OF: dict[str, Layout] = {
    "AllegroPipeline": "BCFHW",
    "AnimateDiffPAGPipeline": "BCFHW",
    "AnimateDiffPipeline": "BCFHW",
    "AnimateDiffSDXLPipeline": "BCFHW",
    "AnimateDiffVideoToVideoPipeline": "BCFHW",
    "CogVideoXImageToVideoPipeline": "BFCHW",
    "CogVideoXPipeline": "BFCHW",
    "CogVideoXVideoToVideoPipeline": "BFCHW",
    "EasyAnimatePipeline": "BCFHW",
    "HunyuanSkyreelsImageToVideoPipeline": "BCFHW",
    "HunyuanVideo15ImageToVideoPipeline": "BCFHW",
    "HunyuanVideo15ModularPipeline": "BCFHW",
    "HunyuanVideo15Pipeline": "BCFHW",
    "HunyuanVideoImageToVideoPipeline": "BCFHW",
    "HunyuanVideoPipeline": "BCFHW",
    "Kandinsky5T2VPipeline": "BFHWC",
    "LTX2ImageToVideoPipeline": "BCFHW",
    "LTX2ModularPipeline": "B(FHW)C",
    "LTX2Pipeline": "B(FHW)C",
    "LTXImageToVideoPipeline": "BCFHW",
    "LTXModularPipeline": "B(FHW)C",
    "LTXPipeline": "B(FHW)C",
    "LattePipeline": "BCFHW",
    "LucyEditPipeline": "BCFHW",
    "MochiPipeline": "BCFHW",
    "MotifVideoImage2VideoPipeline": "BCFHW",
    "MotifVideoPipeline": "BCFHW",
    "PIAPipeline": "BCFHW",
    "SanaImageToVideoPipeline": "BCFHW",
    "SanaVideoPipeline": "BCFHW",
    "SkyReelsV2ImageToVideoPipeline": "BCFHW",
    "SkyReelsV2Pipeline": "BCFHW",
    "StableVideoDiffusionPipeline": "BFCHW",
    "TextToVideoSDPipeline": "(BF)CHW",
    "Wan22Image2VideoModularPipeline": "BCFHW",
    "Wan22ModularPipeline": "BCFHW",
    "WanImage2VideoModularPipeline": "BCFHW",
    "WanImageToVideoPipeline": "BCFHW",
    "WanModularPipeline": "BCFHW",
    "WanPipeline": "BCFHW",
    "WanVideoToVideoPipeline": "BCFHW",
}

REFUSED: dict[str, str] = {
    "AnimateDiffControlNetPipeline": "it follows control frames, which a capture does not have",
    "AnimateDiffSparseControlNetPipeline": "it follows control frames, which a capture does not have",
    "AnimateDiffVideoToVideoControlNetPipeline": "it follows control frames, which a capture does not have",
    "AnyFlowFARPipeline": "it samples a video in chunks, each from its first step",
    "AnyFlowPipeline": "it follows a flow map, whose steps hold no x0",
    "ChronoEditPipeline": "it edits an image, and may drop frames in the middle of its steps",
    "CogVideoXFunControlPipeline": "it follows control frames, which a capture does not have",
    "ConsisIDPipeline": "it follows a face, whose embeddings a capture does not have",
    "Cosmos2_5_PredictBasePipeline": "it needs cosmos_guardrail, and was never run with it",
    "Cosmos2_5_TransferPipeline": "it samples a video in chunks, each from its first step",
    "Cosmos2TextToImagePipeline": "it makes an image",
    "Cosmos2VideoToWorldPipeline": "it needs cosmos_guardrail, and was never run with it",
    "Cosmos3DistilledModularPipeline": "it needs cosmos_guardrail, and was never run with it",
    "Cosmos3OmniModularPipeline": "it needs cosmos_guardrail, and was never run with it",
    "Cosmos3OmniPipeline": "it needs cosmos_guardrail, and was never run with it",
    "CosmosTextToWorldPipeline": "it steps its scheduler back within a step",
    "CosmosVideoToWorldPipeline": "it steps its scheduler back within a step",
    "EasyAnimateControlPipeline": "it follows control frames, which a capture does not have",
    "EasyAnimateInpaintPipeline": "it paints into a video by a mask, which a capture does not have",
    "EchoModularPipeline": "it samples a video in chunks, and steps no scheduler",
    "HeliosModularPipeline": "it samples a video in chunks, each from its first step",
    "HeliosPipeline": "it samples a video in chunks, each from its first step",
    "HeliosPyramidDistilledModularPipeline": "it samples a video in chunks, each from its first step",
    "HeliosPyramidModularPipeline": "it samples a video in chunks, each from its first step",
    "HeliosPyramidPipeline": "it samples a video in chunks, each from its first step",
    "HunyuanVideoFramepackPipeline": "it samples a video in sections, each from its first step",
    "I2VGenXLPipeline": "it draws from no generator of the call, so that no sample can be made again",
    "Kandinsky5I2VPipeline": "it changes its first frames after the last step, by all videos of the call",
    "Kandinsky6SRPipeline": "it samples a video in tiles, each from its first step",
    "Kandinsky6TI2VAPipeline": "it steps its image as one frame more than the video has",
    "LTX25ModularPipeline": "it decodes with a diffusion model, and was never run with one",
    "LTX2ConditionPipeline": "it steps the tokens of its conditions with those of the video",
    "LTX2DFRPipeline": "it steps the tokens of its keyframes with those of the video",
    "LTX2DFRTemporalRefinePipeline": "it refines the latents of another pipeline, in tiles",
    "LTX2HDRPipeline": "it steps the tokens of its references with those of the video",
    "LTX2InContextPipeline": "it steps the tokens of its references with those of the video",
    "LTX2LatentUpsamplePipeline": "it enlarges the latents of another pipeline, and samples nothing",
    "LTX2VideoDiffusionDecodePipeline": "it decodes the latents of another pipeline, and samples pixels",
    "LTXConditionPipeline": "it steps tokens at noise levels of their own",
    "LTXI2VLongMultiPromptPipeline": "it samples a video in windows, each from its first step",
    "LTXLatentUpsamplePipeline": "it enlarges the latents of another pipeline, and samples nothing",
    "MiniMaxH3ModularPipeline": "it steps the rows of one video, with no axis for several",
    "SanaWMPipeline": "it steps tokens at noise levels of their own",
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": "it has a scheduler for every frame",
    "SkyReelsV2DiffusionForcingPipeline": "it has a scheduler for every frame",
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": "it has a scheduler for every frame",
    "TextToVideoZeroPipeline": "it steps its first frame alone, back and forth, before the others",
    "TextToVideoZeroSDXLPipeline": "it steps its first frame alone, back and forth, before the others",
    "VideoToVideoSDPipeline": "its call does not say how many frames it steps",
    "Wan22VaceModularPipeline": "it follows control frames, which a capture does not have",
    "WanAnimate2DistilledModularPipeline": "it samples a video in segments, each from its first step",
    "WanAnimate2ModularPipeline": "it samples a video in segments, each from its first step",
    "WanAnimatePipeline": "it samples a video in segments, each from its first step",
    "WanVACEPipeline": "it follows control frames, which a capture does not have",
}

# Of a prompt, they make one video in a call: some set num_videos_per_prompt to 1, others fail with more.
_ONE_OF_A_PROMPT = frozenset(
    {
        "AllegroPipeline",
        "AnimateDiffPAGPipeline",
        "AnimateDiffPipeline",
        "AnimateDiffSDXLPipeline",
        "AnimateDiffVideoToVideoPipeline",
        "CogVideoXImageToVideoPipeline",
        "CogVideoXPipeline",
        "CogVideoXVideoToVideoPipeline",
        "HunyuanSkyreelsImageToVideoPipeline",
        "HunyuanVideo15ModularPipeline",
        "HunyuanVideo15Pipeline",
        "HunyuanVideoImageToVideoPipeline",
        "LucyEditPipeline",
        "MotifVideoImage2VideoPipeline",
        "PIAPipeline",
        "SanaImageToVideoPipeline",
        "SkyReelsV2ImageToVideoPipeline",
        "WanImage2VideoModularPipeline",
        "WanImageToVideoPipeline",
        "WanVideoToVideoPipeline",
    }
)

# Of the modular pipelines, the others may be given an image, and these must be.
_MODULAR_FROM_IMAGE = frozenset({"Wan22Image2VideoModularPipeline", "WanImage2VideoModularPipeline"})


def made_from_input(pipe: Pipeline) -> str | None:
    """What a pipeline makes every video from, `image` or `video`; None: it needs neither."""
    if is_modular(pipe) and type(pipe).__name__ not in _MODULAR_FROM_IMAGE:
        return None
    return next((name for name in ("image", "video") if name in inputs_of(pipe)), None)


def makes_one_of_a_prompt(pipe: Pipeline) -> bool:
    """Whether a call with num_videos_per_prompt > 1 does not make so many."""
    return type(pipe).__name__ in _ONE_OF_A_PROMPT


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


def layout_of(class_name: str, chosen: str | None = None) -> Layout:
    """How the latents lie that the scheduler of a pipeline steps: as `chosen`, or by its class.

    Raises:
        LvdError: the class was not proved to work, and no layout was chosen.
    """
    found = chosen or LAYOUT_OF.get(class_name)
    for layout in LAYOUTS:
        if layout == found:
            return layout
    raise LvdError(
        f"{class_name} is not proved to work, and how its latents lie is not known: to try it, set "
        f"pipeline.layout to one of {', '.join(LAYOUTS)}; capture and bundle then say so"
    )


def is_given(class_name: str, layout: str | None) -> bool:
    """Whether `layout` is one that was chosen by hand, and not the class's own."""
    return layout is not None and LAYOUT_OF.get(class_name) != layout


def refuse_unreadable_caches(pipe: Pipeline) -> None:
    """For captures: they record a step cache with its options.

    Raises:
        LvdError: names the part that caches in a way that cannot be recorded.
    """
    for name, cache in unreadable_caches(pipe).items():
        raise LvdError(
            f"the {name} of {type(pipe).__name__} caches steps ({cache}), and with what options cannot be "
            "read: x0 under it is not captured (pipeline.step_cache switches on a cache that is recorded)"
        )


def latent_size(pipe: Pipeline, layout: Layout, call: Mapping[str, Any]) -> LatentSize | None:
    """Frames, rows and columns of the latents of a call, where `layout` packs them; else None.

    Raises:
        LvdError: they cannot be told from this pipeline and call.
    """
    if layout not in ("(BF)CHW", "B(FHW)C"):
        return None
    given = {**inputs_of(pipe), **call}
    try:
        if layout == "(BF)CHW":
            return (int(given["num_frames"]), 0, 0)  # rows and columns are axes of their own
        patch, patch_t = _patch_sizes(pipe)
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


def _patch_sizes(pipe: Pipeline) -> tuple[int, int]:
    """How many rows and columns, and how many frames, of a latent are one token."""
    packer = getattr(pipe, "pachifier", None)  # of modular LTX
    if packer is not None:
        return packer.config.patch_size, packer.config.patch_size_t
    return pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
