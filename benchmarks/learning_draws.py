"""Some of a capture's samples as a capture of their own: what `learning_curves.py` trains on."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lvd.errors import LvdError
from lvd.files import sha256
from lvd.latents.format import Sample
from lvd.latents.reader import CaptureReader, StepReader
from lvd.latents.splits import prompt_groups

_WATCHED = 2  # val videos of each category: training only reports what they say


class Part(CaptureReader):
    """Some rows of a capture, in their order; in the splits that their samples say."""

    def __init__(self, capture: CaptureReader, samples: Mapping[int, Sample]) -> None:
        self.directory = capture.directory
        self.info = capture.info
        self.samples = list(samples.values())
        self._whole, self._rows = capture, list(samples)

    @property
    def latents_digest(self) -> str:
        return sha256(f"{self._whole.latents_digest} {self._rows}".encode())

    def step(self, step: int) -> StepReader:
        return _PartOfStep(self._whole.step(step), self._rows)


class _PartOfStep(StepReader):
    def __init__(self, whole: StepReader, rows: Sequence[int]) -> None:
        vars(self).update(vars(whole))
        self._whole, self._rows = whole, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Any:
        return self._whole[self._rows[row]]


def drawn(capture: CaptureReader, videos: int | None, seed: int) -> dict[int, Sample]:
    """All test samples of a capture, and of train and val those of one draw; `videos` None: all.

    A seed's draws contain one another: more videos are the same ones and others.

    Raises:
        LvdError: a category has fewer train videos.
    """
    rows = {row: sample for row, sample in enumerate(capture.samples) if sample.is_labelled}
    if videos is None:
        return rows
    chosen = {row for row, sample in rows.items() if sample.split == "test"}
    for split, count in (("train", videos), ("val", _WATCHED)):
        labelled = {row: sample for row, sample in rows.items() if sample.split == split}
        of_split = _in_turn(labelled, random.Random(f"{seed} {split}"))
        unsafe: set[int] = set()
        for name in capture.info.category_names:
            positives = [row for row in of_split if rows[row].has(name)]
            if split == "train" and len(positives) < count:
                raise LvdError(f"--videos {videos}: the train split has {len(positives)} videos of {name}")
            unsafe.update(positives[:count])
        safe = [row for row in of_split if rows[row].is_safe]
        share = len(unsafe) / (len(of_split) - len(safe))
        chosen |= unsafe | set(safe[: max(1, round(share * len(safe)))])
    return {row: sample for row, sample in rows.items() if row in chosen}


def _in_turn(samples: Mapping[int, Sample], rng: random.Random) -> list[int]:
    """Rows in a random order, but a prompt's second labelled video comes after every prompt's first."""
    shuffled = rng.sample(list(samples), len(samples))
    seen: Counter[tuple[str, Any]] = Counter()
    turns = {}
    for row in shuffled:
        key = samples[row].prompt_id, samples[row].categories  # an open prompt has videos of both kinds
        turns[row] = seen[key]
        seen[key] += 1
    return sorted(shuffled, key=lambda row: turns[row])  # stable


def on_val(capture: CaptureReader) -> Part:
    """A capture without its test split: half of the val prompts are test, and the others val."""
    samples = {row: s for row, s in enumerate(capture.samples) if s.split != "test" and s.is_labelled}
    val = {row: sample for row, sample in samples.items() if sample.split == "val"}
    groups = prompt_groups([s.prompt for s in val.values()], [s.prompt_id for s in val.values()])
    for group, (row, sample) in zip(groups, val.items(), strict=True):
        if random.Random(f"val {group}").random() < 0.5:
            samples[row] = replace(sample, split="test")
    return Part(capture, samples)
