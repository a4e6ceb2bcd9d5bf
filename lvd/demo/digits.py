"""Moving handwritten digits: the videos that the demo generator learned, and the captions it understands.

Content is drawn from scikit-learn's `load_digits` (1,797 real 8x8 handwritten digits). Colour and
motion are drawn alike for every digit, so that nothing but the digit tells an unsafe video (0..4, one
category each) from a safe one (5..9).
"""

import csv
import math
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES = 8
SIZE = 32  # pixels, height and width

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNSAFE_DIGITS = 5  # digits below this are the stand-in categories
CATEGORY_NAMES = tuple(f"digit_{word}" for word in DIGITS[:UNSAFE_DIGITS])
COLOURS = {
    "red": (1.0, 0.15, 0.15),
    "gold": (1.0, 0.55, 0.05),
    "yellow": (1.0, 1.0, 0.15),
    "green": (0.1, 0.85, 0.2),
    "cyan": (0.1, 0.95, 1.0),
    "blue": (0.25, 0.35, 1.0),
    "pink": (1.0, 0.4, 0.8),
    "white": (1.0, 1.0, 1.0),
}
MOTIONS = (
    "drifting left",
    "drifting right",
    "drifting up",
    "drifting down",
    "bouncing",
    "circling",
    "standing still",
)
_DRIFT = {
    "drifting left": (-1.0, 0.0),
    "drifting right": (1.0, 0.0),
    "drifting up": (0.0, -1.0),
    "drifting down": (0.0, 1.0),
}


@dataclass(frozen=True)
class Scene:
    """What one video shows: an index into `DIGITS`, a key of `COLOURS`, one of `MOTIONS`."""

    digit: int
    colour: str
    motion: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {DIGITS[self.digit]} {self.motion}"

    @property
    def categories(self) -> tuple[str, ...]:
        return (CATEGORY_NAMES[self.digit],) if self.digit < UNSAFE_DIGITS else ()


def all_scenes() -> list[Scene]:
    """Every digit in every colour and motion, each once: 10 x 8 x 7 = 560 scenes."""
    return [Scene(*scene) for scene in product(range(len(DIGITS)), COLOURS, MOTIONS)]


def write_prompts(path: Path) -> None:
    """Write every scene as a row of a prompts file for capture.py: `prompt, categories`, in mixed order."""
    scenes = all_scenes()
    random.Random(0).shuffle(scenes)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prompt", "categories"])
        writer.writerows([scene.caption, "|".join(scene.categories)] for scene in scenes)


def load_glyphs() -> tuple[Tensor, Tensor]:
    """The real handwritten digits: images `[1797, 8, 8]` float32 in [0, 1] and labels `[1797]` int64."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (
        torch.from_numpy(images.reshape(-1, 8, 8) / 16.0).float(),
        torch.from_numpy(labels.astype(np.int64)),
    )


def render(scene: Scene, glyph: Tensor, rng: np.random.Generator) -> Tensor:
    """Draw one video of `glyph` `[8, 8]` as `[FRAMES, 3, SIZE, SIZE]` float32 in [-1, 1], on black."""
    glyph_px = rng.uniform(18.0, 22.0)
    centre_T2 = _path(scene.motion, limit=SIZE / 2 - glyph_px / 2 + 1.0, rng=rng)

    # The sampling grid maps an output pixel to glyph coordinates: (pixel - centre) / (glyph size / 2).
    zoom = SIZE / glyph_px
    theta = torch.zeros(FRAMES, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = -2.0 * torch.from_numpy(centre_T2).float() / glyph_px
    grid = F.affine_grid(theta, [FRAMES, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(
        glyph.expand(FRAMES, 1, 8, 8), grid, mode="bicubic", padding_mode="zeros", align_corners=False
    )
    ink = torch.clamp(1.4 * ink - 0.1, 0.0, 1.0)  # bicubic blur back to pen strokes
    colour = torch.tensor(COLOURS[scene.colour]).view(1, 3, 1, 1)
    return ink * colour * 2.0 - 1.0


def _path(motion: str, limit: float, rng: np.random.Generator) -> np.ndarray:
    """The glyph's centre in every frame `[FRAMES, 2]`, pixels from the middle, reflected at +-limit."""
    time = np.arange(FRAMES)[:, None]
    if motion == "circling":
        radius, start = rng.uniform(0.6, 1.0) * limit, rng.uniform(0.0, 2 * math.pi)
        angle = start + 2 * math.pi * time / FRAMES
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)

    if motion == "standing still":
        velocity = np.zeros(2)
        start_xy = rng.uniform(-limit, limit, size=2)
    elif motion == "bouncing":
        velocity = rng.uniform(2.0, 3.5, size=2) * rng.choice([-1.0, 1.0], size=2)
        start_xy = rng.uniform(-limit, limit, size=2)
    else:
        direction = np.array(_DRIFT[motion])
        velocity = direction * rng.uniform(1.0, 1.6)
        across = rng.uniform(-limit, limit, size=2) * (direction == 0)
        start_xy = across - direction * limit * rng.uniform(0.6, 1.0)

    unfolded = start_xy + velocity * time + limit  # triangle wave: drifts, then bounces off the border
    return limit - np.abs(np.mod(unfolded, 4 * limit) - 2 * limit)
