"""Pipelines order and pack the axes of latents differently; everything after the tap is B, C, F, H, W."""

import math
from typing import TYPE_CHECKING, Literal, get_args

from lvd.errors import LvdError

if TYPE_CHECKING:  # the names of layouts are settings, and --help does not wait for torch
    from torch import Tensor

# Axes in brackets are one axis, the first of them outermost.
Layout = Literal["BCFHW", "BFCHW", "BFHWC", "(BF)CHW", "B(FHW)C"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

LatentSize = tuple[int, int, int]  # how many frames, rows and columns a latent has

_AXES = {"BCFHW": 5, "BFCHW": 5, "BFHWC": 5, "(BF)CHW": 4, "B(FHW)C": 3}


def to_BCFHW(x: "Tensor", layout: Layout, size: LatentSize | None = None) -> "Tensor":  # noqa: N802
    """A latent as its sampler steps it, as a `[B, C, F, H, W]` view.

    A layout with brackets needs `size` to be taken apart.

    Raises:
        LvdError: `layout` is unknown, or the latent has not its axes, or does not fit `size`.
    """
    if layout not in LAYOUTS:
        raise LvdError(f"unknown layout {layout!r}: use one of {', '.join(LAYOUTS)}")
    if x.ndim != _AXES[layout]:
        raise LvdError(
            f"the sampler steps a latent of shape {tuple(x.shape)}; layout {layout} has {_AXES[layout]} axes"
        )
    if layout == "BCFHW":
        return x
    if layout == "BFCHW":
        return x.transpose(1, 2)
    if layout == "BFHWC":
        return x.movedim(-1, 1)
    if size is None:
        raise LvdError(
            f"layout {layout} cannot be taken apart without the number of frames, rows and columns"
        )
    if layout == "(BF)CHW":
        if len(x) % size[0]:
            raise LvdError(f"the sampler steps {len(x)} frames, which are not videos of {size[0]}")
        videos: Tensor = x.unflatten(0, (-1, size[0]))
        return videos.transpose(1, 2)
    if x.shape[1] != math.prod(size):
        frames, rows, columns = size
        raise LvdError(
            f"the sampler steps {x.shape[1]} tokens, which are not {frames} frames of {rows} x {columns}"
        )
    unpacked: Tensor = x.transpose(1, 2).unflatten(2, size)
    return unpacked


def from_BCFHW(x_BCFHW: "Tensor", layout: Layout) -> "Tensor":  # noqa: N802
    """A latent `[B, C, F, H, W]` as a sampler with this layout steps it; `to_BCFHW` takes it back."""
    if layout == "BFCHW":
        return x_BCFHW.transpose(1, 2)
    if layout == "BFHWC":
        return x_BCFHW.movedim(1, -1)
    if layout == "(BF)CHW":
        frames: Tensor = x_BCFHW.transpose(1, 2).flatten(0, 1)
        return frames
    if layout == "B(FHW)C":
        tokens: Tensor = x_BCFHW.flatten(2).transpose(1, 2)
        return tokens
    return x_BCFHW
