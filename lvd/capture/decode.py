"""Decode stored latents with the VAE of the pipeline that they came from."""

from typing import Any

import torch
from torch import Tensor

from lvd.errors import LvdError
from lvd.sampling.origin import Origin

_DECODED_PIXELS = 2**21  # at once: eight frames of 512x512


def load_vae(origin: Origin, *, download: bool = False) -> Any:
    """The pipeline's own image VAE. Nothing is downloaded for a picture: only with `download`.

    Raises:
        LvdError: its weights cannot be had, or it is of a kind that does not decode frame by frame.
    """
    from diffusers import AutoModel

    try:
        vae = AutoModel.from_pretrained(
            origin.pipeline,
            subfolder="vae",
            revision=origin.revision,
            use_safetensors=True,
            local_files_only=not download,
        )
    except (OSError, ValueError) as error:
        missing = "cannot be downloaded, and " if download else ""
        raise LvdError(f"the VAE of {origin.pipeline} {missing}is not on this machine") from error
    if type(vae).__name__ != "AutoencoderKL":
        raise LvdError(f"{type(vae).__name__} of {origin.pipeline} does not decode single frames")
    return vae.eval()


@torch.inference_mode()
def decode_frames(vae: Any, latents_NCHW: Tensor) -> Tensor:
    """Frames `[N, 3, H', W']` float32 in [0, 1] on the CPU, of scaled latents of single frames."""
    latents = latents_NCHW.to(vae.device, vae.dtype) / vae.config.scaling_factor
    frames: Tensor = vae.decode(latents).sample.float().cpu()
    return (frames / 2 + 0.5).clamp(0, 1)


def frames_at_once(vae: Any, latents: Tensor) -> int:
    """How many frames of latents `[..., H, W]` are decoded together, to bound the memory."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a latent pixel, along a side
    pixels: int = latents.shape[-2] * latents.shape[-1] * scale**2
    return max(1, _DECODED_PIXELS // pixels)
