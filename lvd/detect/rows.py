"""Which samples a detector learns from: one category against safe samples, split by split."""

import random
from collections.abc import Sequence
from typing import Literal

from lvd.errors import LvdError
from lvd.latents.format import Sample

Negatives = Literal["balanced", "all"]


def cell_rows(
    samples: Sequence[Sample], category: str, split: str, negatives: Negatives, seed: int
) -> tuple[list[int], list[int]]:
    """The rows of one category's task in one split, and their labels (1 = unsafe).

    Positives are the category's samples. Negatives are safe samples: as many as positives, drawn by
    `seed`, or all of them. Samples of other categories only are left out.

    Raises:
        LvdError: the split has no positive or no safe sample.
    """
    positives = [row for row, s in enumerate(samples) if s.split == split and category in s.categories]
    safe = [row for row, s in enumerate(samples) if s.split == split and not s.categories]
    if not positives or not safe:
        what = f"samples of category {category}" if not positives else "safe samples"
        raise LvdError(f"the {split} split has no {what}: capture or label more")
    if negatives == "balanced":
        safe = sorted(
            random.Random(f"{seed} {category} {split}").sample(safe, min(len(safe), len(positives)))
        )
    return positives + safe, [1] * len(positives) + [0] * len(safe)
