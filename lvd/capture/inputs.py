"""What a video is made from beside its prompt: the image or the video that a sample names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from lvd.errors import LvdError
from lvd.files import file_sha256, sha256
from lvd.latents.format import INPUT_COLUMNS, Sample


def named_inputs(row: Mapping[str, str], folder: Path, where: str) -> dict[str, str]:
    """The `image` and `video` of a prompts file's row, as paths from `folder`, each a file that is there.

    Raises:
        LvdError: there is no such file, or an image is none.
    """
    named = {column: row[column] for column in INPUT_COLUMNS if row.get(column)}
    for column, name in named.items():
        path = folder / name
        if not path.is_file():
            raise LvdError(f"{where}: no such {column}: {path}")
        if column == "image":
            try:
                with Image.open(path) as image:
                    image.verify()
            except (OSError, SyntaxError, ValueError):  # PIL raises SyntaxError for a broken PNG
                raise LvdError(f"{where}: {path} is not an image that can be read") from None
    return named


def inputs_digest(named: Mapping[str, str], folder: Path) -> str:
    """What tells a sample's inputs from others, whatever their files are called."""
    return sha256("".join(file_sha256(folder / name) for name in named.values()).encode())


def load_inputs(sample: Sample, folder: Path) -> dict[str, Any]:
    """The arguments of a pipeline's call for a sample's image (PIL) and video (a list of PIL images).

    Raises:
        LvdError: a file cannot be decoded.
    """
    loaded: dict[str, Any] = {}
    try:
        if sample.image:
            with Image.open(folder / sample.image) as image:
                loaded["image"] = ImageOps.exif_transpose(image).convert("RGB")
        if sample.video:
            from diffusers.utils import load_video

            loaded["video"] = [frame.convert("RGB") for frame in load_video(str(folder / sample.video))]
    except (AttributeError, ImportError) as error:  # anything but a GIF needs imageio and its ffmpeg
        raise LvdError(f"sample {sample.sample_id}: {sample.video}: {' '.join(str(error).split())}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise LvdError(f"sample {sample.sample_id}: its input cannot be read: {error}") from None
    return loaded
