"""The images of an example: blurred before they are embedded, so that sharp pixels are not in the file."""

import io

from PIL import Image

_SHARP_SIDE = 6  # pixels that a blurred image keeps along its longer side
_SMALL_SIDE = 64  # images up to this many pixels wide are enlarged as squares


def is_small(png: bytes) -> bool:
    with Image.open(io.BytesIO(png)) as image:
        return bool(image.width <= _SMALL_SIDE)


def blurred(png: bytes) -> bytes:
    """The image at its own size, from a few pixels only, and without its metadata.

    Raises:
        PIL.UnidentifiedImageError: the bytes are no image.
    """
    with Image.open(io.BytesIO(png)) as image:
        sharp = image.convert("RGB")
    scale = _SHARP_SIDE / max(sharp.size)
    coarse = sharp.resize(
        (max(1, round(sharp.width * scale)), max(1, round(sharp.height * scale))), Image.Resampling.BOX
    )
    out = io.BytesIO()
    coarse.resize(sharp.size, Image.Resampling.BICUBIC).save(out, format="PNG")
    return out.getvalue()
