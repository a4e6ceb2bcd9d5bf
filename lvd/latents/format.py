"""The files of a capture directory; the written spec is docs/format.md.

capture.json   how the latents were made        samples.csv    one row a sample, in row order
step_07/shard_0000.h5   x0 [N, C, F, H, W]      manifest.json  written last: what counts
"""

import csv
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lvd.errors import LvdError

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
SAMPLE_COLUMNS = ("sample_id", "prompt_id", "prompt", "seed", "categories", "split")


@dataclass(frozen=True)
class Sample:
    """One generated video. `categories` are names from capture.json; none of them = safe."""

    sample_id: str
    prompt_id: str
    prompt: str
    seed: int
    categories: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class CaptureInfo:
    """capture.json: how every x0 of the capture was made.

    `labelled` is False until somebody has said which samples are unsafe: an unlabelled sample has no
    categories either, and must not be taken for a safe one.
    """

    format_version: int
    pipeline: str  # repository id or directory
    revision: str | None
    pipeline_class: str
    call: dict[str, Any]  # the arguments of every pipeline call: height, width, num_frames, ...
    scheduler: str  # class name
    scheduler_config: dict[str, Any]
    steps: int
    guidance: float
    latent_shape: tuple[int, int, int, int]  # C, F, H, W
    dtype: str  # of the stored x0
    category_names: tuple[str, ...]
    labelled: bool
    versions: dict[str, str]

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
        listed = ", ".join(f"{index}={name}" for index, name in enumerate(names))
        raise LvdError(f"unknown category {category!r}: the capture has {listed}")


@dataclass(frozen=True)
class Shard:
    """One line of the manifest. A shard counts only when it is listed there."""

    path: str  # relative to the capture
    step: int
    count: int
    bytes: int
    sha256: str


def step_name(step: int) -> str:
    """The directory name of a step, in captures and runs: `step_07`."""
    return f"step_{step:02d}"


def read_info(capture: Path) -> CaptureInfo:
    """Read capture.json.

    Raises:
        LvdError: there is no such capture, or the file is not one that this version reads.
    """
    path = capture / "capture.json"
    raw = read_json(path, missing=f"no capture at {capture}: make it with capture.py name={capture.name}")
    known = {field.name for field in fields(CaptureInfo)}
    if raw.get("format_version") != FORMAT_VERSION or set(raw) != known:
        raise LvdError(f"{path} is not a capture.json of format version {FORMAT_VERSION}")
    info = CaptureInfo(**raw)
    try:
        channels, frames, height, width = info.latent_shape
        names = tuple(info.category_names)
    except (TypeError, ValueError):
        raise LvdError(f"{path} is not a capture.json of format version {FORMAT_VERSION}") from None
    return replace(info, latent_shape=(channels, frames, height, width), category_names=names)


def write_info(capture: Path, info: CaptureInfo) -> None:
    write_json(capture / "capture.json", asdict(info))


def read_samples(capture: Path) -> list[Sample]:
    """Read samples.csv, in row order.

    Raises:
        LvdError: the file is missing or a row is not a sample.
    """
    path = capture / "samples.csv"
    if not path.is_file():
        raise LvdError(f"{path} is missing: the capture is not whole, make it again under another name")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise LvdError(f"{path} is not readable as UTF-8: {error}") from None
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != SAMPLE_COLUMNS:
            raise LvdError(f"{path} must have the columns {', '.join(SAMPLE_COLUMNS)}")
        samples = []
        for row in reader:
            if None in row or row["split"] not in SPLITS or not _is_integer(row["seed"]):
                raise LvdError(
                    f"{path} line {reader.line_num}: bad split or seed of sample {row['sample_id']}"
                )
            categories = tuple(row["categories"].split("|")) if row["categories"] else ()
            samples.append(
                Sample(
                    sample_id=row["sample_id"],
                    prompt_id=row["prompt_id"],
                    prompt=row["prompt"],
                    seed=int(row["seed"]),
                    categories=categories,
                    split=row["split"],
                )
            )
    return samples


def write_samples(capture: Path, samples: Iterable[Sample]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SAMPLE_COLUMNS)
    for sample in samples:
        values = {**vars(sample), "categories": "|".join(sample.categories)}
        writer.writerow([values[column] for column in SAMPLE_COLUMNS])
    write_atomically(capture / "samples.csv", text.getvalue().encode())


def read_manifest(capture: Path) -> list[Shard]:
    """Read manifest.json, which a capture has from the moment it is complete.

    Raises:
        LvdError: the capture is not complete.
    """
    path = capture / "manifest.json"
    raw = read_json(path, missing=f"capture {capture} is not complete: run capture.py again to go on with it")
    try:
        if raw["format_version"] != FORMAT_VERSION or not isinstance(raw["shards"], list):
            raise TypeError
        return [Shard(**shard) for shard in raw["shards"]]
    except (KeyError, TypeError):
        raise LvdError(f"{path} is not a manifest.json of format version {FORMAT_VERSION}") from None


def write_manifest(capture: Path, shards: Iterable[Shard]) -> None:
    write_json(
        capture / "manifest.json",
        {"format_version": FORMAT_VERSION, "shards": [asdict(shard) for shard in shards]},
    )


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        LvdError: with the text `missing` when there is no file, or because it holds no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LvdError(missing) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise LvdError(f"{path} is not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise LvdError(f"{path} does not hold a JSON object")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing, durably: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()
