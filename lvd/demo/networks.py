"""The generator's networks and its scheduler: small enough for a CPU, of diffusers' own classes."""

from diffusers import AutoencoderKL, DDIMScheduler, UNetMotionModel

from lvd.demo.scenes import FRAMES, SIZE
from lvd.demo.text import TEXT_WIDTH

PATCH = 8  # pixels of a latent's side
CHANNELS = 16


def build_vae() -> AutoencoderKL:
    """Few channels where there are many pixels: what a CPU can decode."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 48, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=SIZE,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_unet() -> UNetMotionModel:
    """Convolutions at 8x8; text and motion attention at 4x4 only, where they are cheap on a CPU."""
    return UNetMotionModel(
        sample_size=SIZE // PATCH,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
        up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=4,
        motion_num_attention_heads=4,
        motion_max_seq_length=FRAMES,
        temporal_transformer_layers_per_block=(0, 1),
        reverse_temporal_transformer_layers_per_block=((1, 1), (0, 0)),
    )


def build_scheduler() -> DDIMScheduler:
    """AnimateDiff's betas, rescaled so that the first step sees noise alone (Lin et al., 2024).

    Without that, what little signal its heaviest noise leaves decides at once what a video of so many alike
    pixels will be. Such a schedule takes v-prediction and trailing timesteps.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )
