"""Pipelines order the axes of their latents differently; everything after the tap is B, C, F, H, W."""

from typing import Literal, get_args

from torch import Tensor

from lvd.errors import LvdError

Layout = Literal["BCFHW", "BFCHW"]


def to_BCFHW(x: Tensor, layout: Layout) -> Tensor:  # noqa: N802
    """A latent as its sampler steps it, as a `[B, C, F, H, W]` view.

    Raises:
        LvdError: the latent has not the five axes that `layout` names, or `layout` is unknown.
    """
    if layout not in get_args(Layout):
        raise LvdError(f"unknown layout {layout!r}: use one of {', '.join(get_args(Layout))}")
    if x.ndim != 5:
        raise LvdError(f"the sampler steps a latent of shape {tuple(x.shape)}; layout {layout} has five axes")
    return x.transpose(1, 2) if layout == "BFCHW" else x
