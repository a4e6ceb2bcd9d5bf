"""Videos of one size from videos of any: which frames, and what of them."""

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def spread(frames: int, count: int) -> list[int]:
    """`count` of a video's frames, evenly from the first to the last; of fewer, some are repeated."""
    places: list[int] = np.linspace(0, frames - 1, count).round().astype(int).tolist()
    return places


def fitted(images_NCHW: Tensor, new_height: int, new_width: int) -> Tensor:
    """Images resized until they cover a size (bilinear, antialiased), and cropped in the middle."""
    height, width = images_NCHW.shape[2:]
    if new_height * width >= new_width * height:
        size = (new_height, width * new_height // height)
    else:
        size = (height * new_width // width, new_width)
    resized = F.interpolate(images_NCHW, size, mode="bilinear", antialias=True)
    top, left = (size[0] - new_height) // 2, (size[1] - new_width) // 2
    return resized[:, :, top : top + new_height, left : left + new_width]
