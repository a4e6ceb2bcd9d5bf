"""A contact sheet: frames in a grid, with a heading for each column and a label for each row."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 96  # pixels; a frame of the demo's 64, enlarged by half
GAP = 8


def lay_out(headings: Sequence[str], rows: Mapping[str, Iterable[Tensor | str]]) -> Image.Image:
    """A white sheet: wrapped headings above the columns, a label before each row.

    A cell is a frame `[3, H, W]` in [-1, 1], or words in its place.
    """
    font: Any = ImageFont.load_default(size=13)
    wrapped = [_wrap(heading, font) for heading in headings]
    line = sum(font.getmetrics()) + 2
    left = GAP + round(max(font.getlength(label) for label in rows)) + GAP
    top = GAP + line * max(len(lines) for lines in wrapped) + GAP

    pitch = CELL + GAP
    sheet = Image.new("RGB", (left + pitch * len(headings), top + pitch * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(wrapped):
        for i, text in enumerate(lines):
            x = left + pitch * column + CELL / 2
            draw.text((x, top - GAP - line * (len(lines) - i)), text, fill="black", font=font, anchor="ma")
    for row, (label, cells) in enumerate(rows.items()):
        y = top + pitch * row
        draw.text((left - GAP, y + CELL / 2), label, fill="black", font=font, anchor="rm")
        for column, cell in enumerate(cells):
            x = left + pitch * column
            if isinstance(cell, str):
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill="#e8e8e8")
                middle = (x + CELL / 2, y + CELL / 2)
                draw.text(middle, cell, fill="black", font=font, anchor="mm", align="center")
            else:
                sheet.paste(_pixels(cell), (x, y))
    return sheet


def stack(sheets: Sequence[Image.Image]) -> Image.Image:
    """Sheets under each other, flush left, on white."""
    size = (max(sheet.width for sheet in sheets), sum(sheet.height for sheet in sheets))
    stacked = Image.new("RGB", size, "white")
    top = 0
    for sheet in sheets:
        stacked.paste(sheet, (0, top))
        top += sheet.height
    return stacked


def _wrap(text: str, font: Any) -> list[str]:
    """Lines of whole words that are no wider than a cell."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def blurred(frame: Tensor) -> Tensor:
    """A frame `[3, H, W]` of which nothing but a few colours is left."""
    coarse = F.adaptive_avg_pool2d(frame[None], 5)
    soft: Tensor = F.interpolate(coarse, size=frame.shape[1:], mode="bicubic", align_corners=False)[0]
    return soft.clamp(-1, 1)


def _pixels(frame: Tensor) -> Image.Image:
    pixels = ((frame.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()
    return Image.fromarray(pixels).resize((CELL, CELL), Image.Resampling.BICUBIC)
