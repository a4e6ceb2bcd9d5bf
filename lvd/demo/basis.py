"""The latents of the generator, computed without a network: principal components of patches of pixels."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lvd.demo.networks import CHANNELS, PATCH
from lvd.demo.recogniser import to_float
from lvd.demo.scenes import FRAMES, SIZE


@dataclass(frozen=True)
class Basis:
    """The principal components of 8x8 patches, each divided by the root of its standard deviation.

    Latents have a standard deviation of 1 over all channels, and more in those that hold more of the picture.
    """

    mean: Tensor  # [192]
    into: Tensor  # [192, CHANNELS]

    @staticmethod
    def fit(frames: Tensor) -> "Basis":
        """Of frames `[N, 3, SIZE, SIZE]` in [-1, 1]."""
        patches = F.unfold(frames, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        mean = patches.mean(dim=0)
        variance, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        variance, directions = variance.flip(0)[:CHANNELS], directions.flip(1)[:, :CHANNELS]
        gain = variance**-0.25
        return Basis(mean, (directions * gain / (variance * gain**2).mean().sqrt()).contiguous())

    def encode(self, frames: Tensor) -> Tensor:
        """Latents `[N, CHANNELS, 8, 8]` of frames `[N, 3, SIZE, SIZE]`."""
        patches = F.unfold(frames, PATCH, stride=PATCH).transpose(1, 2)
        side = SIZE // PATCH
        latents: Tensor = ((patches - self.mean) @ self.into).transpose(1, 2).unflatten(2, (side, side))
        return latents

    def encode_clips(self, clips: np.ndarray) -> Tensor:
        """Latents `[N, CHANNELS, FRAMES, 8, 8]` of clips `[N, FRAMES, SIZE, SIZE, 3]` uint8."""
        latents = [
            self.encode(to_float(clips[i : i + 100]).flatten(0, 1)).unflatten(0, (-1, FRAMES))
            for i in range(0, len(clips), 100)
        ]
        return torch.cat(latents).transpose(1, 2).contiguous()
