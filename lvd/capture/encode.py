"""Encode a video to the clean latent that a pipeline would denoise to."""

from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError

# Video autoencoders whose latents are normalised as `_normalised` does; any other one is refused.
_VIDEO_VAES = frozenset(
    {
        "AutoencoderKLCogVideoX",
        "AutoencoderKLHunyuanVideo",
        "AutoencoderKLHunyuanVideo15",
        "AutoencoderKLLTX2Video",
        "AutoencoderKLLTXVideo",
        "AutoencoderKLMagvit",
        "AutoencoderKLMochi",
        "AutoencoderKLWan",
    }
)
_IMAGES_AT_ONCE = 8


@torch.inference_mode()
def encode_clip(vae: Any, frames_FCHW: Tensor) -> Tensor:
    """The latent `[1, C, F, H, W]` float32 of a video `[frames, 3, height, width]` in [0, 1].

    It is the mean of what the encoder says, as a pipeline scales it.

    Raises:
        LvdError: how the latents of this autoencoder are scaled is not known.
    """
    frames = (frames_FCHW * 2 - 1).to(vae.device, vae.dtype)
    name = type(vae).__name__
    if name == "AutoencoderKL":  # of images: frame by frame
        parts = [vae.encode(part).latent_dist.mode() for part in frames.split(_IMAGES_AT_ONCE)]
        latents = torch.cat(parts).transpose(0, 1)[None].float()
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled
    if name not in _VIDEO_VAES:
        raise LvdError(f"clips cannot be encoded by {name}: how its latents are scaled is not known")
    return _normalised(vae, vae.encode(frames.transpose(0, 1)[None]).latent_dist.mode().float())


def _normalised(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """What a pipeline undoes before it decodes: (z - mean) / std of each channel, and a factor."""
    latents = latents_BCFHW
    mean, std = (getattr(vae, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None:
        mean, std = (vae.config.get(name) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        shift, scale = (
            torch.as_tensor(part, device=latents.device).float().view(1, -1, 1, 1, 1) for part in (mean, std)
        )
        latents = (latents - shift) / scale
    factor: float = vae.config.get("scaling_factor") or 1.0
    return latents * factor
