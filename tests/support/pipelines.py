"""Every supported pipeline, built tiny from its real classes, and how it is called.

The same table is behind the tests and `benchmarks/pipeline_table.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from PIL import Image
from torch import nn

from lvd.capture.source import Lora
from support.pipeline_parts import (
    BREADTH,
    HEIGHT,
    allegro,
    animatediff,
    animatediff_sdxl,
    animatediff_to_adapt,
    cogvideox,
    easyanimate,
    hunyuan,
    hunyuan_15,
    hunyuan_15_image,
    hunyuan_image,
    hunyuan_skyreels,
    kandinsky,
    latte,
    ltx,
    ltx2,
    mochi,
    motif,
    pia,
    sana_video,
    stable_video_diffusion,
    text_to_video_sd,
    wan,
    wan_image,
    wan_transformer,
)

Pipeline = Any


@dataclass(frozen=True, eq=False)
class Tiny:
    """A tiny pipeline: its components, its call, and the latents that are expected of it."""

    name: str  # its class, and what is particular
    components: Callable[[], dict[str, Any]]
    latent_shape: tuple[int, int, int, int]  # C, F, H, W
    call: dict[str, Any]
    inputs: Literal["", "image", "video"] = ""
    batch_size: int = 2
    guidance: float | None = 5.0
    steps: int = 4
    negative: str | None = "blue"
    free_noise: dict[str, Any] | None = None
    vae_tiling: bool = False
    loras: tuple[Lora, ...] = ()
    step_cache: dict[str, Any] | None = None
    layout: str | None = None  # its class's own

    @property
    def pipeline_class(self) -> str:
        return self.name.partition(",")[0]

    def build(self) -> Pipeline:
        torch.manual_seed(0)
        parts = self.components()
        for part in parts.values():
            if isinstance(part, nn.Module):
                part.eval()
        kind = getattr(diffusers, self.pipeline_class)
        if not issubclass(kind, diffusers.ModularPipeline):
            return kind(**parts)
        pipe = kind()
        pipe.update_components(**parts)
        return pipe

    def arguments(self) -> dict[str, Any]:
        negative = {} if self.negative is None else {"negative_prompt": self.negative}
        return {**negative, **self.call}

    def __str__(self) -> str:
        return self.name


def picture(seed: int) -> Image.Image:
    noise = torch.rand(HEIGHT, BREADTH, 3, generator=torch.Generator().manual_seed(seed))
    return Image.fromarray((noise * 255).byte().numpy())


FRAMES_8 = {"num_frames": 8, "height": HEIGHT, "width": BREADTH}
FRAMES_9 = {"num_frames": 9, "height": HEIGHT, "width": BREADTH}
SHORT = {"max_sequence_length": 16}  # so many tokens of text
TEMPLATE = {"prompt_template": {"template": "{}", "crop_start": 0}}
IMAGE_TEMPLATE = {
    "prompt_template": {
        **TEMPLATE["prompt_template"],
        **{"image_emb_len": 4, "image_emb_start": 5, "image_emb_end": 9, "double_return_token_id": 0},
    }
}


TINY = (
    Tiny("AnimateDiffPipeline", animatediff, (4, 8, 8, 16), FRAMES_8),
    Tiny(
        "AnimateDiffPipeline, FreeNoise",
        animatediff_to_adapt,
        (4, 12, 4, 8),
        {**FRAMES_8, "num_frames": 12},
        free_noise={"context_length": 8, "context_stride": 4},
        batch_size=1,
    ),
    Tiny("AnimateDiffPAGPipeline", animatediff_to_adapt, (4, 8, 4, 8), {**FRAMES_8, "pag_scale": 3.0}),
    Tiny("AnimateDiffSDXLPipeline", animatediff_sdxl, (4, 8, 4, 8), FRAMES_8),
    Tiny(
        "AnimateDiffVideoToVideoPipeline",
        animatediff_to_adapt,
        (4, 8, 4, 8),
        {"height": HEIGHT, "width": BREADTH, "strength": 0.5, "num_inference_steps": 8},
        inputs="video",
    ),
    Tiny("PIAPipeline", pia, (4, 8, 4, 8), FRAMES_8, inputs="image"),
    Tiny("CogVideoXPipeline", cogvideox, (4, 3, 4, 8), {**FRAMES_9, **SHORT}),
    Tiny(
        "CogVideoXPipeline, DPM",
        lambda: cogvideox("CogVideoXDPMScheduler"),
        (4, 3, 4, 8),
        {**FRAMES_9, **SHORT},
    ),
    Tiny(
        "CogVideoXImageToVideoPipeline",
        lambda: cogvideox(image=True),
        (4, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        inputs="image",
    ),
    Tiny(
        "CogVideoXVideoToVideoPipeline",
        cogvideox,
        (4, 2, 4, 8),
        {"height": HEIGHT, "width": BREADTH, "strength": 0.5, "num_inference_steps": 8, **SHORT},
        inputs="video",
    ),
    Tiny("LTXPipeline", ltx, (8, 3, 8, 16), {**FRAMES_9, **SHORT}),
    Tiny("LTXImageToVideoPipeline", ltx, (8, 2, 8, 16), {**FRAMES_9, **SHORT}, inputs="image"),
    Tiny("LTX2Pipeline", ltx2, (4, 5, 4, 8), {**FRAMES_9, **SHORT}),
    Tiny(
        "LTX2ImageToVideoPipeline", ltx2, (4, 4, 4, 8), {**FRAMES_9, **SHORT, "image_crf": 0}, inputs="image"
    ),
    Tiny("WanPipeline", wan, (16, 3, 4, 8), {**FRAMES_9, **SHORT}),
    Tiny(
        "WanPipeline, two stages",
        lambda: wan(transformer_2=wan_transformer(), boundary_ratio=0.875),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
    ),
    Tiny("WanImageToVideoPipeline", wan_image, (16, 3, 4, 8), {**FRAMES_9, **SHORT}, inputs="image"),
    Tiny(
        "WanVideoToVideoPipeline",
        wan,
        (16, 2, 4, 8),
        {"height": HEIGHT, "width": BREADTH, "strength": 0.5, "num_inference_steps": 8, **SHORT},
        inputs="video",
    ),
    Tiny(
        "LucyEditPipeline",
        lambda: wan(transformer=wan_transformer(in_channels=32)),
        (16, 2, 4, 8),
        {**FRAMES_8, **SHORT},
        inputs="video",
    ),
    Tiny(
        "SkyReelsV2Pipeline",
        lambda: wan(transformer=wan_transformer("SkyReelsV2Transformer3DModel")),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
    ),
    Tiny(
        "SkyReelsV2ImageToVideoPipeline",
        lambda: wan_image("SkyReelsV2Transformer3DModel"),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        inputs="image",
    ),
    Tiny(
        "HunyuanVideoPipeline",
        hunyuan,
        (4, 3, 4, 8),
        {**FRAMES_9, **SHORT, **TEMPLATE, "true_cfg_scale": 2.0},
    ),
    Tiny(
        "HunyuanVideo15Pipeline",
        hunyuan_15,
        (4, 5, 8, 16),
        FRAMES_9,
        guidance=None,
        batch_size=1,  # its autoencoder decodes one video at a time
    ),
    Tiny(
        "HunyuanVideoImageToVideoPipeline",
        lambda: hunyuan_image(token_replace=False),
        (4, 3, 4, 8),
        {**FRAMES_9, **SHORT, **IMAGE_TEMPLATE},
        inputs="image",
    ),
    Tiny(
        "HunyuanVideoImageToVideoPipeline, token replaced",
        lambda: hunyuan_image(token_replace=True),
        (4, 2, 4, 8),
        {**FRAMES_9, **SHORT, **IMAGE_TEMPLATE},
        inputs="image",
    ),
    Tiny(
        "HunyuanSkyreelsImageToVideoPipeline",
        hunyuan_skyreels,
        (4, 3, 4, 8),
        {**FRAMES_9, **SHORT, **TEMPLATE, "true_cfg_scale": 2.0},
        inputs="image",
    ),
    Tiny(
        "HunyuanVideo15ImageToVideoPipeline",
        hunyuan_15_image,
        (4, 5, 3, 5),  # it chooses a size by the image
        {"num_frames": 9},
        inputs="image",
        guidance=None,
    ),
    Tiny("Kandinsky5T2VPipeline", kandinsky, (4, 3, 4, 8), {**FRAMES_9, "max_sequence_length": 1024}),
    Tiny("MochiPipeline", mochi, (12, 2, 4, 8), {**FRAMES_8, "num_frames": 7, **SHORT}),
    Tiny("MotifVideoPipeline", motif, (16, 3, 4, 8), {**FRAMES_9, **SHORT}, guidance=None),
    Tiny(
        "MotifVideoImage2VideoPipeline",
        lambda: motif(image=True),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        inputs="image",
        guidance=None,
    ),
    Tiny("EasyAnimatePipeline", easyanimate, (4, 3, 4, 8), FRAMES_9),
    Tiny(
        "LattePipeline",
        latte,
        (4, 3, 4, 8),
        {"video_length": 3, "height": HEIGHT, "width": BREADTH, "clean_caption": False},
    ),
    Tiny(
        "AllegroPipeline",
        allegro,
        (4, 2, 4, 8),
        {**FRAMES_8, **SHORT, "clean_caption": False},
        vae_tiling=True,
    ),
    Tiny(
        "StableVideoDiffusionPipeline",
        stable_video_diffusion,
        (4, 3, 4, 8),
        {**FRAMES_8, "num_frames": 3},
        inputs="image",
        negative=None,
    ),
    Tiny(
        "SanaVideoPipeline",
        sana_video,
        (16, 3, 4, 8),
        {
            "frames": 9,
            "height": HEIGHT,
            "width": BREADTH,
            **SHORT,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
    ),
    Tiny(
        "SanaImageToVideoPipeline",
        sana_video,
        (16, 2, 4, 8),
        {
            "frames": 9,
            "height": HEIGHT,
            "width": BREADTH,
            **SHORT,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        },
        inputs="image",
    ),
    Tiny("WanModularPipeline", wan, (16, 3, 4, 8), {**FRAMES_9, **SHORT}, guidance=None),
    Tiny(
        "Wan22ModularPipeline",
        lambda: wan(transformer_2=wan_transformer()),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        guidance=None,
    ),
    Tiny(
        "WanImage2VideoModularPipeline",
        wan_image,
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        inputs="image",
        guidance=None,
    ),
    Tiny(
        "Wan22Image2VideoModularPipeline",
        lambda: wan(
            transformer=wan_transformer(in_channels=36), transformer_2=wan_transformer(in_channels=36)
        ),
        (16, 3, 4, 8),
        {**FRAMES_9, **SHORT},
        inputs="image",
        guidance=None,
    ),
    Tiny("LTXModularPipeline", ltx, (8, 3, 8, 16), {**FRAMES_9, **SHORT}, guidance=None),
    Tiny("LTX2ModularPipeline", ltx2, (4, 5, 4, 8), {**FRAMES_9, **SHORT}, guidance=None),
    Tiny(
        "HunyuanVideo15ModularPipeline",
        hunyuan_15,
        (4, 5, 8, 16),
        FRAMES_9,
        guidance=None,
        batch_size=1,  # its autoencoder decodes one video at a time
    ),
    Tiny("TextToVideoSDPipeline", text_to_video_sd, (4, 3, 4, 8), {**FRAMES_8, "num_frames": 3}),
)
