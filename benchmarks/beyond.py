"""What the measurements beyond the training distribution share.

Arguments, the demo that they are of, truth, rates, and a journal to go on from.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import command
import numpy as np
import torch
from torch import Tensor

from lvd.decide.intervals import Interval, prompt_numbers, rate_interval, share_in_words
from lvd.demo.draw import GENERATOR, load_pipeline
from lvd.demo.recogniser import (
    EMPTY,
    RECOGNISER,
    SURE,
    THINGS,
    Recogniser,
    frame_logits,
    judge,
    load_recogniser,
)
from lvd.demo.scenes import CATEGORY_NAMES, Caption, caption_of
from lvd.errors import LvdError
from lvd.guard.bundle import Bundle, load_bundle
from lvd.latents.format import read_samples
from lvd.progress import progress

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Truth:
    """What the recogniser says that a video shows."""

    shows: str
    unsafe: bool | None  # None: unclear, and counted nowhere


Look = Callable[[Recogniser, Tensor], list[Truth]]  # at videos [N, T, 3, H, W] in [-1, 1]


def by_subject(recogniser: Recogniser, videos: Tensor) -> list[Truth]:
    """As the demo's labels are made: one subject is there and nothing else is, or it is unclear."""
    verdicts = judge(recogniser, videos)
    return [Truth(one.subject, bool(one.categories) if one.clear else None) for one in verdicts]


def by_presence(recogniser: Recogniser, videos: Tensor) -> list[Truth]:
    """For videos that may show several subjects: unsafe where a category is there, safe where none is.

    As sure as a verdict has to be. The recogniser has learned frames with one subject only.
    """
    logits = frame_logits(recogniser, videos).mean(dim=1)
    truths = []
    for there in logits[:, : len(THINGS)].sigmoid():
        unsafe = torch.stack([there[THINGS.index(name)] for name in CATEGORY_NAMES])
        shows = [name for name, one in zip(THINGS, there.tolist(), strict=True) if one >= SURE]
        safe = float((1 - unsafe).prod()) >= SURE
        verdict = True if float(unsafe.max()) >= SURE else (False if safe else None)
        truths.append(Truth(" + ".join(shows) or EMPTY, verdict))
    return truths


def as_videos(frames: Iterable[np.ndarray]) -> Tensor:
    """Videos `[T, H, W, 3]` in [0, 1], as a pipeline gives them, as `[N, T, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(np.stack(list(frames))).permute(0, 1, 4, 2, 3) * 2 - 1


def unseen_captions(capture: Path) -> list[Caption]:
    """A demo capture's test prompts, which nothing was fitted or chosen on.

    Raises:
        LvdError: the capture is not there, has no test samples, or prompts that are no captions.
    """
    captions = [caption_of(sample.prompt) for sample in read_samples(capture) if sample.split == "test"]
    if not captions:
        raise LvdError(f"{capture} has no test samples")
    return captions


def rate(hits: Sequence[bool], prompts: Sequence[str]) -> tuple[Interval | None, str]:
    """The 95% interval of a share of videos, by prompts, and how to say it; None where there are none."""
    numbers = prompt_numbers(prompts)
    interval = rate_interval(np.array(hits), numbers) if hits else None
    return interval, share_in_words(sum(hits), len(hits), len(np.unique(numbers)), interval)


def digest_of(*paths: Path) -> str:
    """SHA-256 of files and of all files in directories, by name and content."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                content = hashlib.sha256(file.read_bytes()).hexdigest()
                digest.update(f"{file.relative_to(path.parent)} {content}\n".encode())
    return digest.hexdigest()


class Journal:
    """What was measured, a line of JSON each, so that an interrupted measurement goes on where it was.

    of: what the measurements are of (a digest); those of anything else in the same file are left alone.
    """

    def __init__(self, path: Path, of: str) -> None:
        self._path, self._of = path, of
        self._found: dict[str, Any] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        self._torn = bool(text) and not text.endswith("\n")  # its writer was killed
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if record["of"] == of:
                    self._found[_canonical(record["key"])] = record["value"]
            except (KeyError, TypeError, ValueError):
                continue  # half a line; it is measured again

    def get(self, key: Any) -> Any:
        """What was measured under this key (any JSON), or None."""
        return self._found.get(_canonical(key))

    def measured(
        self,
        name: str,
        items: Sequence[ItemT],
        keys: Sequence[Any],
        batch: int,
        measure: Callable[[Sequence[ItemT]], Sequence[Any]],
    ) -> list[Any]:
        """What was measured of each item, under its key; what is not there is measured, in batches."""
        todo = [(item, key) for item, key in zip(items, keys, strict=True) if self.get(key) is None]
        with progress(name, len(items), "videos") as advance:
            advance(len(items) - len(todo))
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                for (_, key), value in zip(part, measure([item for item, _ in part]), strict=True):
                    self.add(key, value)
                advance(len(part))
        return [self.get(key) for key in keys]

    def add(self, key: Any, value: Any) -> None:
        """Write it down at once."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            line = json.dumps({"of": self._of, "key": key, "value": value})
            file.write(("\n" if self._torn else "") + line + "\n")
        self._torn = False
        self._found[_canonical(key)] = value


def _canonical(key: Any) -> str:
    return json.dumps(key, sort_keys=True)


@dataclass(frozen=True)
class Demo:
    """The demo that is measured: its guard's bundle, its generator, and its test prompts."""

    bundle: Bundle
    pipe: Any
    recogniser: Recogniser
    captions: list[Caption]
    journal: Journal

    @classmethod
    def opened(cls, args: argparse.Namespace) -> "Demo":
        """As the command line (`arguments`) says.

        Raises:
            LvdError: a part is missing.
        """
        captions, bundle = unseen_captions(args.capture), load_bundle(args.bundle)
        pipe = load_pipeline(args.generator)
        journal = Journal(args.journal, bundle.digest + digest_of(args.generator, RECOGNISER))
        return cls(bundle, pipe, load_recogniser().to(pipe.device), captions, journal)


def arguments(text: str | None, *, videos: int, seed: int, journal: str) -> argparse.ArgumentParser:
    """The arguments that the measurements have in common, with the defaults of one."""
    parser = command.parser(text)
    parser.add_argument("--bundle", type=Path, default=Path("runs/demo/bundle"))
    parser.add_argument("--capture", type=Path, default=Path("captures/demo"))
    parser.add_argument("--generator", type=Path, default=GENERATOR)
    parser.add_argument("--videos", type=int, default=videos, help="of each row (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=seed, help="of a row's first video")
    parser.add_argument("--journal", type=Path, default=Path("runs/demo") / journal)
    parser.add_argument("--json", type=Path, help="write the table's numbers here")
    return parser
