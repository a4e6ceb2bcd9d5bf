"""The files of a capture directory; the written spec is docs/format.md.

capture.json   how the latents were made        samples.csv    one row a sample, in row order
step_07/shard_0000.h5   x0 [N, C, F, H, W]      manifest.json  written last: what counts
"""

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final, Never, TextIO

from lvd.errors import LvdError
from lvd.files import has_fields, json_bytes, read_json, write_atomically
from lvd.sampling.origin import Origin

FORMAT_VERSION = 2  # of capture.json and samples.csv; version 1 is read
SPLITS = ("train", "val", "test")
SAMPLE_COLUMNS = ("sample_id", "prompt_id", "prompt", "seed", "categories", "split")
INPUT_COLUMNS = ("image", "video")  # follow, where samples have them
# The fields of capture.json that came later: the last ones, in its order, and missing in older files.
_ADDED = (
    *("recorded_steps", "x0_from", "imported", "parts", "layout_given", "step_caches", "weights"),
    *("noise_levels", "clips"),
)


class Unlabelled(Enum):
    """The type of `UNLABELLED`, what a sample has in place of categories that nobody has looked for.

    It has no truth value: `not sample.categories` would take it for safe, and raises instead.
    """

    UNLABELLED = "unlabelled"

    def __bool__(self) -> Never:
        raise TypeError("an unlabelled sample is neither safe nor unsafe: ask is_safe, is_unsafe or has()")


UNLABELLED: Final = Unlabelled.UNLABELLED
SAFE = "safe"  # how files write no categories
Categories = tuple[str, ...] | Unlabelled  # names from capture.json; none of them: safe


@dataclass(frozen=True)
class Sample:
    """One generated video: unlabelled, safe or of categories."""

    sample_id: str
    prompt_id: str
    prompt: str
    seed: int
    categories: Categories
    split: str
    image: str = ""  # what it was made from beside the prompt: files, named from the prompts file's place
    video: str = ""  # in a capture with `clips`: the clip itself

    @property
    def is_labelled(self) -> bool:
        return self.categories is not UNLABELLED

    @property
    def is_safe(self) -> bool:
        """Somebody has said so; an unlabelled sample is not safe."""
        return self.categories == ()

    @property
    def is_unsafe(self) -> bool:
        """Somebody has given it a category; an unlabelled sample is not unsafe either."""
        return self.is_labelled and not self.is_safe

    def has(self, category: str) -> bool:
        """Whether it was given a category; of an unlabelled sample nobody knows, and it was not."""
        return self.categories is not UNLABELLED and category in self.categories


def label_text(categories: Categories) -> str:
    """A label as files write it: names joined by |, `safe` or `unlabelled`."""
    return UNLABELLED.value if categories is UNLABELLED else "|".join(categories) or SAFE


@dataclass(frozen=True)
class CaptureInfo:
    """capture.json: how every x0 of the capture was made, and what is stored of it."""

    format_version: int
    origin: Origin
    dtype: str  # of the stored x0
    category_names: tuple[str, ...]
    versions: dict[str, str]
    recorded_steps: int | None = None  # only the first so many steps are stored; None: all of them
    imported: dict[str, int] = field(default_factory=dict)  # files it was imported from, and their bytes
    parts: dict[str, Any] = field(default_factory=dict)  # what was loaded into it or switched on besides
    clips: dict[str, Any] = field(default_factory=dict)  # how real clips among the samples were read

    @property
    def stored_steps(self) -> int:
        """How many steps are on disk: steps 0 to `stored_steps` - 1, of the sampler's `origin.steps`."""
        return self.origin.steps if self.recorded_steps is None else self.recorded_steps

    def steps_text(self) -> str:
        """The stored steps as messages name them."""
        stored = f"0..{self.stored_steps - 1}"
        return stored if self.recorded_steps is None else f"{stored} of the sampler's {self.origin.steps}"

    def fields(self) -> dict[str, Any]:
        """The fields of capture.json, in the file's order: the origin's stand among the others."""
        own = {name: value for name, value in vars(self).items() if name != "origin"}
        found = {"format_version": self.format_version, **vars(self.origin), **own}
        return found | {name: found.pop(name) for name in _ADDED}

    def category_index(self, category: str | int) -> int:
        """The index of a category given by name or index.

        Raises:
            LvdError: the capture has no such category.
        """
        names = self.category_names
        if str(category) in names:
            return names.index(str(category))
        if str(category).isdecimal() and int(category) < len(names):
            return int(category)
        raise LvdError(f"unknown category {category!r}: the capture has {self.categories_text()}")

    def categories_text(self) -> str:
        """The categories as messages name them."""
        return ", ".join(f"{index}={name}" for index, name in enumerate(self.category_names))


def no_capture(capture: Path) -> str:
    """What to do about a capture that is not there."""
    return f"no capture at {capture}: make it with capture.py name={capture.name}"


def read_info(capture: Path) -> CaptureInfo:
    """Read capture.json; one of version 1 as version 2 would have written it.

    Raises:
        LvdError: there is no such capture, or the file is not one that this version reads.
    """
    path = capture / "capture.json"
    raw = read_json(path, missing=no_capture(capture))
    if raw.get("format_version") == 1 and "labelled" in raw:  # which samples are, samples.csv says
        raw = {name: value for name, value in raw.items() if name != "labelled"}
        raw["format_version"] = FORMAT_VERSION
    try:
        origin, own = Origin.split(raw)
        own["origin"] = origin
        if own.get("format_version") != FORMAT_VERSION or not has_fields(own, CaptureInfo):
            raise ValueError
        info = CaptureInfo(**{**own, "category_names": tuple(own["category_names"])})
        stored = info.stored_steps
        if type(stored) is not int or not 1 <= stored <= origin.steps:
            raise ValueError
        if origin.noise_levels is not None and len(origin.noise_levels) != stored:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise LvdError(f"{path} is not a capture.json of format version 1 to {FORMAT_VERSION}") from None
    return info


def write_info(capture: Path, info: CaptureInfo) -> None:
    write_atomically(capture / "capture.json", info_json(info))


def info_json(info: CaptureInfo) -> bytes:
    """The content of capture.json."""
    return json_bytes(info.fields())


def read_samples(capture: Path) -> list[Sample]:
    """Read samples.csv, in row order.

    Raises:
        LvdError: the file is missing or a row is not a sample, or has no label.
    """
    path = capture / "samples.csv"
    if not path.is_file():
        raise LvdError(f"{path} is missing: the capture is not whole, make it again under another name")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise LvdError(f"{path} is not readable as UTF-8: {error}") from None
    except OSError as error:
        raise LvdError(f"{path} is not readable: {error.strerror}") from None
    try:
        rows = list(csv_rows(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise LvdError(f"{path} is not readable as CSV: {error}") from None
    _, header = rows[0] if rows else (0, [])
    inputs = tuple(column for column in INPUT_COLUMNS if column in header)
    if tuple(header) != SAMPLE_COLUMNS + inputs:
        raise LvdError(f"{path} must have the columns {', '.join(SAMPLE_COLUMNS)}")
    samples = []
    empty: Categories | None = None
    for line, texts in rows[1:]:
        if len(texts) != len(header):
            raise LvdError(f"{path} line {line} has {len(texts)} fields, the header {len(header)}")
        row = dict(zip(header, texts, strict=True))
        if row["split"] not in SPLITS or not _is_integer(row["seed"]):
            raise LvdError(f"{path} line {line}: bad split or seed of sample {row['sample_id']}")
        if not row["categories"] and empty is None:
            empty = _empty_label(capture)
        categories = _parse_label(row["categories"]) if row["categories"] else empty
        if categories is None:
            raise LvdError(f"{path} line {line}: sample {row['sample_id']} has neither categories nor safe")
        samples.append(
            Sample(
                sample_id=row["sample_id"],
                prompt_id=row["prompt_id"],
                prompt=row["prompt"],
                seed=int(row["seed"]),
                categories=categories,
                split=row["split"],
                **{column: row[column] for column in inputs},
            )
        )
    return samples


def _parse_label(text: str) -> Categories:
    """What `label_text` wrote."""
    if text == UNLABELLED.value:
        return UNLABELLED
    return () if text == SAFE else tuple(text.split("|"))


def _empty_label(capture: Path) -> Categories | None:
    """What it means that samples.csv has no label: of version 1, safe in a labelled capture; else None."""
    raw = read_json(capture / "capture.json", missing=no_capture(capture))
    if raw.get("format_version") != 1:
        return None
    return () if raw.get("labelled") is True else UNLABELLED


def csv_rows(file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV that are not blank, the header among them, each with the number of its last line.

    A field may have any length: csv's own bound, one for the whole process, is lifted.

    Raises:
        csv.Error: a quote is not closed, or is followed by something else than a comma.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(file, strict=True)
    for row in reader:
        if row:
            yield reader.line_num, row


def write_samples(capture: Path, samples: Iterable[Sample]) -> None:
    write_atomically(capture / "samples.csv", samples_csv(samples))


def samples_csv(samples: Iterable[Sample]) -> bytes:
    """The content of samples.csv."""
    samples = list(samples)
    text = io.StringIO()
    bare = any("\r" in sample.prompt for sample in samples)  # a line's end to csv, unless it is quoted
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if bare else csv.QUOTE_MINIMAL)
    inputs = [column for column in INPUT_COLUMNS if any(getattr(sample, column) for sample in samples)]
    columns = [*SAMPLE_COLUMNS, *inputs]
    writer.writerow(columns)
    for sample in samples:
        values = {**vars(sample), "categories": label_text(sample.categories)}
        writer.writerow([values[column] for column in columns])
    return text.getvalue().encode()


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
