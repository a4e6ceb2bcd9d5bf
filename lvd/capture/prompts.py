"""Read the prompts of a capture, and labels that came after the videos were watched."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lvd.errors import LvdError
from lvd.latents.format import CaptureInfo, Sample, read_info, read_samples, write_info, write_samples
from lvd.latents.splits import assign_splits, default_prompt_id

_ID = re.compile(r"[\w.-]+")
_UVD_COLUMNS = ("1", "2", "3", "4", "5")  # the paper's label file: a column of video indices a category


def read_prompts(path: Path, category_names: Sequence[str], seed: int) -> tuple[list[Sample], bool]:
    """The samples that a prompts file asks for, split by prompt, and whether it labels them.

    Needs a column `prompt`; `sample_id, prompt_id, seed, categories` (names joined by `|`) are optional.
    Without a seed, sample i is drawn with `seed` + i.

    Raises:
        LvdError: names the file, the line and what is wrong with it.
    """
    rows = _read_rows(path)
    if "prompt" not in rows[0]:
        raise LvdError(f"{path} has no column 'prompt': it has {', '.join(rows[0])}")
    labelled = "categories" in rows[0]
    width = max(4, len(str(len(rows) - 1)))

    samples: list[Sample] = []
    seen: set[str] = set()
    for index, row in enumerate(rows):
        where = f"{path} row {index + 1}"
        prompt = row["prompt"]
        if not prompt.strip():
            raise LvdError(f"{where}: the prompt is empty")
        sample_id = row.get("sample_id", f"{index:0{width}d}")
        if not _ID.fullmatch(sample_id):
            raise LvdError(f"{where}: sample_id {sample_id!r} must be letters, digits, '.', '_' and '-'")
        if sample_id in seen:
            raise LvdError(f"{where}: sample_id {sample_id!r} stands twice")
        seen.add(sample_id)
        prompt_id = row.get("prompt_id", default_prompt_id(prompt))
        if not prompt_id:
            raise LvdError(f"{where}: prompt_id is empty")
        sample_seed = row.get("seed", str(seed + index))
        if not sample_seed.isdecimal() or int(sample_seed) >= 2**63:
            raise LvdError(f"{where}: seed {sample_seed!r} must be a whole number from 0 to 2^63 - 1")
        categories = _known(row.get("categories", "").split("|"), category_names, where)
        samples.append(Sample(sample_id, prompt_id, prompt, int(sample_seed), categories, split=""))
    return _with_splits(samples, seed), labelled


def label(capture: Path, labels: Path, seed: int) -> CaptureInfo:
    """Set the categories of an existing capture; a sample that `labels` does not name is safe.

    `labels` is tidy (`sample_id, category`, a row each; an empty category changes nothing) or has the
    paper's columns `1`..`5`, each the 0-based rows of a category's samples. A capture's first labels
    also balance its splits; from then on the splits stay as they are.

    Raises:
        LvdError: names the file, the line and what is wrong with it; the capture is unchanged.
    """
    info = read_info(capture)
    samples = read_samples(capture)
    rows = _read_rows(labels)
    if set(rows[0]) >= {"sample_id", "category"}:
        pairs = _tidy_pairs(rows, labels)
    elif set(rows[0]) == set(_UVD_COLUMNS):
        pairs = _uvd_pairs(rows, labels, samples, info.category_names)
    else:
        raise LvdError(f"{labels} needs the columns sample_id, category or {', '.join(_UVD_COLUMNS)}")

    categories: dict[str, set[str]] = {sample.sample_id: set() for sample in samples}
    for where, sample_id, category in pairs:
        if sample_id not in categories:
            raise LvdError(f"{where}: the capture has no sample {sample_id!r}")
        categories[sample_id].update(_known([category], info.category_names, where))

    order = info.category_names.index
    samples = [replace(s, categories=tuple(sorted(categories[s.sample_id], key=order))) for s in samples]
    write_samples(capture, samples if info.labelled else _with_splits(samples, seed))
    info = replace(info, labelled=True)
    write_info(capture, info)
    return info


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise LvdError(f"no such file: {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LvdError(f"{path} is not readable as CSV in UTF-8: {error}") from None
    if not rows:
        raise LvdError(f"{path} holds no rows")
    for number, row in enumerate(rows, 1):
        if None in row:
            raise LvdError(f"{path} row {number} has more fields than the header: quote fields with commas")
    return rows


def _known(categories: Sequence[str], names: Sequence[str], where: str) -> tuple[str, ...]:
    named = {category.strip() for category in categories} - {""}
    for category in sorted(named - set(names)):
        raise LvdError(f"{where}: unknown category {category!r}, use {', '.join(names)}")
    return tuple(name for name in names if name in named)


def _tidy_pairs(rows: list[dict[str, str]], path: Path) -> list[tuple[str, str, str]]:
    return [(f"{path} row {i}", row["sample_id"], row["category"]) for i, row in enumerate(rows, 1)]


def _uvd_pairs(
    rows: list[dict[str, str]], path: Path, samples: Sequence[Sample], names: Sequence[str]
) -> list[tuple[str, str, str]]:
    if len(names) != len(_UVD_COLUMNS):
        raise LvdError(f"{path} labels five categories, the capture has {len(names)}")
    pairs = []
    for number, row in enumerate(rows, 1):
        for column, name in zip(_UVD_COLUMNS, names, strict=True):
            index = row[column].strip().removesuffix(".0")  # spreadsheets write ragged columns as floats
            if not index:
                continue
            if not index.isdecimal() or int(index) >= len(samples):
                raise LvdError(f"{path} row {number}: {index!r} is not one of the rows 0..{len(samples) - 1}")
            pairs.append((f"{path} row {number}", samples[int(index)].sample_id, name))
    return pairs


def _with_splits(samples: Sequence[Sample], seed: int) -> list[Sample]:
    splits = assign_splits(
        [sample.prompt for sample in samples],
        [sample.prompt_id for sample in samples],
        [sample.categories for sample in samples],
        seed,
    )
    return [replace(sample, split=split) for sample, split in zip(samples, splits, strict=True)]
