"""Parts of a tiny AnimateDiff pipeline, with random weights: 8 frames of 32x32, latents [4, 8, 8, 8]."""

from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel
from transformers import CLIPTextModel, CLIPTokenizer

from lvd.demo import networks, text

FRAMES, SIZE = 8, 32
SETTINGS = (  # of capture.py, for a pipeline of these parts
    "pipeline=demo",
    "pipeline.guidance=5.0",
    f"pipeline.call={{num_frames: {FRAMES}, height: {SIZE}, width: {SIZE}}}",
    "pipeline.device=cpu",
)
_COLOURS = "white red green blue yellow magenta cyan pink"
_DIGITS = "zero one two three four five six seven eight nine"
_MOTIONS = "standing still drifting left right up down bouncing circling"
WORDS = f"a {_DIGITS} {_COLOURS} {_MOTIONS}".split()


def build_tokenizer() -> CLIPTokenizer:
    return text.build_tokenizer(WORDS, 16)


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return text.build_text_encoder(tokenizer)


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_unet() -> UNetMotionModel:
    return UNetMotionModel(
        sample_size=SIZE // 4,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=text.TEXT_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=FRAMES,
        temporal_transformer_layers_per_block=(0, 1),
        reverse_temporal_transformer_layers_per_block=((1, 1), (0, 0)),
    )


def build_scheduler() -> DDIMScheduler:
    """AnimateDiff's own: nothing is clipped, so x0 is the plain epsilon formula."""
    return DDIMScheduler.from_config(
        networks.build_scheduler().config,
        prediction_type="epsilon",
        rescale_betas_zero_snr=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
