"""The files of a capture directory; the written spec is docs/format.md.

capture.json   how the latents were made        samples.csv    one row a sample, in row order
step_07/shard_0000.h5   x0 [N, C, F, H, W]      manifest.json  written last: what counts
"""

import csv
import io
import json
import os
import re
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Final, Never, TextIO

from lvd.errors import LvdError
from lvd.sampling.origin import Origin

FORMAT_VERSION = 2  # of capture.json and samples.csv; version 1 is read
MANIFEST_VERSION = 1
SPLITS = ("train", "val", "test")
SAMPLE_COLUMNS = ("sample_id", "prompt_id", "prompt", "seed", "categories", "split")
INPUT_COLUMNS = ("image", "video")  # follow, where samples have them
# The fields of capture.json that came later: the last ones, in its order, and missing in older files.
_ADDED = ("recorded_steps", "x0_from", "imported", "parts", "layout_given", "step_caches", "weights")


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
    video: str = ""

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

    @property
    def stored_steps(self) -> int:
        """How many steps are on disk: steps 0 to `stored_steps` - 1, of the sampler's `origin.steps`."""
        return self.origin.steps if self.recorded_steps is None else self.recorded_steps

    def steps_text(self) -> str:
        """The stored steps as sentences name them."""
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
        """The categories as sentences name them."""
        return ", ".join(f"{index}={name}" for index, name in enumerate(self.category_names))


@dataclass(frozen=True)
class Shard:
    """One line of the manifest. A shard counts only when it is listed there."""

    path: str  # relative to the capture
    step: int
    count: int
    bytes: int
    sha256: str

    @classmethod
    def parse(cls, raw: Any) -> "Shard":
        """Raises: TypeError or ValueError, when `raw` is not a shard below the capture's own directory."""
        shard = cls(**raw)
        numbers = (shard.step, shard.count, shard.bytes)
        if any(type(number) is not int or number < 0 for number in numbers) or shard.count == 0:
            raise ValueError
        if not re.fullmatch(rf"{step_name(shard.step)}/shard_\d{{4,}}\.h5", shard.path):
            raise ValueError
        if not re.fullmatch("[0-9a-f]{64}", shard.sha256):
            raise ValueError
        return shard


@dataclass(frozen=True)
class Manifest:
    """manifest.json: what a complete capture consists of.

    `files` has the SHA-256 that capture.json and samples.csv may have: one each, and two only while labels
    are being changed. A manifest of before there were any has none.
    """

    shards: list[Shard]
    files: dict[str, list[str]] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The file's content, the same for the same manifest."""
        return _json_bytes(
            {
                "format_version": MANIFEST_VERSION,
                **({"files": self.files} if self.files else {}),
                "shards": [asdict(shard) for shard in self.shards],
            }
        )


def step_name(step: int) -> str:
    """The directory name of a step, in captures and runs: `step_07`."""
    return f"step_{step:02d}"


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
    except (KeyError, TypeError, ValueError):
        raise LvdError(f"{path} is not a capture.json of format version 1 to {FORMAT_VERSION}") from None
    return info


def has_fields(raw: dict[str, Any], kind: type) -> bool:
    """Whether a JSON object has a dataclass's fields and no others; those with a default may be missing."""
    known = fields(kind)
    needed = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    return needed <= set(raw) <= {f.name for f in known}


def write_info(capture: Path, info: CaptureInfo) -> None:
    write_atomically(capture / "capture.json", info_json(info))


def info_json(info: CaptureInfo) -> bytes:
    """The content of capture.json."""
    return _json_bytes(info.fields())


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


def read_manifest(capture: Path) -> Manifest:
    """Read manifest.json, which a capture has from the moment it is complete.

    Raises:
        LvdError: the capture is not complete.
    """
    path = capture / "manifest.json"
    begun = (capture / "capture.json").is_file()
    raw = read_json(
        path,
        missing=f"capture {capture} is not complete: run capture.py again to go on with it"
        if begun
        else no_capture(capture),
    )
    try:
        if raw["format_version"] != MANIFEST_VERSION or not isinstance(raw["shards"], list):
            raise TypeError
        files = {
            str(name): [str(digest) for digest in digests] for name, digests in raw.get("files", {}).items()
        }
        return Manifest([Shard.parse(shard) for shard in raw["shards"]], files)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise LvdError(f"{path} is not a manifest.json of format version {MANIFEST_VERSION}") from None


def write_manifest(capture: Path, manifest: Manifest) -> None:
    write_atomically(capture / "manifest.json", manifest.as_bytes())


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LvdError: with the text `missing` when there is no file, or because it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LvdError(missing) from None
    except OSError as error:
        raise LvdError(f"{path} is not readable: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise LvdError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LvdError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, _json_bytes(value))


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, durably: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # several machines may write at once
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable: a rename alone may be lost with the power."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _json_bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
