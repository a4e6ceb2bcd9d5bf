"""Encode a video to the clean latent that a pipeline would denoise to."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvd.errors import LvdError

# Video autoencoders whose latents are normalised as `_normalised` does; any other one is refused.
_VIDEO_VAES = frozenset(
    {
        "AutoencoderKLAllegro",
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
def encode_clip(vae: Any, frames_FCHW: Tensor, device: torch.device | None = None) -> Tensor:
    """The latent `[1, C, F, H, W]` float32 of a video `[frames, 3, height, width]` in [0, 1].

    It is the mean of what the encoder says, as a pipeline scales it. An autoencoder that is offloaded goes to
    `device` by itself; None: it is where it encodes.

    Raises:
        LvdError: how the latents of this autoencoder are scaled is not known, or it cannot encode as it is
            set.
    """
    name, frames = type(vae).__name__, (frames_FCHW * 2 - 1).to(device or vae.device)
    if name == "AutoencoderKL":  # of images: frame by frame
        with _upcast(vae):
            images = frames.to(vae.dtype).split(_IMAGES_AT_ONCE)
            parts = [vae.encode(some).latent_dist.mode() for some in images]
        latents = torch.cat(parts).transpose(0, 1)[None].float()
        scaled: Tensor = latents * vae.config.scaling_factor
        return scaled
    if name not in _VIDEO_VAES:
        raise LvdError(f"clips cannot be encoded by {name}: how its latents are scaled is not known")
    if name == "AutoencoderKLAllegro" and not vae.use_tiling:
        raise LvdError(f"{name} encodes in tiles alone: set pipeline.vae_tiling=true")
    return _normalised(vae, vae.encode(frames.to(vae.dtype).transpose(0, 1)[None]).latent_dist.mode().float())


@contextmanager
def _upcast(vae: Any) -> Iterator[None]:
    """As pipelines encode with an autoencoder that overflows in half precision, such as SDXL's."""
    dtype = vae.dtype
    if not vae.config.get("force_upcast"):
        yield
        return
    nn.Module.to(vae, torch.float32)  # that of diffusers warns of every cast
    try:
        yield
    finally:
        nn.Module.to(vae, dtype)


def _normalised(vae: Any, latents_BCFHW: Tensor) -> Tensor:
    """What a pipeline undoes before it decodes: (z - mean) / std of each channel, and a factor."""
    latents = latents_BCFHW
    known = {**vae.config, **dict(vae.named_buffers())}  # LTX's are buffers, Wan's are in its configuration
    mean, std = known.get("latents_mean"), known.get("latents_std")
    if mean is not None and std is not None:
        shift, scale = (
            torch.as_tensor(part, device=latents.device).float().view(1, -1, 1, 1, 1) for part in (mean, std)
        )
        latents = (latents - shift) / scale
    factor: float = known.get("scaling_factor") or 1.0
    return latents * factor
