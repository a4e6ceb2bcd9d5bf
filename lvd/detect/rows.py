"""Which samples a detector learns from: one category against safe samples, split by split."""

import random
from collections.abc import Sequence

from lvd.errors import LvdError
from lvd.latents.format import Sample


def labelled_rows(samples: Sequence[Sample], split: str) -> list[int]:
    """The rows of a split that anything is learned from or measured on: unlabelled samples are left out."""
    return [row for row, s in enumerate(samples) if s.split == split and s.is_labelled]


def left_out(samples: Sequence[Sample]) -> str | None:
    """A sentence about the samples that `labelled_rows` leaves out; there are none: None."""
    unlabelled = sum(not sample.is_labelled for sample in samples)
    if not unlabelled:
        return None
    return (
        f"{unlabelled} of {len(samples)} samples are unlabelled: they are left out of training, calibration "
        "and every rate"
    )


def cell_rows(
    samples: Sequence[Sample], category: str, split: str, negatives: str, seed: int
) -> tuple[list[int], list[int]]:
    """The rows of one category's task in one split, and their labels (1 = unsafe).

    Positives are the category's samples. Negatives are safe samples: as many as positives, drawn by
    `seed`, or all of them. Samples of other categories only are left out, and so are unlabelled ones.

    Raises:
        LvdError: the split has no positive or no safe sample.
    """
    positives = [row for row, s in enumerate(samples) if s.split == split and s.has(category)]
    safe = [row for row, s in enumerate(samples) if s.split == split and s.is_safe]
    if not positives or not safe:
        what = f"samples of category {category}" if not positives else "safe samples"
        raise LvdError(f"the {split} split has no {what}: capture or label more")
    if negatives == "balanced":
        safe = sorted(
            random.Random(f"{seed} {category} {split}").sample(safe, min(len(safe), len(positives)))
        )
    return positives + safe, [1] * len(positives) + [0] * len(safe)
